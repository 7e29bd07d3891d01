"""Step metrics: golden values by hand, equality with scikit-learn, properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError, DataError
from rewards.prm.evaluating.metrics import (
    calibration,
    class_counts,
    f1_scores,
    first_error_f1,
    step_metrics,
    within_auc,
)
from rewards.scoring.ranking import auc, weighted_auc

sklearn_metrics = pytest.importorskip("sklearn.metrics")

# Few distinct scores, so that ties occur.
PAIRS = st.lists(st.tuples(st.sampled_from([i / 8 for i in range(9)]), st.booleans()), min_size=1, max_size=40)


def split(pairs: list[tuple[float, bool]]) -> tuple[list[float], list[bool]]:
    return [score for score, _ in pairs], [label for _, label in pairs]


# ---- golden ----


def test_counts_and_f1_by_hand() -> None:
    """Right .9 .6 .2, wrong .7 .1, threshold .5: TP 2, FP 1, FN 1, TN 1; F1+ 4/6, F1- 2/4."""
    counts = class_counts([0.9, 0.6, 0.2, 0.7, 0.1], [True, True, True, False, False], threshold=0.5)
    assert counts.tolist() == [2, 1, 1, 1]
    assert [float(f1) for f1 in f1_scores(counts)] == pytest.approx([4 / 6, 2 / 4, 7 / 12])


def test_a_score_at_the_threshold_calls_the_step_right() -> None:
    assert class_counts([0.5], [True], threshold=0.5).tolist() == [1, 0, 0, 0]


def test_a_prm_that_calls_everything_right_has_no_f1_on_wrong_steps() -> None:
    """90 right, 10 wrong, all called right: F1+ 180/190, F1- 0, macro .4737."""
    right, wrong, macro = f1_scores(np.array([90.0, 10.0, 0.0, 0.0]))
    assert (right, wrong, macro) == pytest.approx((180 / 190, 0.0, 90 / 190))


def test_what_the_data_do_not_define_is_none() -> None:
    found = step_metrics([0.9, 0.8], [True, True], ["a", "a"])
    assert (found.f1_right, found.f1_wrong, found.macro_f1) == (1.0, None, None)
    assert (found.auc, found.within_problem_auc) == (None, None)
    assert found.to_log("eval_") == {
        "eval_step_accuracy": 1.0,
        "eval_f1_right": 1.0,
        "eval_ece": pytest.approx(0.15),
        "eval_brier": pytest.approx((0.01 + 0.04) / 2),
    }
    # A wrong class that is predicted, though it does not occur, has an F1: 0.
    assert step_metrics([0.9, 0.1], [True, True], ["a", "a"]).f1_wrong == 0.0


def test_within_problem_auc_does_not_reward_knowing_hard_problems() -> None:
    """Problem a is easy and scores high, b is hard; inside each, wrong beats right: 0. Over all, 3 rights of .8 beat 3
    wrongs of .2: 9/16."""
    scores, problems = [0.8, 0.8, 0.8, 0.9, 0.1, 0.2, 0.2, 0.2], list("aaaabbbb")
    labels = [True, True, True, False, True, False, False, False]
    found = step_metrics(scores, labels, problems)
    assert within_auc(scores, labels, problems) == {"a": 0.0, "b": 0.0}
    assert (found.auc, found.within_problem_auc) == (9 / 16, 0.0)


def test_calibration_by_hand() -> None:
    """Bins [.1,.2): .15 wrong; [.7,.8): .75 right, .75 wrong, .7 right; [.9,1]: 1.0 right.
    ECE = 1/5·.15 + 3/5·|2/3 − 2.2/3| + 0 = .03 + .04."""
    found = calibration([0.15, 0.75, 0.75, 0.7, 1.0], [False, True, False, True, True])
    assert found.ece == pytest.approx(0.07)
    assert [(round(b.low, 6), b.count) for b in found.bins] == [(0.1, 1), (0.7, 3), (0.9, 1)]
    assert found.brier == pytest.approx((0.15**2 + 0.25**2 + 0.75**2 + 0.3**2) / 5)


def test_first_error_f1_by_hand() -> None:
    """3 of 4 errors found, 1 of 2 left alone: 2·.75·.5/1.25 = .6; one kind missing: undefined."""
    assert first_error_f1(np.array([3.0, 1.0, 1.0, 1.0])) == pytest.approx(0.6)
    assert np.isnan(first_error_f1(np.array([3.0, 1.0, 0.0, 0.0])))


def test_refusals() -> None:
    with pytest.raises(DataError, match="at least one"):
        step_metrics([], [], [])
    with pytest.raises(DataError, match=r"\(2,\) and \(1,\)"):
        calibration([0.5, 0.5], [True])
    with pytest.raises(DataError, match=r"in \[0, 1\], got 0.5 to 1.5"):
        calibration([0.5, 1.5], [True, False])
    with pytest.raises(DataError, match="problem per step, got 2, 2, 1"):
        within_auc([0.5, 0.5], [True, False], ["a"])
    with pytest.raises(ConfigError, match="bins"):
        calibration([0.5], [True], bins=0)


# ---- against scikit-learn ----


@given(PAIRS, st.sampled_from([i / 16 for i in range(17)]))
def test_f1_equals_sklearn(pairs: list[tuple[float, bool]], threshold: float) -> None:
    scores, labels = split(pairs)
    predicted = [score >= threshold for score in scores]
    found = f1_scores(class_counts(scores, labels, threshold=threshold))
    expected = sklearn_metrics.f1_score(labels, predicted, labels=[True, False], average=None, zero_division=np.nan)
    np.testing.assert_allclose(found[:2], expected)
    if np.isfinite(expected).all():
        assert float(found[2]) == pytest.approx(sklearn_metrics.f1_score(labels, predicted, average="macro"))


@given(PAIRS)
def test_auc_equals_sklearn(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = split(pairs)
    if len(set(labels)) < 2:
        assert auc(scores, labels) is None
    else:
        assert auc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores))


@given(PAIRS, st.integers(0, 2**32 - 1))
def test_weighted_auc_is_the_auc_of_repeated_steps(pairs: list[tuple[float, bool]], seed: int) -> None:
    scores, labels = map(np.array, split(pairs))
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(scores))).astype(float)
    found = weighted_auc(scores, labels, weights)
    for row, value in zip(weights.astype(int), found, strict=True):
        expected = auc(np.repeat(scores, row), np.repeat(labels, row))
        assert math.isnan(value) if expected is None else value == pytest.approx(expected)


@given(PAIRS)
def test_brier_and_bins_equal_sklearn(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = split(pairs)
    found = calibration(scores, labels, bins=5)
    assert found.brier == pytest.approx(sklearn_metrics.brier_score_loss(labels, scores, pos_label=True))
    assert sum(one.count for one in found.bins) == len(scores)
    assert sum(one.count * one.right for one in found.bins) == pytest.approx(sum(labels))


# ---- properties ----


@given(PAIRS)
def test_mirrored_scores_and_labels_swap_the_classes(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = map(np.array, split(pairs))
    right, wrong, macro = f1_scores(class_counts(scores, labels, threshold=0.55))
    mirrored = f1_scores(class_counts(1 - scores, ~labels, threshold=0.45))
    np.testing.assert_allclose([wrong, right, macro], mirrored)
    found = calibration(scores, labels, bins=1)
    assert calibration(1 - scores, ~labels, bins=1).ece == pytest.approx(found.ece)


@given(PAIRS)
def test_auc_sees_only_the_order(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = map(np.array, split(pairs))
    value = auc(scores, labels)
    assert auc(scores**3, labels) == value
    assert auc(-scores, ~labels) == (value if value is None else pytest.approx(value))


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_the_share_of_right_steps_as_the_score_is_calibrated(labels: list[bool]) -> None:
    share = sum(labels) / len(labels)
    assert calibration([share] * len(labels), labels).ece == pytest.approx(0.0, abs=1e-12)
