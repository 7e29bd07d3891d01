"""How good step scores are: accuracy, F1 of both classes, AUC over all and within a problem, calibration.

Pure functions of scores in [0, 1] and labels (true: the step is right), for a trainer's log and for benchmarks alike.
A step without a label must be left out before. A quantity that the data do not define is `None`, never 0: the F1 of a
class that neither occurs nor is predicted, the AUC of labels that are all equal.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpo.multimodal.errors import ConfigError, DataError
from rewards.scoring.ranking import auc, checked, share
from rewards.statistics import Bools, Floats


@dataclass(frozen=True)
class CalibrationBin:
    """Steps whose scores lie in [low, high): how many, their mean score, the share that is right."""

    low: float
    high: float
    count: int
    mean_score: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, Brier score, and the bins that hold at least one step."""

    ece: float
    brier: float
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class StepMetrics:
    """What `step_metrics` measures; see there."""

    step_accuracy: float
    f1_right: float | None
    f1_wrong: float | None
    macro_f1: float | None
    auc: float | None
    within_problem_auc: float | None
    ece: float
    brier: float

    def to_log(self, prefix: str = "") -> dict[str, float]:
        """Name → value of everything that is defined, for a trainer's log."""
        return {f"{prefix}{name}": value for name, value in asdict(self).items() if value is not None}


def step_metrics(scores: Floats, labels: Bools, problems: Sequence[Hashable], *, threshold: float = 0.5) -> StepMetrics:
    """Everything at once, over labelled steps of any number of problems.

    Args:
        scores: P(correct) of each step, in [0, 1].
        labels: whether it is right.
        problems: which problem it belongs to, e.g. its id.
        threshold: a step with a score of at least this counts as predicted right.

    Raises:
        DataError: no steps, lengths that differ, or a score outside [0, 1].

    Example:
        >>> found = step_metrics([0.9, 0.2, 0.6, 0.7], [True, False, False, True], ["a", "a", "b", "b"])
        >>> found.step_accuracy, found.f1_right, found.f1_wrong, found.auc
        (0.75, 0.8, 0.6666666666666666, 1.0)
    """
    values, truth = checked(scores, labels)
    f1_right, f1_wrong, macro = f1_scores(class_counts(values, truth, threshold=threshold))
    within = list(within_auc(values, truth, problems).values())
    found = calibration(values, truth)
    return StepMetrics(
        step_accuracy=float(((values >= threshold) == truth).mean()),
        f1_right=_defined(f1_right),
        f1_wrong=_defined(f1_wrong),
        macro_f1=_defined(macro),
        auc=auc(values, truth),
        within_problem_auc=math.fsum(within) / len(within) if within else None,
        ece=found.ece,
        brier=found.brier,
    )


