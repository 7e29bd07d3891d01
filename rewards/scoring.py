"""RolloutGroup → scored RolloutGroup: the only composition of a PRM with an aggregation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from tqdm.auto import tqdm

from rewards.aggregation import aggregate
from rewards.other_pictures import blanked, swapped
from rewards.types import Aggregator, Problem, RolloutGroup, StepScores, Unseen

BLANK_AT_A_TIME = 64  # problems whose blank pictures are in memory together


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
        earlier PRM gave them; and reason → number of those. What an earlier PRM said without the picture is gone.
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
            rollouts.append(rollout.with_(step_scores=found, reward=reward, blank=None, swapped=None))
        scored.append(RolloutGroup(group.problem, tuple(rollouts)))
    return scored, Counter(reason for row in reasons for reason in row if reason)


def score_unseen(
    groups: Sequence[RolloutGroup], prm: BatchScorer, *, how: str | Aggregator = "mean", describe: str = ""
) -> tuple[list[RolloutGroup], Counter[str]]:
    """The scored groups with every scored rollout scored again: with blank pictures, and with another problem's.

    Args:
        groups: scored by the same PRM and aggregation (`score_groups`).
        prm: scores responses.
        how: a name of `rewards.aggregation.AGGREGATIONS`, or a callable of its shape.
        describe: names a progress bar.

    Returns:
        The groups with `blank` and `swapped`; and "no picture" and "no other picture of its size" → number of scored
        rollouts that keep `None` there, since nothing could be taken away from them.
    """
    done: list[RolloutGroup] = []
    partners = swapped([group.problem for group in groups])
    with tqdm(total=len(groups), desc=describe, unit="problem", disable=not describe) as bar:
        for start in range(0, len(groups), BLANK_AT_A_TIME):
            part = groups[start : start + BLANK_AT_A_TIME]
            done += _with_unseen(part, partners[start : start + BLANK_AT_A_TIME], prm, how)
            bar.update(len(part))
    scored = [rollout for group in done for rollout in group.rollouts if rollout.step_scores is not None]
    lacking = {
        "no picture": sum(rollout.blank is None for rollout in scored),
        "no other picture of its size": sum(r.blank is not None and r.swapped is None for r in scored),
    }
    return done, +Counter(lacking)


def _with_unseen(
    groups: Sequence[RolloutGroup], partners: Sequence[Problem], prm: BatchScorer, how: str | Aggregator
) -> list[RolloutGroup]:
    """One call of the PRM, problem after problem, each with its blank pictures and then its partner's."""
    places = [
        (row, index, name, problem)
        for row, (group, partner) in enumerate(zip(groups, partners, strict=True))
        for name, problem in (("blank", blanked(group.problem)), ("swapped", partner))
        if problem.images != group.problem.images
        for index, rollout in enumerate(group.rollouts)
        if rollout.step_scores is not None
    ]
    items = [(problem, groups[row].rollouts[index].completion.text) for row, index, _, problem in places]
    found: dict[tuple[int, int], dict[str, Unseen]] = {}
    for (row, index, name, _), scores in zip(places, prm.score_many(items), strict=True):
        found.setdefault((row, index), {})[name] = Unseen(scores, aggregate(scores, how=how))
    return [
        RolloutGroup(
            group.problem, tuple(r.with_(**found.get((row, index), {})) for index, r in enumerate(group.rollouts))
        )
        for row, group in enumerate(groups)
    ]
