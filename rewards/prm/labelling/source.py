"""Where a rollout's step counts come from, and what they may be used for.

`mc:full:16`        K = 16 continuations from every step: correct / total estimates mc, with σ ≤ √(.25/16) = .125.
`mc:sequential:16`  drawing stopped at the first success: 1 of 2 may mean mc = .5 or .05.
`mc:bisect:16`      as sequential, and most steps were inferred from others, not drawn.
`mc:unknown:16`     someone's rows, whose steps have different totals.
`exact`             the truth is known, 1 of 1 or 0 of 1.

`correct > 0` is a step's hard label in all of them. Only `full` and `exact` counts have a value that can be a soft
label, an advantage or a confidence.
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
        sources = ", ".join(f"{source} ({number} rollouts)" for source, number in sorted(found.items()))
        raise ConfigError(
            f"{use} need counts that estimate mc (label_source mc:full:K or exact), got {sources}: such counts show "
            "only whether a step has a success; label with `--budget full`, or train on hard labels at threshold 0"
        )
