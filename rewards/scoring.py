"""RolloutGroup → scored RolloutGroup: the only composition of a PRM with an aggregation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from tqdm.auto import tqdm

from rewards.aggregation import aggregate
from rewards.call_store import Once
from rewards.types import Aggregator, Problem, RolloutGroup, StepScores


class BatchScorer(Protocol):
    """What scoring needs of a PRM: many responses at once, and which it cannot score."""

    def score_many(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores]:
        """Step scores of each (problem, response), in order."""
        ...

    def unscorable(self, text: str) -> str | None:
        """Why a response cannot be scored, or `None`."""
        ...


class StoredScorer:
    """A PRM whose calls are kept: scoring the same list goes on where a run was killed, to the same bits.

    Args:
        prm: scores what is not kept yet.
        once: of the store (`CallStore.once`).
        rows_a_call: responses a call; the number that `prm` itself takes at a time.
    """

    def __init__(self, prm: BatchScorer, once: Once, *, rows_a_call: int) -> None:
        self.prm, self.once, self.rows_a_call = prm, once, rows_a_call

    def unscorable(self, text: str) -> str | None:
        """Why a response cannot be scored, or `None`."""
        return self.prm.unscorable(text)

    def score_many(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores]:
        """Step scores of each (problem, response), in order."""
        scores: list[StepScores] = []
        with tqdm(total=len(items), desc=describe, unit="response", disable=not describe) as bar:
            for start in range(0, len(items), self.rows_a_call):
                some = items[start : start + self.rows_a_call]
                about = ["score", [[problem.id, problem.question, text] for problem, text in some]]
                scores += [StepScores(tuple(values)) for values in self.once(about, partial(self._values, some))]
                bar.update(len(some))
        return scores

    def _values(self, items: Sequence[tuple[Problem, str]]) -> list[tuple[float, ...]]:
        return [scores.values for scores in self.prm.score_many(items)]


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
