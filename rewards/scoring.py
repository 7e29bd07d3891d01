"""RolloutGroup → scored RolloutGroup: the only composition of a PRM with an aggregation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from rewards.aggregation import aggregate
from rewards.types import Aggregator, Problem, RolloutGroup, StepScores


class BatchScorer(Protocol):
    """What scoring needs of a PRM: many responses at once, and which it cannot score."""

    def score_many(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores]:
        """Step scores of each (problem, response), in order."""
        ...

    def unscorable(self, text: str) -> str | None:
        """Why a response cannot be scored, or `None`."""
        ...


def score_groups(
    groups: Sequence[RolloutGroup], prm: BatchScorer, *, how: str | Aggregator = "mean", describe: str = ""
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
    reasons = [[prm.unscorable(rollout.completion.text) for rollout in group.rollouts] for group in groups]
    items = [
        (group.problem, rollout.completion.text)
        for group, row in zip(groups, reasons, strict=True)
        for rollout, reason in zip(group.rollouts, row, strict=True)
        if reason is None
    ]
    scores = iter(prm.score_many(items, describe=describe))
    scored = []
    for group, row in zip(groups, reasons, strict=True):
        rollouts = []
        for rollout, reason in zip(group.rollouts, row, strict=True):
            found = next(scores) if reason is None else None
            reward = aggregate(found, how=how) if found else None
            rollouts.append(rollout.with_(step_scores=found, reward=reward))
        scored.append(RolloutGroup(group.problem, tuple(rollouts)))
    return scored, Counter(reason for row in reasons for reason in row if reason)
