"""What is measured on each test problem: one number a problem and seed, averaged over the seeds first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from mpo.multimodal.errors import DataError
from recipes.stage.folder import MANIFEST
from recipes.stage.groups import read_groups
from rewards.choosing.evaluation import degenerate_shares, within_problem_aucs
from rewards.scoring.visual_dependence import of_group
from rewards.statistics import CHANGE, SHARE, Bounds, mean_with_interval, paired_difference
from rewards.types import RolloutGroup, Verdict, correctness_of

BOUNDS: dict[str, Bounds] = dict.fromkeys(("swap_drop", "dependence_right", "dependence_wrong"), CHANGE)
# How a verdict is counted; each is a share of a problem's responses.
VERDICTS = {
    Verdict.CORRECT: "right",
    Verdict.WRONG: "wrong",
    Verdict.UNPARSABLE: "no answer",
    Verdict.TIMEOUT: "not checked",
    Verdict.ERROR: "not checked",
    None: "not checked",
}
LENGTHS = ("characters", "tokens")  # of a response, the mean of a problem

Values = dict[str, float]  # problem id → value
Row = dict[str, float | None]  # quantity → value of one problem; None is "has none"


@dataclass(frozen=True)
class Measure:
    """One quantity: a value per problem, for each seed (by index) that has it."""

    by_seed: Mapping[int, Values]
    bounds: Bounds = SHARE

    def averaged(self, seeds: Sequence[int] | None = None) -> Values:
        """Problem → mean over the seeds that have a value for it."""
        chosen = [self.by_seed[seed] for seed in (self.by_seed if seeds is None else seeds)]
        ids = dict.fromkeys(identifier for values in chosen for identifier in values)
        return {i: fmean(values[i] for values in chosen if i in values) for i in ids}

    def only(self, ids: Container[str]) -> Measure:
        """The measure of these problems."""
        kept = {s: {i: value for i, value in values.items() if i in ids} for s, values in self.by_seed.items()}
        return Measure({seed: values for seed, values in kept.items() if values}, self.bounds)

    def estimate(self, *, resamples: int = 9999) -> dict[str, Any]:
        """Mean, low, high and n over problems, and each seed's mean."""
        estimate = mean_with_interval(list(self.averaged().values()), resamples=resamples, bounds=self.bounds)
        return {**asdict(estimate), "seeds": [fmean(values.values()) for values in self.by_seed.values()]}


def measures_of(runs: Sequence[Path], stages: Sequence[str], of: Callable[[RolloutGroup], Row]) -> dict[str, Measure]:
    """Name → measure, from the first of `stages` that a run has finished; a run without them is left out."""
    rows: dict[int, dict[str, Row]] = {}
    for seed, run in enumerate(runs):
        if folder := next((run / stage for stage in stages if (run / stage / MANIFEST).exists()), None):
            rows[seed] = {group.problem.id: of(group) for group in read_groups(folder)}
    same_problems(rows, stages[0])
    names = dict.fromkeys(name for by_id in rows.values() for row in by_id.values() for name in row)
    by_name = {name: {seed: _column(by_id, name) for seed, by_id in rows.items()} for name in names}
    kept = {name: {s: values for s, values in by_seed.items() if values} for name, by_seed in by_name.items()}
    return {name: Measure(by_seed, BOUNDS.get(name, SHARE)) for name, by_seed in kept.items() if by_seed}


def _column(rows: Mapping[str, Row], name: str) -> Values:
    return {i: value for i, row in rows.items() if (value := row[name]) is not None}


def same_problems(rows: Mapping[int, Mapping[str, Any]], stage: str) -> None:
    """The seeds must share their problems, else a mean over seeds would compare different tests."""
    kinds = {frozenset(by_id) for by_id in rows.values()}
    if len(kinds) > 1:
        raise DataError(
            f"{stage}: the seeds have different test problems ({sorted(map(len, kinds))} ids); "
            "expected the same in every seed"
        )


def of_accuracy(name: str, group: RolloutGroup) -> Row:
    """The share of right responses, under a name."""
    return {name: _accuracy(group)}


def of_samples(group: RolloutGroup) -> Row:
    """Everything that a problem's sampled responses tell."""
    counts = {"sampled": _accuracy(group), "samples": float(len(group.rollouts))}
    return {
        **counts,
        **degenerate_shares(group.rollouts),
        **_of_rewards(group),
        **of_group(group),
        **_of_verdicts(group),
        **_of_lengths(group),
    }


def _of_verdicts(group: RolloutGroup) -> Row:
    counts = Counter(VERDICTS[rollout.verdict] for rollout in group.rollouts)
    return {name: counts[name] / len(group.rollouts) for name in VERDICTS.values()}


def _of_lengths(group: RolloutGroup) -> Row:
    tokens = [rollout.completion.num_tokens for rollout in group.rollouts]
    characters = fmean(len(rollout.completion.text) for rollout in group.rollouts)
    return {"characters": characters, "tokens": fmean(tokens) if all(tokens) else None}


def _of_rewards(group: RolloutGroup) -> Row:
    """AUC with the problem's image and with another's, and the mean fall of the reward."""
    other = replace(
        group, rollouts=tuple(r.with_(reward=r.swapped.reward if r.swapped else None) for r in group.rollouts)
    )
    falls = [r.reward - r.swapped.reward for r in group.rollouts if r.reward is not None and r.swapped is not None]
    return {
        "auc": within_problem_aucs([group]).get(group.problem.id),
        "auc_swapped": within_problem_aucs([other]).get(group.problem.id),
        "swap_drop": fmean(falls) if falls else None,
    }


def _accuracy(group: RolloutGroup) -> float:
    return fmean(correctness_of(group))


def difference(left: Measure | None, right: Measure | None, ids: Container[str] | None = None) -> dict[str, Any] | None:
    """Paired over problems, on the seeds and problems that have both sides; None if there are none.

    Args:
        left, right: what is compared.
        ids: only these problems.

    Raises:
        DataError: one side has problems that the other has not.
    """
    both = [seed for seed in left.by_seed if seed in right.by_seed] if left and right else []
    if not left or not right or not both:
        return None
    a, b = left.averaged(both), right.averaged(both)
    if a.keys() != b.keys():
        raise DataError(f"a comparison has {len(a)} problems on one side and {len(b)} on the other; expected the same")
    kept = [i for i in a if ids is None or i in ids]
    if not kept:
        return None
    per_seed = [_mean_of(left.by_seed[seed], kept) - _mean_of(right.by_seed[seed], kept) for seed in both]
    found = paired_difference([a[i] for i in kept], [b[i] for i in kept])
    return {**asdict(found), "verdict": found.verdict, "seeds": per_seed}


def _mean_of(values: Values, kept: Sequence[str]) -> float:
    return fmean(values[identifier] for identifier in kept if identifier in values)
