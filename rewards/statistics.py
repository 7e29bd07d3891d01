"""Statistics that the tables, the curves and the PRM metrics share: means, differences and shares with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mpo.multimodal.errors import ConfigError, DataError

_BLOCK = 100  # resamples at a time: the weights of 3,000 problems take 2.4 MB
DRAWS_AT_A_TIME = 1 << 22  # numbers that the bootstrap holds, besides their places
ENOUGH = 50  # problems: with fewer, a percentile bootstrap covers less than it promises
EXACT = 12  # differences other than 0 of which all 2^12 sign flips fit into the resamples
ROUNDING = 1e-9  # values that differ by less are equal
_Z = 1.959964  # 95 % of a normal distribution

Shown = Literal["holds", "reversed", "not shown"]
Bounds = tuple[float, float]
Floats = Sequence[float] | NDArray[np.float64]
Bools = Sequence[bool] | NDArray[np.bool_]
SHARE: Bounds = (0.0, 1.0)
CHANGE: Bounds = (-1.0, 1.0)  # of two shares


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` problems with a confidence interval, low ≤ mean ≤ high up to resampling noise."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired mean difference; `p` is the two-sided p-value of the sign-flip test that the two sides are alike."""

    p: float

    @property
    def verdict(self) -> Shown:
        """Whether a difference above 0 is shown: the 95 % interval and the test must agree.

        With five problems the smallest possible p is 2 / 2⁵ = 0.0625, so five problems never show a difference.
        """
        return verdict_of(self.low, self.high, self.p)


def verdict_of(low: float, high: float, p: float) -> Shown:
    """`Difference.verdict` of numbers that come from a file.

    Example:
        >>> verdict_of(0.1, 0.3, 0.01), verdict_of(0.1, 0.3, 0.0625), verdict_of(-0.3, -0.1, 0.01)
        ('holds', 'not shown', 'reversed')
    """
    if p > 0.05 or low <= 0 <= high:
        return "not shown"
    return "holds" if low > 0 else "reversed"


def mean_with_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 9999, bounds: Bounds = SHARE
) -> Estimate:
    """Mean over problems with an interval that keeps its promise for few problems and for constant values too.

    Problems are the independent units: average the rollouts of a problem before calling this. From `ENOUGH` problems on
    it is a percentile bootstrap (fixed seed). With fewer, or if all values are equal, it is a Wilson interval
    (`wilson_interval`) of the mean's place between the bounds: a mean of values in [0, 1] has at most the variance of
    a share. Values that vary less count as more draws, with Student's t instead of the normal quantile (Dean and
    Pagano 2015, doi 10.1093/jssam/smv024). Values that are equal, but neither bound, show no variance at all: the
    interval is what `_constant` says.

    Args:
        values: one finite number per problem, at least one.
        confidence: in (0, 1).
        resamples: bootstrap resamples.
        bounds: the least and the largest value that a problem can have.

    Raises:
        ConfigError: `confidence` is outside (0, 1).
        DataError: no values, or one that is not finite or outside the bounds.

    Example:
        >>> found = mean_with_interval([1.0] * 10)
        >>> found.mean, round(found.low, 2), found.high
        (1.0, 0.72, 1.0)
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence must be in (0, 1), got {confidence}")
    array: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise DataError(f"expected a flat, non-empty list of finite numbers, one per problem, got shape {array.shape}")
    bottom, top = bounds
    if array.min() < bottom - ROUNDING or array.max() > top + ROUNDING:
        raise DataError(f"values must be in [{bottom}, {top}], got {array.min()} to {array.max()}; give other `bounds`")
    spread = float(np.ptp(array)) > ROUNDING
    if spread and array.size >= ENOUGH:
        interval = stats.bootstrap(
            (array,),
            np.mean,
            confidence_level=confidence,
            n_resamples=resamples,
            batch=max(1, min(500, DRAWS_AT_A_TIME // array.size)),  # which changes no number
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    else:
        places = np.clip((array - bottom) / (top - bottom), 0.0, 1.0)
        low, high = (bottom + (top - bottom) * end for end in _few(places, spread=spread, confidence=confidence))
    return Estimate(float(array.mean()), low, high, array.size)


def _few(places: NDArray[np.float64], *, spread: bool, confidence: float) -> tuple[float, float]:
    """The interval of a mean of values in [0, 1], of few problems or without spread."""
    n, mean = places.size, float(places.mean())
    if bool(np.isin(places, (0.0, 1.0)).all()):
        return wilson_interval(mean, n, z=float(stats.norm.ppf((1 + confidence) / 2)))
    if not spread:
        return _constant(mean, n, confidence)
    draws = mean * (1 - mean) / (float(places.var(ddof=1)) / n)  # of a share with the same standard error
    return wilson_interval(mean, draws, z=float(stats.t.ppf((1 + confidence) / 2, n - 1)))


def _constant(value: float, n: int, confidence: float) -> tuple[float, float]:
    """What n equal values in [0, 1] say of their mean, exactly.

    If more than q = 1 − (1 − confidence)^(1/n) of all problems had another value, n equal ones would be less probable
    than 1 − confidence. Those others may lie at either bound.
    """
    others = 1 - (1 - confidence) ** (1 / n)
    return value * (1 - others), value + others * (1 - value)


def statistic_with_interval(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    n: int,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    bounds: Bounds = SHARE,
) -> Estimate | None:
    """Any statistic of n problems with a percentile bootstrap interval (fixed seed), e.g. an F1 of pooled counts.

    A resample is a weight per problem: how often it was drawn. A ratio of sums is therefore two matrix products, and
    the statistic sees all resamples of a block at once. If it is the same in all of them, the interval is a Wilson
    interval of its place between the bounds, with the problems as draws.

    Args:
        statistic: weights (R, n), float64, each row summing to n → values (R,); NaN where it is undefined.
        n: number of problems, at least 1.
        confidence: in (0, 1).
        resamples: bootstrap resamples; those in which the statistic is undefined are left out.
        bounds: the least and the largest value of the statistic.

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
    low, high = (float(end) for end in np.nanpercentile(drawn, [tail, 100 - tail]))
    if float(np.nanmax(drawn) - np.nanmin(drawn)) <= ROUNDING:
        width = bounds[1] - bounds[0]
        low, high = (bounds[0] + width * end for end in wilson_interval((mean - bounds[0]) / width, n))
    return Estimate(mean, low, high, n)


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95, bounds: Bounds = CHANGE
) -> Difference:
    """Mean of a − b over the same problems, with an interval and a test; `verdict` needs both.

    Args:
        a, b: a value per problem, in the same order.
        confidence: of the interval, in (0, 1).
        bounds: the least and the largest difference that a problem can have.

    Raises:
        DataError: the lists differ in length, or a difference is outside the bounds.

    Example:
        >>> found = paired_difference([1.0] * 6, [0.0] * 6)
        >>> found.mean, round(found.low, 2), found.p, found.verdict
        (1.0, 0.22, 0.03125, 'holds')
    """
    if len(a) != len(b):
        raise DataError(f"a paired difference needs the same problems on both sides, got {len(a)} and {len(b)} values")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    estimate = mean_with_interval(difference.tolist(), confidence=confidence, bounds=bounds)
    return Difference(estimate.mean, estimate.low, estimate.high, estimate.n, sign_flip_test(difference))