def class_counts(scores: Floats, labels: Bools, *, threshold: float) -> NDArray[np.float64]:
    """Steps by truth and prediction: (right and predicted right, wrong but predicted right, right but predicted wrong,
    wrong and predicted wrong), float64 (4,). Sums of them over problems are counts again.

    Example:
        >>> class_counts([0.9, 0.8, 0.1], [True, False, False], threshold=0.5)
        array([1., 1., 0., 1.])
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    said = values >= threshold
    return np.array([(truth & said).sum(), (~truth & said).sum(), (truth & ~said).sum(), (~truth & ~said).sum()], float)


def f1_scores(
    counts: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """F1 of the right steps, F1 of the wrong steps, and their mean, the macro-F1.

    F1 of a class = 2·TP / (2·TP + FP + FN) (van Rijsbergen 1979). VisualProcessBench reports the mean of the two, since
    a PRM that calls every step right has a high F1 on right steps alone (arXiv 2503.10291 §3.3).

    Args:
        counts: (…, 4), what `class_counts` gives, or sums of such.

    Returns:
        Three arrays (…,); NaN where a class neither occurs nor is predicted.

    Example:
        >>> [round(float(f1), 4) for f1 in f1_scores(np.array([3.0, 1.0, 1.0, 1.0]))]
        [0.75, 0.5, 0.625]
    """
    both_right, called_right, called_wrong, both_wrong = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    errors = called_right + called_wrong
    right, wrong = share(2 * both_right, 2 * both_right + errors), share(2 * both_wrong, 2 * both_wrong + errors)
    return right, wrong, (right + wrong) / 2


def first_error_f1(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """ProcessBench's F1: harmonic mean of the accuracies on responses with and without an error (arXiv 2412.06559).

    Args:
        counts: (…, 4) responses: with an error, found at its very step, and not; without one, left alone, and not.

    Returns:
        (…,); 0 where both accuracies are 0, NaN where one kind of response is missing.

    Example:
        >>> first_error_f1(np.array([[1.0, 3.0, 3.0, 1.0], [0.0, 2.0, 0.0, 2.0]]))
        array([0.375, 0.   ])
    """
    found, kept = share(counts[..., 0], counts[..., :2].sum(-1)), share(counts[..., 2], counts[..., 2:].sum(-1))
    return np.where(found + kept == 0, 0.0, share(2 * found * kept, found + kept))


def within_auc(scores: Floats, labels: Bools, problems: Sequence[Hashable]) -> dict[Hashable, float]:
    """Problem → `auc` of its own steps; only problems that have right and wrong ones appear.

    The AUC over all steps also rewards knowing which problems are hard; this one does not.

    Raises:
        DataError: the three differ in length.

    Example:
        >>> within_auc([0.9, 0.1, 0.8, 0.7], [True, False, False, False], ["a", "a", "b", "b"])
        {'a': 1.0}
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if not len(problems) == truth.size == values.size:
        raise DataError(
            f"expected one score, label and problem per step, got {values.size}, {truth.size}, {len(problems)}"
        )
    members: dict[Hashable, list[int]] = {}
    for index, problem in enumerate(problems):
        members.setdefault(problem, []).append(index)
    found = {problem: auc(values[rows], truth[rows]) for problem, rows in members.items()}
    return {problem: value for problem, value in found.items() if value is not None}


def calibration(scores: Floats, labels: Bools, *, bins: int = 10) -> Calibration:
    """Whether a score of 0.7 is right in 7 of 10 cases.

    ECE = Σ_b n_b/N · |share right in b − mean score in b| (arXiv 1706.04599, Eq. 3) over `bins` bins of equal width,
    [0, 1/bins), …, [1 − 1/bins, 1], the last one closed. Unlike in that paper, the binned value is P(correct) itself,
    not the confidence of the likelier class. Brier score = mean (score − label)².

    Raises:
        ConfigError: `bins` is below 1.
        DataError: no steps, lengths that differ, or a score outside [0, 1].

    Example:
        >>> found = calibration([0.95, 0.95, 0.05, 0.05], [True, False, False, False])
        >>> round(found.ece, 4), [(b.low, b.count, b.right) for b in found.bins]
        (0.25, [(0.0, 2, 0.0), (0.9, 2, 0.5)])
    """
    if bins < 1:
        raise ConfigError(f"bins must be at least 1, got {bins}")
    values, truth = checked(scores, labels)
    edges = np.arange(bins + 1) / bins  # not linspace: 0.7 belongs to [0.7, 0.8)
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)  # (N,)
    filled = []
    for b in np.unique(place):
        inside = place == b
        mean_score, right = float(values[inside].mean()), float(truth[inside].mean())
        filled.append(CalibrationBin(float(edges[b]), float(edges[b + 1]), int(inside.sum()), mean_score, right))
    ece = math.fsum(one.count * abs(one.right - one.mean_score) for one in filled) / values.size
    return Calibration(ece, float(((values - truth) ** 2).mean()), tuple(filled))


def _defined(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
