"""Intervals, verdicts and tests: golden values, coverage by simulation, agreement with scipy."""

import warnings

import numpy as np
import pytest
from scipy import stats

import rewards.statistics
from mpo.multimodal.errors import DataError
from rewards.statistics import (
    CHANGE,
    Difference,
    mcnemar_test,
    mean_with_interval,
    paired_difference,
    sign_flip_test,
    statistic_with_interval,
    wilson_interval,
)


def test_interval_is_close_to_the_normal_one_and_deterministic():
    """0/1 outcomes, n = 400, p = 0.25: standard error √(.25·.75/400) = 0.02165, so 0.25 ± 0.0424."""
    values = [1.0] * 100 + [0.0] * 300
    estimate = mean_with_interval(values)
    assert (estimate.mean, estimate.n) == (0.25, 400)
    assert (estimate.low, estimate.high) == pytest.approx((0.2076, 0.2924), abs=0.005)
    assert mean_with_interval(values) == estimate
    narrow = mean_with_interval(values, confidence=0.5)
    assert estimate.low < narrow.low < narrow.high < estimate.high


SIMULATIONS = 1000  # of a true coverage of 0.95 the frequency has standard deviation 0.007


@pytest.mark.parametrize("outcomes", ["correctness", "paired differences"])
def test_intervals_cover_the_truth_95_percent_of_the_time(outcomes):
    """100 problems, 1,000 samples of them with a fixed seed: 0/1 with p = 0.3, or −1, 0, 1 with mean 0.1."""
    values, probabilities = ([0.0, 1.0], [0.7, 0.3]) if outcomes == "correctness" else ([-1, 0, 1], [0.1, 0.7, 0.2])
    truth = float(np.dot(values, probabilities))
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(SIMULATIONS):
        drawn = rng.choice(values, 100, p=probabilities).tolist()
        estimate = mean_with_interval(drawn, resamples=500, bounds=CHANGE)
        covered += estimate.low <= truth <= estimate.high
    assert 0.93 <= covered / SIMULATIONS <= 0.97


def test_the_interval_of_a_ratio_covers_the_truth_95_percent_of_the_time():
    """Right steps of all steps, 100 problems of 1 to 9 steps with one difficulty each: 2/3 in the mean."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(SIMULATIONS):
        steps = rng.integers(1, 10, 100).astype(float)
        right = rng.binomial(steps.astype(int), rng.beta(4, 2, 100)).astype(float)
        found = statistic_with_interval(lambda w, r=right, s=steps: w @ r / (w @ s), 100, resamples=500)
        covered += found.low <= 2 / 3 <= found.high
    assert 0.93 <= covered / SIMULATIONS <= 0.97


def test_pairing_removes_the_spread_between_problems():
    rng = np.random.default_rng(0)
    difficulty = rng.random(200)
    difficulty *= 0.98
    better = difficulty + 0.02
    estimate = paired_difference(better.tolist(), difficulty.tolist())
    assert 0 < estimate.low < 0.02 < estimate.high < 0.04
    unpaired = mean_with_interval(better.tolist())
    assert unpaired.high - unpaired.low > 0.05


def test_constant_shares_have_wilson_intervals():
    """10 of 10 right says [0.72, 1]; 0 of 20 says [0, 0.16]: (z²/n) / (1 + z²/n) with z² = 3.8415."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ten, none = mean_with_interval([1.0] * 10), mean_with_interval([0.0] * 20)
    assert (ten.low, ten.high) == (pytest.approx(1 - 0.38415 / 1.38415, abs=1e-4), 1.0)
    assert (none.low, none.high) == (0.0, pytest.approx(0.192073 / 1.192073, abs=1e-4))
    many = mean_with_interval([1.0] * 500)
    assert (many.low, many.high) == pytest.approx(wilson_interval(1.0, 500))
    few = mean_with_interval([1.0, 0.0, 0.0])
    assert (few.low, few.high) == pytest.approx(wilson_interval(1 / 3, 3), abs=1e-6)


def test_equal_values_bound_the_share_of_others():
    """At most 1 − 0.05^(1/20) = 13.9 % of all problems differ, or 20 equal ones would be a chance below 5 %."""
    equal = paired_difference([0.5] * 20, [0.5] * 20)
    assert (equal.low, equal.high) == pytest.approx((-0.1391, 0.1391), abs=1e-4)
    assert (equal.p, equal.verdict) == (1.0, "not shown")
    noisy = paired_difference([0.3, 0.1 + 0.2], [0.1, 0.1 + 1e-15])  # equal but for rounding
    assert noisy.high - noisy.low > 1
    half = mean_with_interval([0.5] * 5)
    assert (half.low, half.high) == pytest.approx((0.5 * 0.05**0.2, 1 - 0.5 * 0.05**0.2))


def test_a_statistic_without_spread_is_no_point():
    found = statistic_with_interval(lambda weights: np.ones(len(weights)), 10)
    assert (found.low, found.high) == wilson_interval(1.0, 10)
    change = statistic_with_interval(lambda weights: np.zeros(len(weights)), 10, bounds=CHANGE)
    assert change.low == pytest.approx(-change.high)
    assert change.low < -0.4


