"""Statistics that the tables, the curves and the PRM metrics share: means with intervals, shares, ranking (AUC)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.stats import rankdata

from mpo.multimodal.errors import ConfigError, DataError

_BLOCK = 100  # resamples at a time: the weights of 3,000 problems take 2.4 MB


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` problems with a bootstrap confidence interval, low ≤ mean ≤ high up to resampling noise."""

    mean: float
    low: float
    high: float
    n: int


def mean_with_interval(values: Sequence[float], *, confidence: float = 0.95, resamples: int = 9999) -> Estimate:
    """Mean over problems with a percentile bootstrap interval (fixed seed).

    Problems are the independent units: average the rollouts of a problem before calling this.

    Args:
        values: one finite number per problem, at least one.
        confidence: in (0, 1).
        resamples: bootstrap resamples.

    Returns:
        For constant input, a single value included, low = mean = high: it holds no spread to resample.

    Raises:
        ConfigError: `confidence` is outside (0, 1).
        DataError: no values, or one that is not finite.

    Example:
        >>> mean_with_interval([0.5, 0.5, 0.5])
        Estimate(mean=0.5, low=0.5, high=0.5, n=3)
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence must be in (0, 1), got {confidence}")
    array: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise DataError(f"expected a flat, non-empty list of finite numbers, one per problem, got shape {array.shape}")
    if (array == array[0]).all():
        constant = float(array[0])
        return Estimate(constant, constant, constant, array.size)
    interval = stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(float(array.mean()), float(interval.low), float(interval.high), array.size)


def statistic_with_interval(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    n: int,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Estimate | None:
    """Any statistic of n problems with a percentile bootstrap interval (fixed seed), e.g. an F1 of pooled counts.

    A resample is a weight per problem: how often it was drawn. A ratio of sums is therefore two matrix products, and
    the statistic sees all resamples of a block at once.

    Args:
        statistic: weights (R, n), float64, each row summing to n → values (R,); NaN where it is undefined.
        n: number of problems, at least 1.
        confidence: in (0, 1).
        resamples: bootstrap resamples; those in which the statistic is undefined are left out.

    Returns:
        `None` where the statistic of all the problems is undefined.

    Raises:
        ConfigError: `confidence` is outside (0, 1), or `n` is below 1.

    Example:
        >>> right, steps = np.array([1.0, 0.0, 4.0]), np.array([2.0, 2.0, 4.0])  # a problem each
        >>> estimate = statistic_with_interval(lambda weights: weights @ right / (weights @ steps), 3)
        >>> estimate.mean, 0.0 <= estimate.low < 0.625 < estimate.high <= 1.0
        (0.625, True)
    """
    if not 0.0 < confidence < 1.0 or n < 1:
        raise ConfigError(f"expected confidence in (0, 1) and at least one problem, got {confidence} and {n}")
    mean = float(statistic(np.ones((1, n)))[0])
    if not math.isfinite(mean):
        return None
    rng = np.random.default_rng(0)
    sizes = [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]
    drawn = np.concatenate([statistic(rng.multinomial(n, [1 / n] * n, size).astype(np.float64)) for size in sizes])
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return Estimate(mean, float(low), float(high), n)


def paired_difference(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Mean of a − b over the same problems; an interval without 0 means the difference is not chance.

    Raises:
        DataError: the lists differ in length.

    Example:
        >>> paired_difference([1.0, 1.0], [0.5, 0.5]).low
        0.5
    """
    if len(a) != len(b):
        raise DataError(f"a paired difference needs the same problems on both sides, got {len(a)} and {len(b)} values")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return mean_with_interval(difference.tolist(), confidence=confidence)


