"""What a benchmark shows about a PRM: macro-F1, first errors, AUC, calibration, and what it loses without the image.

Intervals are over problems (`rewards.statistics`), the independent units:
a problem's responses and steps stay together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpo.multimodal.errors import DataError
from rewards.prm.evaluating.benchmark import ScoredResponse
from rewards.prm.evaluating.metrics import calibration, class_counts, f1_scores, first_error_f1, within_auc
from rewards.scoring.ranking import share, weighted_auc
from rewards.statistics import CHANGE, SHARE, Bounds, mean_with_interval, paired_difference, statistic_with_interval

Array = NDArray[np.float64]
Metric = Callable[[Array], Array]
RESAMPLES = 2000  # bootstrap, a number


def evaluate(responses: Sequence[ScoredResponse], *, threshold: float, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Every number at one threshold, with 95 % bootstrap intervals over problems.

    `macro_f1` and `first_error.f1` are given in three conventions, which can differ by points: `pooled` counts all
    steps (or responses) together, `mean_of_sources` averages the sources' own values, `weighted` does so with their
    numbers of responses. What the data do not define is `None`.

    Returns:
        Plain data for JSON.

    Raises:
        DataError: no responses.
    """
    if not responses:
        raise DataError("no scored responses to evaluate: expected at least one")
    table = _Table(responses, threshold)

    steps, firsts = table.steps.sum(1), table.firsts.sum(1)  # (P, 4)

    def conventions(metric: Metric, counts: Array) -> dict[str, Any]:
        statistics = {how: partial(over, metric, counts, table.sizes) for how, over in CONVENTIONS.items()}
        return {how: _estimate(statistic, table.problems, resamples) for how, statistic in statistics.items()}

    def of_sums(metric: Metric, counts: Array) -> dict[str, Any] | None:
        return _estimate(lambda weights: metric(weights @ counts), len(counts), resamples)

    within = list(within_auc(table.scores, table.labels, table.problem_of_step.tolist()).values())
    return {
        "threshold": threshold,
        "responses": len(responses),
        "problems": table.problems,
        "right_steps": int(table.labels.sum()),
        "wrong_steps": int((~table.labels).sum()),
        "unlabelled_steps": sum(len(one.scores) for one in responses) - table.labels.size,
        "macro_f1": conventions(_macro_f1, table.steps),
        "f1_right": of_sums(lambda counts: f1_scores(counts)[0], steps),
        "f1_wrong": of_sums(lambda counts: f1_scores(counts)[1], steps),
        "step_accuracy": of_sums(_accuracy, steps),
        "first_error": {
            "f1": conventions(first_error_f1, table.firsts),
            "accuracy": of_sums(lambda c: share(c[..., 0] + c[..., 2], c.sum(-1)), firsts),
            "accuracy_with_error": of_sums(lambda c: share(c[..., 0], c[..., :2].sum(-1)), firsts),
            "accuracy_without_error": of_sums(lambda c: share(c[..., 2], c[..., 2:].sum(-1)), firsts),
        },
        "auc": _estimate(table.auc, table.problems, resamples),
        "within_problem_auc": asdict(mean_with_interval(within, resamples=resamples)) if within else None,
        "calibration": asdict(calibration(table.scores, table.labels)),
        "per_source": {
            name: {
                "responses": int(table.sizes[:, s].sum()),
                "macro_f1": of_sums(_macro_f1, table.steps[own, s]),
                "first_error_f1": of_sums(first_error_f1, table.firsts[own, s]),
            }
            for s, name in enumerate(table.sources)
            for own in [table.sizes[:, s] > 0]
        },
    }


