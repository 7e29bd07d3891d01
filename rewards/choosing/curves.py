"""How accuracy grows with the number of samples: pass@k, best@k and votes at k, for every k ≤ N.

All are expectations over a uniformly random k-subset of a problem's N rollouts. A selector that ranks the
rollouts once and takes the best-ranked of the subset has a closed form (`ranked_at_k`), so best-of-k and the
blind rulers need no resampling. Votes depend on the whole subset: `vote_at_k` takes all subsets or samples them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from mpo.multimodal.errors import ConfigError, DataError
from rewards.kept.keys import seed_of

MAX_SUBSETS = 128  # a vote at k is exact up to this many k-subsets, and sampled with a seed beyond


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """P(at least one of k samples is correct), unbiased: 1 − C(n−c, k) / C(n, k) (arXiv 2107.03374, Eq. 1).

    Args:
        correct: one truth value per rollout, n of them.
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
        correct: one truth value per rollout.
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
        rewards: one finite reward per rollout.
        correct: one truth value per rollout.
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


def vote_at_k(
    answers: Sequence[Hashable | None],
    weights: Sequence[float],
    correct: Sequence[bool],
    k: int,
    *,
    seed: str,
    max_subsets: int = MAX_SUBSETS,
) -> float:
    """Expected accuracy of a (weighted) vote among k random samples, all subsets at once.

    The answer with the largest sum of weights wins and its first sample is the choice. Ties go to the answer that
    appeared first; where nobody votes, the first sample of the subset is the choice.

    Args:
        answers: one key per rollout, equal for answers that count as the same; `None` does not vote.
        weights: one finite weight per rollout; all 1 is self-consistency (arXiv 2203.11171).
        correct: one truth value per rollout.
        k: 1 ≤ k ≤ n.
        seed: names the draw of subsets where not all are taken; the problem's id, so that selectors see the same ones.
        max_subsets: with at most this many subsets all are taken and the result is exact; with more, this many are
            drawn (standard error ≤ 0.5 / √max_subsets per problem).

    Raises:
        ConfigError: k is outside 1..n, or `max_subsets` is below 1.
        DataError: the lists differ in length.

    Example:
        >>> vote_at_k(["7", "7", "9"], [1.0, 1.0, 1.0], [True, True, False], 3, seed="p")
        1.0
        >>> vote_at_k(["7", "7", "9"], [0.1, 0.1, 0.9], [True, True, False], 3, seed="p")
        0.0
    """
    if not len(answers) == len(weights) == len(correct):
        raise DataError(
            f"expected as many answers, weights and truth values, got {len(answers)}, {len(weights)}, {len(correct)}"
        )
    right = np.array(correct, dtype=bool)
    names = list(dict.fromkeys(answer for answer in answers if answer is not None))
    subsets = _subsets(seed, len(answers), k, max_subsets)  # (S, k), each row rising
    if not names:
        return float(right[subsets[:, 0]].mean())
    votes = np.array([[answer == name for name in names] for answer in answers])[subsets]  # (S, k, A)
    totals = (votes * np.asarray(weights)[subsets][:, :, None]).sum(1).round(12)  # (S, A); rounded: ties are ties
    appears = np.where(votes.any(1), votes.argmax(1), k)  # (S, A): position of each answer's first voter, k if absent
    totals[appears == k] = -np.inf
    best = totals == totals.max(1, keepdims=True)  # (S, A)
    picked = np.where(best, appears, k).min(1)  # (S,); k where nobody votes
    picked[picked == k] = 0
    return float(right[np.take_along_axis(subsets, picked[:, None], 1)[:, 0]].mean())


def _subset_count(n: int, k: int) -> int:
    if not 1 <= k <= n:
        raise ConfigError(f"k must be between 1 and the number of rollouts, {n}; got {k}")
    return math.comb(n, k)


def _subsets(seed: str, n: int, k: int, max_subsets: int) -> NDArray[np.int64]:
    """All k-subsets of 0..n-1 if they are at most `max_subsets`, else that many random ones; (S, k), rows rising."""
    if max_subsets < 1:
        raise ConfigError(f"max_subsets must be at least 1, got {max_subsets}")
    if _subset_count(n, k) <= max_subsets:
        return np.array(list(itertools.combinations(range(n), k)))
    rng = np.random.default_rng(seed_of(seed, k, bits=128))
    return np.sort(rng.random((max_subsets, n)).argsort(1)[:, :k], axis=1)
