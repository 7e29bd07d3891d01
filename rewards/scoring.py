"""RolloutGroup → scored RolloutGroup, the only composition of a PRM with an aggregation; given steps → their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from rewards.aggregation import aggregate
from rewards.prm.benchmark import BenchmarkResponse, ScoredResponse
from rewards.splitting import BLANK_LINE, split_on_blank_lines
from rewards.types import ProcessRewardModel, Problem, RolloutGroup, StepScores


class BatchScorer(Protocol):
    """What scoring needs of a PRM: many responses at once, and which it cannot score."""

    def score_many(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores]:
        """Step scores of each (problem, response), in order."""
        ...

    def unscorable(self, text: str) -> str | None:
        """Why a response cannot be scored, or `None`."""
        ...


def score_groups(
    groups: Sequence[RolloutGroup], prm: BatchScorer, *, how: str = "mean", describe: str = ""
) -> tuple[list[RolloutGroup], Counter[str]]:
    """Step scores and reward for every rollout that the PRM can read.

    Args:
        groups: any rollouts.
        prm: scores responses.
        how: a name of `rewards.aggregation.AGGREGATIONS`.
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


def score_given_steps(
    responses: Sequence[BenchmarkResponse], prm: ProcessRewardModel, *, describe: str = ""
) -> tuple[list[ScoredResponse], Counter[str]]:
    """Score the steps of a benchmark's responses.

    A PRM that has `score_steps` (`ModelPRM`) gets the steps as they are. Any other gets them joined by blank lines, with
    blank lines inside a step closed up, and must give one score a step.

    Args:
        responses: with their problems as they are to be seen, e.g. with blank pictures.
        prm: any PRM.
        describe: names a progress bar, where the PRM has one.

    Returns:
        Scored responses, in order; and reason → number of those that cannot be scored.
    """
    whole = getattr(prm, "score_steps", None)
    unscorable = getattr(prm, "unscorable", lambda text: None)
    reasons = [next(filter(None, map(unscorable, response.steps)), None) for response in responses]
    kept = [response for response, reason in zip(responses, reasons, strict=True) if reason is None]
    rejected = Counter(reason for reason in reasons if reason)
    if whole is not None:
        found = whole([(response.problem, response.steps) for response in kept], describe=describe)
        return [ScoredResponse(r, scores.values) for r, scores in zip(kept, found, strict=True)], rejected
    scored = []
    for response in kept:
        (scores,) = prm.score(response.problem, [BLANK_LINE.join(map(_closed_up, response.steps))])
        if len(scores.values) == len(response.steps):
            scored.append(ScoredResponse(response, scores.values))
        else:
            rejected["the PRM gave another number of scores"] += 1
    return scored, rejected


def _closed_up(step: str) -> str:
    return "\n".join(part.text for part in split_on_blank_lines(step))
