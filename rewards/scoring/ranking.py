"""Whether scores rank right ones above wrong ones: the area under the ROC curve."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mpo.multimodal.errors import DataError
from rewards.statistics import Bools, Floats


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
