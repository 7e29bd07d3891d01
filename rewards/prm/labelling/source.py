"""Where a rollout's step counts come from, and what they may be used for.

`mc:full:16`        K = 16 continuations from every step: correct / total estimates mc, with σ ≤ √(.25/16) = .125.
`mc:sequential:16`  drawing stopped at the first success: 1 of 2 may mean mc = .5 or .05.
`mc:bisect:16`      as sequential, and most steps were inferred from others, not drawn.
`mc:unknown:16`     someone's rows, whose steps have different totals.
`exact`             the truth is known, 1 of 1 or 0 of 1.

`correct > 0` is a step's hard label in all of them. Only `full` and `exact` counts have a value that can be a soft
label or an advantage. Those of `sequential` were drawn as well: p^correct·(1 − p)^(total − correct) is their likelihood
whatever made the drawing stop, so they have a posterior and can be learned by their likelihood.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mpo.multimodal.errors import ConfigError
from rewards.types import Rollout

EXACT = "exact"


def monte_carlo_source(budget: str, num_continuations: int) -> str:
    """The name of counts that were drawn under a budget of K continuations per step.

    Example:
        >>> monte_carlo_source("full", 16)
        'mc:full:16'
    """
    return f"mc:{budget}:{num_continuations}"


def counts_estimate_mc(label_source: str | None) -> bool:
    """Whether correct / total estimates mc. `None` does: files without a source are older than the other budgets.

    Example:
        >>> [counts_estimate_mc(source) for source in ("mc:full:16", "exact", None, "mc:bisect:16", "someone's")]
        [True, True, True, False, False]
    """
    return label_source is None or label_source == EXACT or label_source.startswith("mc:full:")


def counts_were_drawn(label_source: str | None) -> bool:
    """Whether each step's count is of draws from its own end, so that p^correct·(1 − p)^wrong is its likelihood.

    Example:
        >>> [counts_were_drawn(source) for source in ("mc:full:16", "mc:sequential:16", "exact", None, "mc:bisect:16")]
        [True, True, True, True, False]
    """
    return counts_estimate_mc(label_source) or str(label_source).startswith("mc:sequential:")


def require_draws(rollouts: Iterable[Rollout], *, use: str) -> None:
    """Refuse counts that were not drawn from each step's own end.

    Args:
        rollouts: labelled ones.
        use: what needs the draws, for the message.

    Raises:
        ConfigError: some counts have another source; names it, and how many rollouts have it.
    """
    found = Counter(r.label_source for r in rollouts if not counts_were_drawn(r.label_source))
    if found:
        raise ConfigError(
            f"{use} needs counts of draws from each step (label_source mc:full:K, mc:sequential:K or exact), got "
            f"{_named(found)}: their draws are not known step by step; label with `--budget full` or `sequential`"
        )


def require_estimates(rollouts: Iterable[Rollout], *, use: str) -> None:
    """Refuse counts that do not estimate mc.

    Args:
        rollouts: labelled ones.
        use: what needs the estimate, for the message, e.g. "soft labels".

    Raises:
        ConfigError: some counts have another source; names it, and how many rollouts have it.
    """
    found = Counter(r.label_source for r in rollouts if not counts_estimate_mc(r.label_source))
    if found:
        raise ConfigError(
            f"{use} need counts that estimate mc (label_source mc:full:K or exact), got {_named(found)}: such counts "
            "show only whether a step has a success; label with `--budget full`, or train on hard labels at threshold 0"
        )


def _named(found: Counter[str | None]) -> str:
    return ", ".join(
        f"{source} ({number} rollouts)" for source, number in sorted(found.items(), key=lambda item: str(item[0]))
    )
