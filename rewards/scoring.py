"""RolloutGroup → scored RolloutGroup: the only composition of a PRM with an aggregation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from mpo.multimodal.errors import DataError
from rewards.aggregation import aggregate
from rewards.types import Aggregator, Problem, ProcessRewardModel, RolloutGroup, StepScores


def score_groups(
    groups: Sequence[RolloutGroup], prm: ProcessRewardModel, *, how: str | Aggregator = "mean", describe: str = ""
) -> tuple[list[RolloutGroup], Counter[str]]:
    """Step scores and reward for every rollout that the PRM can read.

    Args:
        groups: any rollouts.
        prm: scores responses.
        how: a name of `rewards.aggregation.AGGREGATIONS`, or a callable of its shape.
        describe: names a progress bar.

    Returns:
        The groups, same rollouts in the same order; those that cannot be scored get `reward=None`, whatever an
        earlier PRM gave them; and reason → number of those.
    """
    items = [(group.problem, rollout.completion.text) for group in groups for rollout in group.rollouts]
    found = outcomes(items, prm, describe=describe)
    reasons = Counter(outcome for outcome in found if isinstance(outcome, str))
    left = iter(found)
    scored = []
    for group in groups:
        rollouts = []
        for rollout in group.rollouts:
            outcome = next(left)
            scores = None if isinstance(outcome, str) else outcome
            reward = aggregate(scores, how=how) if scores else None
            rollouts.append(rollout.with_(step_scores=scores, reward=reward))
        scored.append(RolloutGroup(group.problem, tuple(rollouts)))
    return scored, reasons


def outcomes(
    items: Sequence[tuple[Problem, str]], prm: ProcessRewardModel, *, describe: str = ""
) -> list[StepScores | str]:
    """Step scores of each (problem, response), or in a few words why it has none; in order.

    A PRM needs `score` alone. One that can say more (`rewards.prm.step_prm.StepPRM`) is asked for more: by `unscorable`
    which responses it cannot read, by `outcomes` for many problems in one call, a `DataError` in place of no scores.
    """
    unscorable: Callable[[str], str | None] = getattr(prm, "unscorable", lambda text: None)
    reasons = [unscorable(text) for _, text in items]
    readable = [item for item, reason in zip(items, reasons, strict=True) if reason is None]
    if hasattr(prm, "outcomes"):
        found: Iterator[StepScores | DataError] = iter(prm.outcomes(readable, describe=describe))
    else:
        found = _one_problem_a_call(readable, prm)
    return [_scores_or_reason(next(found)) if reason is None else reason for reason in reasons]


def _one_problem_a_call(items: Sequence[tuple[Problem, str]], prm: ProcessRewardModel) -> Iterator[StepScores]:
    for _, some in groupby(items, key=lambda item: id(item[0])):
        problems, texts = zip(*some, strict=True)
        yield from (scores for scores, _ in zip(prm.score(problems[0], texts), texts, strict=True))


def _scores_or_reason(outcome: StepScores | DataError) -> StepScores | str:
    return outcome.reason if isinstance(outcome, DataError) else outcome
