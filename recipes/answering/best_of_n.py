"""`mpo best-of-n`: every selector at every k, per problem and with intervals, beside blind rulers and the oracle.

Everything is an expectation over random k-subsets of a problem's N rollouts. A rollout that the PRM could not read
(control tokens, empty text) has no reward. It can still be chosen: it is ranked last (reward −∞) by `prm` and `orm`,
has weight 0 in weighted votes, is a full voter in the majority, and is counted as `unscored`. Where the PRM told
spreads, `lower_bound` chooses too; a rollout without them is ranked last by it and counted as `without_spread`.

At the end it prints what speaks against the PRM's choices (`rewards/choosing/selector_warnings.py`); `results.json`
keeps it as `warnings`.

The digits world takes a few seconds (500 problems, N = 16).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from mpo.multimodal.files import opened_atomically
from recipes.config import BestOfNConfig
from recipes.stage.folder import RESULTS, manifest_of, open_stage
from recipes.stage.groups import StoredGroups, problems_of
from rewards.choosing.evaluation import evaluate
from rewards.choosing.lower_bound import LowerBound
from rewards.scoring.aggregation import AGGREGATIONS
from rewards.types import RolloutGroup


def best_of_n(config: BestOfNConfig) -> Path:
    """Evaluate all selectors and write `results.json`; see the module's first lines for unscored rollouts.

    With `skip_unverified` a problem that no verifier could check counts neither way; the manifest has their number.

    Raises:
        ConfigError: a k is below 1 or above the number of rollouts.
        DataError: there are no groups, rollouts without verdicts, or no rewards at all.
    """
    stage = open_stage("best-of-n", config, inputs=[config.groups])
    if stage.complete:
        return stage.out
    seen = Counter[bool]()  # responses in the last pass: whether they were evaluated

    def usable(groups: Iterator[RolloutGroup]) -> Iterator[RolloutGroup]:
        seen.clear()
        for group in groups:
            used = not config.skip_unverified or _is_verified(group)
            seen[used] += len(group.rollouts)
            if used:
                yield group

    groups = StoredGroups(config.groups, usable)
    bound = LowerBound(config.aggregation or _aggregation_of(config.groups), config.pessimism)
    results = evaluate(groups, config.ks, scored=config.scored, where=str(config.groups), bound=bound)
    with opened_atomically(stage.out / RESULTS, "w") as file:
        json.dump(results, file, default=list)  # a column at a time
        file.write("\n")
    for warning in results.get("warnings", ()):
        print(f"warning: {config.groups}: {warning['message']}", file=sys.stderr)
    total, out = seen.total(), seen[True]
    counts = {"in": total, "out": out, "rejected": {"unverified": total - out} if total > out else {}}
    unscored = {"unscored": results["unscored"]} if config.scored else {}
    if "lower_bound" in results:
        unscored["without_spread"] = results["lower_bound"]["without_spread"]
    note = _note(results)
    return stage.finish({**counts, **unscored, "problems": str(problems_of(config.groups))}, note=note)


def _aggregation_of(groups: Path) -> str:
    """How `mpo score` made rewards of the step scores; the mean where another stage made them."""
    how = manifest_of(groups)["fingerprint"]["settings"].get("aggregation")
    return how if how in AGGREGATIONS else "mean"


def _is_verified(group: RolloutGroup) -> bool:
    return bool(group.rollouts) and all(rollout.verdict is not None for rollout in group.rollouts)


def _note(results: Mapping[str, Any]) -> str:
    """The accuracy at the largest k, of the PRM, its lower bound, the vote and a random response."""
    k = str(max(results["ks"]))
    names = {"PRM": "prm", "lower bound": "lower_bound", "vote": "majority", "one response": "random"}
    values = results["values"]
    shown = {name: fmean(values[selector][k]) for name, selector in names.items() if selector in values}
    return f"right at k = {k}, per cent: " + ", ".join(f"{name} {100 * value:.1f}" for name, value in shown.items())