def sign_flip_test(differences: Floats) -> float:
    """Two-sided p-value of a mean difference of 0, if each problem's difference is as probable with the other sign.

    Of differences of −1, 0 and 1 it is the exact McNemar test (`mcnemar_test`). With at most `EXACT` differences
    other than 0 all sign flips are counted, with fewer than `ENOUGH` 9,999 random ones (fixed seed), and with more the
    sum is compared with a normal distribution of its variance under flips, Σ d².

    Example:
        >>> sign_flip_test([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
        0.0625
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[np.abs(values) > ROUNDING]  # a flip changes nothing of a 0
    if values.size < 2:
        return 1.0
    if values.size >= ENOUGH:
        return float(2 * stats.norm.sf(abs(values.sum()) / math.sqrt(float((values**2).sum()))))
    resamples = 2**EXACT if values.size <= EXACT else 9999
    flips = {"permutation_type": "samples", "n_resamples": resamples, "rng": np.random.default_rng(0)}
    return float(stats.permutation_test((values,), np.sum, vectorized=True, **flips).pvalue)


def mean_of_means(columns: Sequence[Floats], *, confidence: float = 0.95, bounds: Bounds = SHARE) -> Estimate:
    """The mean over data sets of the mean within each, with an interval over the problems of every data set.

    The data sets are the ones that they are: only their problems are drawn. Each has the interval of
    `mean_with_interval`, and the distances to the ends add in squares (MOVER; Zou and Donner 2008,
    https://doi.org/10.1002/sim.3095). For differences, give differences of the same problems and `bounds=CHANGE`.

    Args:
        columns: one data set each, with at least one finite number per problem.
        confidence: in (0, 1).
        bounds: the least and the largest value that a problem can have.

    Returns:
        `n` is the number of problems of all data sets.

    Raises:
        DataError: there is no column, or one is empty or holds a value outside the bounds.

    Example:
        >>> found = mean_of_means([[1.0] * 20, [0.0, 1.0] * 10])
        >>> found.mean, round(found.low, 2), round(found.high, 2), found.n
        (0.75, 0.62, 0.85, 40)
    """
    if not columns:
        raise DataError("expected the values of at least one data set, got none")
    found = [mean_with_interval(list(column), confidence=confidence, bounds=bounds) for column in columns]
    mean = math.fsum(one.mean for one in found) / len(found)
    below = math.sqrt(math.fsum((one.mean - one.low) ** 2 for one in found)) / len(found)
    above = math.sqrt(math.fsum((one.high - one.mean) ** 2 for one in found)) / len(found)
    return Estimate(mean, mean - below, mean + above, sum(one.n for one in found))


def mcnemar_test(fixed: int, broken: int) -> float:
    """Exact two-sided p-value of McNemar's test: as many problems fixed as broken, but for chance.

    Example:
        >>> mcnemar_test(6, 0), mcnemar_test(3, 3)
        (0.03125, 1.0)
    """
    return float(stats.binomtest(fixed, fixed + broken, 0.5).pvalue) if fixed + broken else 1.0


def wilson_interval(share: float, n: float, *, z: float = _Z) -> tuple[float, float]:
    """Interval of a share of n independent draws (Wilson 1927): honest for few draws and for shares of 0 and 1.

    Args:
        share: in [0, 1].
        n: draws, or as many as the share's standard error is worth.
        z: quantile of the distribution; 95 % of a normal one by default.

    Example:
        >>> [round(end, 3) for end in wilson_interval(1.0, 3)], wilson_interval(0.5, 0)
        ([0.439, 1.0], (0.0, 1.0))
    """
    if n == 0:
        return 0.0, 1.0
    middle = share + z**2 / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = (round((middle + sign * spread) / (1 + z**2 / n), 12) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)