def image_drop(
    seen: Sequence[ScoredResponse], unseen: Sequence[ScoredResponse], *, threshold: float, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """What a PRM loses without the right image: seen − unseen, paired, with intervals over problems.

    Near 0, the PRM judges the text alone. `score` is the fall of the mean score of the right steps: a PRM that looks
    stops believing what it cannot see. `macro_f1` is at the same threshold on both sides, pooled.

    Args:
        seen: scored with the right images.
        unseen: the same responses in the same order, scored with a blank or another problem's image.
        threshold: on both sides.
        resamples: bootstrap resamples.

    Raises:
        DataError: no responses, or not the same ones on both sides.
    """
    if not seen or [one.response for one in seen] != [one.response for one in unseen]:
        raise DataError("a drop needs the same responses, at least one, scored with and without their images")
    with_, without = _Table(seen, threshold), _Table(unseen, threshold)
    right = np.zeros((with_.problems, 3))  # right steps, sums of their scores seen and unseen
    for column, values in enumerate((np.ones(with_.labels.size), with_.scores, without.scores)):
        np.add.at(right[:, column], with_.problem_of_step[with_.labels], values[with_.labels])

    sides = [within_auc(side.scores, side.labels, side.problem_of_step.tolist()) for side in (with_, without)]
    within = [(sides[0][problem], sides[1][problem]) for problem in sides[0]]
    falls: dict[str, Metric] = {
        "score": lambda weights: share(weights @ (right[:, 1] - right[:, 2]), weights @ right[:, 0]),
        "macro_f1": lambda weights: _macro_f1(weights @ with_.steps.sum(1)) - _macro_f1(weights @ without.steps.sum(1)),
        "auc": lambda weights: with_.auc(weights) - without.auc(weights),
    }
    return {
        "responses": len(seen),
        **{name: _estimate(statistic, with_.problems, resamples, CHANGE) for name, statistic in falls.items()},
        "within_problem_auc": asdict(paired_difference(*zip(*within, strict=True))) if within else None,
    }


class _Table:
    """Responses as arrays: a row per problem, so that a resample of problems is a weight per row."""

    def __init__(self, responses: Sequence[ScoredResponse], threshold: float) -> None:
        ids = {one: i for i, one in enumerate(dict.fromkeys(r.response.problem.id for r in responses))}
        self.sources = sorted({one.response.source for one in responses})
        self.problems = len(ids)
        self.sizes = np.zeros((len(ids), len(self.sources)))  # responses
        self.steps = np.zeros((len(ids), len(self.sources), 4))  # `class_counts`
        self.firsts = np.zeros((len(ids), len(self.sources), 4))  # with an error: found, missed; without: kept, flagged
        scores: list[float] = []
        labels: list[bool] = []
        rows: list[int] = []
        for one in responses:
            row, source = ids[one.response.problem.id], self.sources.index(one.response.source)
            own_scores, own_labels = zip(*one.labelled(), strict=True)
            self.sizes[row, source] += 1
            self.steps[row, source] += class_counts(own_scores, own_labels, threshold=threshold)
            truth = one.response.first_error
            missed = one.predicted_first_error(threshold) != truth
            self.firsts[row, source, (0 if truth >= 0 else 2) + missed] += 1
            scores += own_scores
            labels += own_labels
            rows += [row] * len(own_scores)
        self.scores, self.labels, self.problem_of_step = np.array(scores), np.array(labels), np.array(rows)

    def auc(self, weights: Array) -> Array:
        """AUC over all steps, a value per resample."""
        return weighted_auc(self.scores, self.labels, weights[:, self.problem_of_step])


def _accuracy(counts: Array) -> Array:
    return share(counts[..., 0] + counts[..., 3], counts.sum(-1))


def _macro_f1(counts: Array) -> Array:
    return f1_scores(counts)[2]


def _estimate(statistic: Metric, problems: int, resamples: int, bounds: Bounds = SHARE) -> dict[str, Any] | None:
    found = statistic_with_interval(statistic, problems, resamples=resamples, bounds=bounds)
    return asdict(found) if found else None


def _pooled(metric: Metric, counts: Array, sizes: Array, weights: Array) -> Array:
    return metric(np.tensordot(weights, counts.sum(1), 1))


def _mean_of_sources(metric: Metric, counts: Array, sizes: Array, weights: Array) -> Array:
    return metric(np.tensordot(weights, counts, 1)).mean(1)


def _weighted(metric: Metric, counts: Array, sizes: Array, weights: Array) -> Array:
    own = weights @ sizes  # (R, S) responses
    return share((metric(np.tensordot(weights, counts, 1)) * own).sum(1), own.sum(1))


CONVENTIONS = {"pooled": _pooled, "mean_of_sources": _mean_of_sources, "weighted": _weighted}
