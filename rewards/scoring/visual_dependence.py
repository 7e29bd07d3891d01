"""Does a step's score come from the image? Score with the image minus score with one that is not the problem's.

    blank dependence of step i    = s_i(image) − s_i(white image of the same size)
    swapped dependence of step i  = s_i(image) − s_i(another problem's image of the same size)

Near 0, the PRM judged the text alone. Both counterfactuals have a weakness: a blank image is unlike all training
images, and another problem's may show the same; so a response's dependence is the smaller of its two means.

Dependence tells which right steps rest on the image. It does not tell what kind of error a wrong step is: a false
claim about the image is mostly false of another image too, so its score stays low (`docs/log.md`, 2026-11-25).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from rewards.types import Rollout, RolloutGroup, correctness_of

Other = Literal["blank", "swapped"]


@dataclass(frozen=True)
class Dependence:
    """Score with the image minus score with another, a value per step in [-1, 1]."""

    steps: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the steps: with the aggregation `mean`, what the reward loses without the image."""
        return fmean(self.steps)

    @property
    def largest(self) -> float:
        """Of the step whose score moves most, up or down."""
        return max(self.steps, key=abs)


def dependence(rollout: Rollout, other: Other = "blank") -> Dependence | None:
    """Each step's score with the image minus its score with a blank or another problem's.

    Returns:
        `None` if the rollout was not scored with both (`mpo score --visual_dependence true`).

    Example:
        >>> from rewards.types import Completion, StepScores, Unseen
        >>> seen, blank = StepScores((0.75, 0.875)), Unseen(StepScores((0.25, 0.875)), 0.5625)
        >>> found = dependence(Rollout(Completion("Red 7\\n\\nTwice 14"), step_scores=seen, blank=blank))
        >>> found.steps, found.mean, found.largest
        ((0.5, 0.0), 0.25, 0.5)
    """
    unseen = rollout.blank if other == "blank" else rollout.swapped
    if rollout.step_scores is None or unseen is None:
        return None
    pairs = zip(rollout.step_scores.values, unseen.step_scores.values, strict=True)
    return Dependence(tuple(seen - without for seen, without in pairs))


def _dependences(rollout: Rollout) -> list[Dependence]:
    """On blank and on swapped images, those that are there."""
    return [one for one in (dependence(rollout, "blank"), dependence(rollout, "swapped")) if one is not None]


def step_dependence(rollout: Rollout) -> tuple[float, ...] | None:
    """For each step the smaller of its dependences on blank and swapped images, of those that are there."""
    found = [one.steps for one in _dependences(rollout)]
    return tuple(map(min, zip(*found, strict=True))) if found else None


def visual_dependence(rollout: Rollout) -> float | None:
    """The smaller of the mean dependences on blank and swapped images, of those that are there, in [-1, 1].

    It is high only if the response is scored well with its own image and badly with either of the others.
    """
    return min((one.mean for one in _dependences(rollout)), default=None)


def of_group(group: RolloutGroup) -> Mapping[str, float | None]:
    """The values of one problem; `None` if it has no such response.

    Returns:
        `dependence_right`, `dependence_wrong`: mean `visual_dependence` of right and of wrong responses.
    """
    values: dict[bool, list[float]] = {True: [], False: []}
    for right, rollout in zip(correctness_of(group), group.rollouts, strict=True):
        value = visual_dependence(rollout)
        if value is not None and rollout.verdict and rollout.verdict.is_decided:
            values[right].append(value)
    return {
        "dependence_right": fmean(values[True]) if values[True] else None,
        "dependence_wrong": fmean(values[False]) if values[False] else None,
    }
