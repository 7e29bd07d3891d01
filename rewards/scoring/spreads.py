"""The spreads that a PRM told of its step scores (`StepScores.spreads`), and how many steps were scored."""

from __future__ import annotations

from rewards.types import RolloutGroup


def step_spreads(group: RolloutGroup) -> list[float]:
    """The spreads of all steps of a problem's responses that have one.

    Example:
        >>> from rewards.types import Completion, Problem, Rollout, StepScores
        >>> scores = StepScores((0.9, 0.5), spreads=(0.1, 0.2)), StepScores((0.8,)), None
        >>> group = RolloutGroup(Problem("p", "?"), tuple(Rollout(Completion("…"), step_scores=s) for s in scores))
        >>> step_spreads(group), scored_steps(group)
        ([0.1, 0.2], 3)
    """
    found = [rollout.step_scores for rollout in group.rollouts]
    return [spread for scores in found if scores is not None for spread in scores.spreads or ()]


def scored_steps(group: RolloutGroup) -> int:
    """How many steps of a problem's responses have a score, with a spread or without."""
    return sum(len(rollout.step_scores.values) for rollout in group.rollouts if rollout.step_scores)
