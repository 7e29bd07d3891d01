"""Responses of a step benchmark, with labels and scores; the development split; the threshold chosen on it.

No model is called here. A benchmark's row becomes a `BenchmarkResponse`, whose steps are given and whose labels are
right, wrong or none; a step without a label (VisualProcessBench's neutral ones, ProcessBench's steps after the first
error) counts nothing anywhere. A score below the threshold calls a step wrong. The threshold is chosen on development
problems only: a threshold chosen on the test set flatters every PRM by a different amount.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpo.multimodal.errors import ConfigError, DataError
from rewards.errors import StepAlignmentError
from rewards.kept.keys import seed_of
from rewards.prm.evaluating.metrics import f1_scores, first_error_f1
from rewards.types import Problem

Array = NDArray[np.float64]
_MORE_DEVELOPMENT = "make the development share larger or give a development file"


@dataclass(frozen=True)
class BenchmarkResponse:
    """One response of a benchmark.

    Attributes:
        id: unique in its file; for messages and for finding the row again.
        problem: what was asked; responses to one problem share its id, which is what is split and resampled.
        steps: their texts, as given.
        labels: for each step whether it is right, or `None`: it counts nothing.
        source: the subset that it belongs to.
        generator: who wrote the response.
        final_correct: whether its final answer is right, if the benchmark states it.
    """

    id: str
    problem: Problem
    steps: tuple[str, ...]
    labels: tuple[bool | None, ...]
    source: str
    generator: str = ""
    final_correct: bool | None = None

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.labels):
            raise StepAlignmentError(f"{self.id}: {len(self.steps)} steps but {len(self.labels)} labels")
        if all(label is None for label in self.labels):
            raise DataError(f"{self.id}: no step has a label")

    @property
    def first_error(self) -> int:
        """Index of the first wrong step, −1 if there is none (as in ProcessBench)."""
        return self.labels.index(False) if False in self.labels else -1

    def until_first_error(self) -> tuple[bool | None, ...]:
        """The labels, `None` after the first wrong step: what follows from an error is neither right nor wrong."""
        end = self.first_error + 1 if self.first_error >= 0 else len(self.labels)
        return tuple(label if index < end else None for index, label in enumerate(self.labels))


@dataclass(frozen=True)
class ScoredResponse:
    """A response with P(correct) of each of its steps."""

    response: BenchmarkResponse
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.response.steps):
            raise StepAlignmentError(
                f"{self.response.id}: {len(self.response.steps)} steps but {len(self.scores)} scores"
            )

    def labelled(self) -> list[tuple[float, bool]]:
        """(score, label) of the steps that have a label."""
        return [(s, label) for s, label in zip(self.scores, self.response.labels, strict=True) if label is not None]

    def predicted_first_error(self, threshold: float) -> int:
        """Index of the first labelled step whose score is below the threshold, −1 if there is none."""
        pairs = enumerate(zip(self.scores, self.response.labels, strict=True))
        return next((i for i, (score, label) in pairs if label is not None and score < threshold), -1)


def in_development(problem_id: str, *, share: float, seed: int) -> bool:
    """Whether a problem belongs to the development split: a hash of seed and id below `share`.

    The split depends on nothing else, so rows can be added, dropped or reordered and no problem changes sides.

    Example:
        >>> sum(in_development(f"p{i}", share=0.2, seed=0) for i in range(1000))
        208
    """
    if not 0.0 < share < 1.0:
        raise ConfigError(f"the development share must be in (0, 1), got {share}")
    return seed_of(seed, problem_id) < share * 2**64


def choose_threshold(responses: Sequence[ScoredResponse], *, objective: str) -> tuple[float, float]:
    """The threshold with the best pooled value of `objective` on development responses, and that value.

    Every value that changes a decision is tried: halfway between neighbouring scores, 0, and halfway from the highest
    score to 1. Of equally good ones the nearest to 0.5 is taken.

    Args:
        responses: of the development split.
        objective: a name of `OBJECTIVES`: `macro_f1` (VisualProcessBench) or `first_error_f1` (ProcessBench).

    Raises:
        ConfigError: `objective` is unknown.
        DataError: no right or no wrong steps, or for first errors no response with one or none without.
    """
    if objective not in OBJECTIVES:
        raise ConfigError(f"unknown objective {objective!r}: expected one of {', '.join(OBJECTIVES)}")
    pairs = [pair for response in responses for pair in response.labelled()]
    distinct = np.unique([score for score, _ in pairs])
    if len({label for _, label in pairs}) < 2:
        raise DataError(
            f"the {len(responses)} development responses do not hold both right and wrong steps, so they choose no "
            f"threshold; {_MORE_DEVELOPMENT}"
        )
    candidates = np.concatenate([[0.0], (distinct[1:] + distinct[:-1]) / 2, [(distinct[-1] + 1) / 2]])
    values = OBJECTIVES[objective](responses, candidates)
    if not np.isfinite(values).any():
        raise DataError(
            f"{objective} is undefined on the {len(responses)} development responses: expected responses with an error "
            f"and without; {_MORE_DEVELOPMENT}"
        )
    best = candidates[values >= np.nanmax(values) - 1e-12]
    chosen = float(best[np.abs(best - 0.5).argmin()])
    return chosen, float(np.nanmax(values))


def _macro_f1_at(responses: Sequence[ScoredResponse], thresholds: Array) -> Array:
    """Pooled macro-F1 at every threshold, from two sorted lists."""
    pairs = [pair for response in responses for pair in response.labelled()]
    right, wrong = (np.sort([score for score, label in pairs if label is kind]) for kind in (True, False))
    called_wrong, both_wrong = np.searchsorted(right, thresholds), np.searchsorted(wrong, thresholds)
    counts = [right.size - called_wrong, wrong.size - both_wrong, called_wrong, both_wrong]
    return f1_scores(np.stack(counts, axis=-1))[2]


def _first_error_f1_at(responses: Sequence[ScoredResponse], thresholds: Array) -> Array:
    """Pooled first-error F1 at every threshold t.

    A response is judged right iff low < t ≤ high: low is the score at its first error (−∞ without one), high the lowest
    score before it.
    """
    with_error, without = [], []
    for one in responses:
        before = [score for score, label in one.labelled()[: _labelled_before_error(one.response)]]
        high = min(before, default=np.inf)
        if one.response.first_error >= 0:
            with_error.append((one.scores[one.response.first_error], high))
        else:
            without.append((-np.inf, high))
    found, kept = _inside(with_error, thresholds), _inside(without, thresholds)
    return first_error_f1(np.stack([found, len(with_error) - found, kept, len(without) - kept], axis=-1))


def _labelled_before_error(response: BenchmarkResponse) -> int:
    end = response.first_error if response.first_error >= 0 else len(response.labels)
    return sum(label is not None for label in response.labels[:end])


def _inside(intervals: Sequence[tuple[float, float]], thresholds: Array) -> Array:
    """How many of the intervals (low, high] hold each threshold."""
    low, high = (np.sort([pair[side] for pair in intervals if pair[0] < pair[1]]) for side in (0, 1))
    return (np.searchsorted(low, thresholds) - np.searchsorted(high, thresholds)).astype(np.float64)


OBJECTIVES = {"macro_f1": _macro_f1_at, "first_error_f1": _first_error_f1_at}
