"""How accuracy grows with the number of samples: pass@k, best@k and any selector at k, for every k ≤ N.

All are expectations over a uniformly random k-subset of a problem's N rollouts. A selector that ranks the
rollouts once and takes the best-ranked of the subset has a closed form (`ranked_at_k`), so best-of-k and the
blind rulers need no resampling. Votes depend on the whole subset: `selected_at_k` enumerates or samples.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mpo.multimodal.errors import ConfigError, DataError
from rewards.selection import AnswerOf, GroupSelector
from rewards.types import RolloutGroup, Verdict

_BLOCK = 100  # resamples at a time: the weights of 3,000 problems take 2.4 MB


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` problems with a bootstrap confidence interval, low ≤ mean ≤ high up to resampling noise."""

    mean: float
    low: float
    high: float
    n: int


def correctness_of(group: RolloutGroup) -> tuple[bool, ...]:
    """Which rollouts are verified correct. Timeouts and verifier errors count as not correct: report their number.

    Raises:
        DataError: the group is empty or a rollout has not been verified.
    """
    if not group.rollouts or any(rollout.verdict is None for rollout in group.rollouts):
        raise DataError(
            f"problem {group.problem.id!r}: expected verified rollouts, at least one; run the verifier first"
        )
    return tuple(rollout.verdict is Verdict.CORRECT for rollout in group.rollouts)


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """P(at least one of k samples is correct), unbiased: 1 − C(n−c, k) / C(n, k) (arXiv 2107.03374, Eq. 1).

    Args:
        correct: one truth value a rollout, n of them.
        k: 1 ≤ k ≤ n.

    Returns:
        A probability, computed in integers up to the last division.

    Raises:
        ConfigError: k is outside 1..n.

    Example:
        >>> [pass_at_k([True, False, False, False], k) for k in (1, 2, 3, 4)]
        [0.25, 0.5, 0.75, 1.0]
    """
    n, wrong = len(correct), len(correct) - sum(map(bool, correct))
    subsets = _subset_count(n, k)
    return (subsets - math.comb(wrong, k)) / subsets


def ranked_at_k(order: Sequence[int], correct: Sequence[bool], k: int) -> float:
    """P(the best-ranked of k random samples is correct).

    The i-th ranked rollout (from 0) is the best of a k-subset iff the other k−1 come from the n−1−i ranked
    below it: Σ_i C(n−1−i, k−1) · correct[order[i]] / C(n, k).

    Args:
        order: a permutation of 0..n-1, best first.
        correct: one truth value a rollout.
        k: 1 ≤ k ≤ n.

    Raises:
        ConfigError: k is outside 1..n.
        DataError: `order` is not a permutation of the rollouts' indexes.

    Example:
        >>> ranked_at_k([1, 0, 2], [False, True, False], 2)  # subsets {0,1} {1,2} pick 1, {0,2} picks 0
        0.6666666666666666
    """
    n = len(correct)
    if sorted(order) != list(range(n)):
        raise DataError(f"order must be a permutation of 0..{n - 1}, got {list(order)}")
    subsets = _subset_count(n, k)
    return sum(math.comb(n - 1 - rank, k - 1) for rank, index in enumerate(order) if correct[index]) / subsets


def best_at_k(rewards: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """Expected accuracy of best-of-k by reward; ties go to the lowest index, as in `selection.best_of_n`.

    Args:
        rewards: one finite reward a rollout.
        correct: one truth value a rollout.
        k: 1 ≤ k ≤ n.

    Raises:
        ConfigError: k is outside 1..n.
        DataError: lengths differ or a reward is not finite.

    Example:
        >>> [best_at_k([0.9, 0.5, 0.1], [True, False, True], k) for k in (1, 2, 3)]
        [0.6666666666666666, 0.6666666666666666, 1.0]
    """
    if len(rewards) != len(correct) or not all(math.isfinite(reward) for reward in rewards):
        raise DataError(f"expected {len(correct)} finite rewards, got {list(rewards)}")
    return ranked_at_k(ranking(rewards), correct, k)


def ranking(values: Sequence[float]) -> list[int]:
    """Indexes sorted by falling value, ties by rising index; `values` may be rewards, lengths, −lengths, −indexes.

    Example:
        >>> ranking([0.5, 0.9, 0.5])
        [1, 0, 2]
    """
    return sorted(range(len(values)), key=lambda index: (-values[index], index))


def selected_at_k(
    group: RolloutGroup, select: GroupSelector, k: int, *, answer_of: AnswerOf, max_subsets: int = 256
) -> float:
    """Expected accuracy of any selector given k random samples, for votes and others without a closed form.

    Args:
        group: verified rollouts, n of them (and scored, if the selector reads rewards).
        select: a row of `selection.SELECTORS`.
        k: 1 ≤ k ≤ n.
        answer_of: text → canonical answer; called once a distinct text.
        max_subsets: with at most so many subsets all are taken and the result is exact; with more, so many
            are drawn, seeded by problem id and k (standard error ≤ 0.5 / √max_subsets a problem).

    Raises:
        ConfigError: k is outside 1..n, or `max_subsets` below 1.
        DataError: a rollout has not been verified.
    """
    correct = correctness_of(group)
    if max_subsets < 1:
        raise ConfigError(f"max_subsets must be at least 1, got {max_subsets}")
    texts = {rollout.completion.text for rollout in group.rollouts}
    answers = {text: answer_of(text) for text in texts}
    hits = []
    for subset in _subsets(group.problem.id, len(correct), k, max_subsets):
        picked = select(RolloutGroup(group.problem, tuple(group.rollouts[i] for i in subset)), answers.__getitem__)
        hits.append(correct[subset[picked]])
    return sum(hits) / len(hits)


def mean_with_interval(values: Sequence[float], *, confidence: float = 0.95, resamples: int = 9999) -> Estimate:
    """Mean over problems with a percentile bootstrap interval (fixed seed).

    Problems are the independent units: average the rollouts of a problem before calling this.

    Args:
        values: one finite number a problem, at least one.
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
        raise DataError(f"expected a flat, non-empty list of finite numbers, one a problem, got shape {array.shape}")
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

    A resample is a weight a problem: how often it was drawn. A ratio of sums is therefore two matrix products, and the
    statistic sees all resamples of a block at once.

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


def _subset_count(n: int, k: int) -> int:
    if not 1 <= k <= n:
        raise ConfigError(f"k must be between 1 and the number of rollouts, {n}; got {k}")
    return math.comb(n, k)


def _subsets(problem_id: str, n: int, k: int, max_subsets: int) -> Iterable[tuple[int, ...]]:
    if _subset_count(n, k) <= max_subsets:
        return itertools.combinations(range(n), k)
    digest = hashlib.sha256(f"{problem_id}\x00{k}".encode("utf-8", "backslashreplace")).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    draws = [np.sort(rng.choice(n, size=k, replace=False)) for _ in range(max_subsets)]
    return (tuple(draw.tolist()) for draw in draws)