def test_values_outside_the_bounds_are_refused():
    with pytest.raises(DataError, match=r"in \[0.0, 1.0\], got -0.1 to 0.2; give other `bounds`"):
        mean_with_interval([-0.1, 0.2])
    assert mean_with_interval([2.0, 6.0, 3.0], bounds=(0, 16)).high < 16


@pytest.mark.parametrize("n", [5, 10, 40])
@pytest.mark.parametrize(
    ("of", "least"),
    [
        ("share 0.1", 0.89),  # a share of few draws is covered in jumps: exactly 0.92, 0.93 and 0.95 here
        ("share 0.5", 0.92),
        ("mean of 8", 0.92),
        ("change", 0.93),
        ("change of 8", 0.93),
    ],
)
def test_small_samples_are_covered(n, of, least):
    """600 samples of n problems, fixed seed: the truth is inside as often as promised, less two standard errors."""
    rng = np.random.default_rng(3)
    difficulty = rng.random((600, n))
    draw = {
        "share 0.1": lambda: (rng.random((600, n)) < 0.1) * 1.0,
        "share 0.5": lambda: (rng.random((600, n)) < 0.5) * 1.0,
        "mean of 8": lambda: rng.binomial(8, difficulty) / 8,
        "change": lambda: rng.choice([-1.0, 0.0, 1.0], (600, n), p=[0.15, 0.7, 0.15]),
        "change of 8": lambda: (rng.binomial(8, difficulty) - rng.binomial(8, difficulty)) / 8,
    }
    truth = {"share 0.1": 0.1, "share 0.5": 0.5, "mean of 8": 0.5}.get(of, 0.0)
    bounds = CHANGE if of.startswith("change") else (0, 1)
    found = [mean_with_interval(row.tolist(), bounds=bounds) for row in draw[of]()]
    assert sum(one.low - 1e-9 <= truth <= one.high + 1e-9 for one in found) / 600 >= least
    assert all(bounds[0] <= one.low <= one.mean <= one.high <= bounds[1] for one in found)


@pytest.mark.parametrize("n", [5, 8])
def test_a_difference_that_is_none_is_seldom_shown(n):
    """The same two policies, one response each: a verdict in at most 5 % of 400 comparisons, two standard errors more.

    With the bootstrap alone it was 8 % and 9.5 % for 5 and 8 problems.
    """
    rng = np.random.default_rng(n)
    values = rng.choice([-1.0, 0.0, 1.0], (400, n), p=[0.3, 0.4, 0.3])
    verdicts = [paired_difference(row.tolist(), [0.0] * n).verdict for row in values]
    assert sum(verdict != "not shown" for verdict in verdicts) / 400 <= 0.05 + 0.022
    if n <= 5:
        assert set(verdicts) == {"not shown"}


def test_few_problems_show_nothing_and_many_do():
    """One problem, or three of +1/8, held before; six problems of +1 are the fewest that do now."""
    assert paired_difference([1.0], [0.0]).verdict == "not shown"
    assert paired_difference([0.125] * 3, [0.0] * 3).verdict == "not shown"
    assert paired_difference([1.0] * 5, [0.0] * 5).verdict == "not shown"
    assert paired_difference([1.0] * 6, [0.0] * 6).verdict == "holds"
    assert paired_difference([0.0] * 6, [1.0] * 6).verdict == "reversed"
    rare = paired_difference([1.0] * 4 + [0.0] * 496, [0.0] * 500)
    assert rare.low > 0.0  # the bootstrap alone would say that it holds
    assert (rare.p, rare.verdict) == (0.125, "not shown")


@pytest.mark.parametrize("n", [5, 12, 13, 30, 60])
def test_the_sign_flip_test_is_scipys(n):
    """Of ±1 it is McNemar's; of other numbers 19,999 random flips give about the same."""
    rng = np.random.default_rng(n)
    signs = rng.choice([-1.0, 1.0], n, p=[0.3, 0.7])
    exact = mcnemar_test(int((signs > 0).sum()), int((signs < 0).sum()))
    assert sign_flip_test([*signs, 0.0, 0.0]) == pytest.approx(exact, abs=1e-12 if n <= 12 else 0.02)
    values = rng.normal(0.2, 0.5, n)
    flips = {"permutation_type": "samples", "n_resamples": 19_999, "rng": np.random.default_rng(1)}
    other = stats.permutation_test((values,), lambda x, axis: x.sum(axis=axis), vectorized=True, **flips)
    assert sign_flip_test(values) == pytest.approx(other.pvalue, abs=0.02)


def test_a_difference_is_plain_data():
    assert Difference(0.5, 0.1, 0.9, 8, 0.01).verdict == "holds"
    assert Difference(0.5, -0.1, 0.9, 8, 0.01).verdict == "not shown"


def test_the_draws_held_at_a_time_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(200)
    straight = mean_with_interval(values, resamples=1000)
    monkeypatch.setattr(rewards.statistics, "DRAWS_AT_A_TIME", 1400)
    assert mean_with_interval(values, resamples=1000) == straight
