import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError
from rewards.scoring.aggregation import AGGREGATIONS, aggregate
from rewards.types import StepScores

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=12).map(lambda values: StepScores(tuple(values)))


def test_golden_values():
    """(0.9 + 0.5 + 0.4) / 3 = 0.6; 0.9 · 0.5 · 0.4 = 0.18."""
    scores = StepScores((0.9, 0.5, 0.4))
    expected = {"mean": 0.6, "min": 0.4, "prod": 0.18, "last": 0.4, "max": 0.9}
    assert {name: aggregate(scores, how=name) for name in AGGREGATIONS} == pytest.approx(expected, abs=1e-12)


def test_the_option_is_honoured_and_mean_is_the_default():
    scores = StepScores((0.1, 0.3, 0.9, 0.7))
    results = [aggregate(scores, how=name) for name in AGGREGATIONS]
    assert len(set(results)) == len(AGGREGATIONS)
    assert aggregate(scores) == aggregate(scores, how="mean") == 0.5
    assert aggregate(scores, how=lambda s: s.values[1]) == 0.3


@given(SCORES)
def test_bounds(scores):
    low, high = min(scores.values), max(scores.values)
    assert aggregate(scores, how="min") == low
    assert aggregate(scores, how="max") == high
    assert low - 1e-12 <= aggregate(scores, how="mean") <= high + 1e-12
    assert 0.0 <= aggregate(scores, how="prod") <= low + 1e-12
    assert low <= aggregate(scores, how="last") <= high


@given(st.floats(0, 1))
def test_one_step_is_its_own_reward(value):
    assert {aggregate(StepScores((value,)), how=name) for name in AGGREGATIONS} == {value}


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'median'.*mean, min, prod, last, max"):
        aggregate(StepScores((0.5,)), how="median")