def mean_of_means(columns: Sequence[Sequence[float]], *, confidence: float = 0.95, resamples: int = 2000) -> Estimate:
    """The mean over data sets of the mean within each, with an interval over the problems of every data set.

    The data sets are the ones that they are: only their problems are resampled, each data set's by themselves. For
    differences, give differences of the same problems.

    Args:
        columns: one data set each, with at least one finite number per problem.
        confidence: in (0, 1).
        resamples: bootstrap resamples.

    Returns:
        `n` is the number of problems of all data sets.

    Raises:
        DataError: there is no column, or one is empty or not finite.

    Example:
        >>> mean_of_means([[1.0, 1.0, 1.0], [0.5]])
        Estimate(mean=0.75, low=0.75, high=0.75, n=4)
    """
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if not arrays or any(array.ndim != 1 or not array.size or not np.isfinite(array).all() for array in arrays):
        raise DataError(f"expected lists of finite numbers, got lengths {[len(column) for column in columns]}")
    rng = np.random.default_rng(0)
    drawn = np.zeros(resamples)
    for array in arrays:
        for start in range(0, resamples, _BLOCK):
            picks = rng.integers(0, array.size, (min(_BLOCK, resamples - start), array.size))
            drawn[start : start + len(picks)] += array[picks].mean(1) / len(arrays)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail]).round(12)
    mean = math.fsum(float(array.mean()) for array in arrays) / len(arrays)
    return Estimate(mean, float(low), float(high), sum(array.size for array in arrays))


_Z = 1.959964  # 95 % of a normal distribution


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n independent draws (Wilson 1927): honest for few draws and for shares of 0 and 1.

    Example:
        >>> [round(end, 3) for end in wilson_interval(1.0, 3)], wilson_interval(0.5, 0)
        ([0.439, 1.0], (0.0, 1.0))
    """
    if n == 0:
        return 0.0, 1.0
    middle = share + _Z**2 / (2 * n)
    spread = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    low, high = ((middle + sign * spread) / (1 + _Z**2 / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


Floats = Sequence[float] | NDArray[np.float64]


Bools = Sequence[bool] | NDArray[np.bool_]


def share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(part / whole)


def auc(scores: Floats, labels: Bools) -> float | None:
    """P(score of a right one > score of a wrong one), ties half; `None` unless there are right and wrong ones.

    Mann-Whitney U from ranks: (Σ ranks of the right − R(R+1)/2) / (R·W). Scores may be any finite numbers.

    Example:
        >>> auc([0.5, 1.0, 0.5, 0.25], [True, True, False, False])
        0.875
    """
    truth = np.asarray(labels, dtype=bool)
    right = int(truth.sum())
    wrong = truth.size - right
    if not right or not wrong:
        return None
    ranks = rankdata(np.asarray(scores, dtype=np.float64))  # (N,), ties averaged
    return float((ranks[truth].sum() - right * (right + 1) / 2) / (right * wrong))


def weighted_auc(scores: Floats, labels: Bools, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """`auc` in which step i counts `weights[:, i]` times: all resamples of a bootstrap at once.

    Args:
        scores: (N,) finite.
        labels: (N,).
        weights: (R, N), at least 0.

    Returns:
        (R,); NaN where a class has no weight.

    Example:
        >>> weighted_auc([0.9, 0.5, 0.1], [True, False, True], np.array([[1.0, 1.0, 1.0], [3.0, 1.0, 1.0]]))
        array([0.5 , 0.75])
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))  # first of each group of equal scores
    sorted_weights = weights[:, order]
    right = np.add.reduceat(sorted_weights * truth[order], starts, axis=1)  # (R, distinct scores)
    wrong = np.add.reduceat(sorted_weights * ~truth[order], starts, axis=1)
    below = np.cumsum(wrong, axis=1) - wrong  # wrong ones with a lower score
    return share((right * (below + wrong / 2)).sum(1), right.sum(1) * wrong.sum(1))


def checked(scores: Floats, labels: Bools) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores and labels as arrays.

    Raises:
        DataError: no steps, lengths that differ, or a score outside [0, 1].
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if values.ndim != 1 or values.shape != truth.shape or not values.size:
        raise DataError(
            f"expected one score and one label per step, at least one, got {values.shape} and {truth.shape}"
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"step scores must be in [0, 1], got {values.min()} to {values.max()}")
    return values, truth
