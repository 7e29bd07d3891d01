"""Cells and differences by hand: official metrics, the vote at equal N and equal tokens, the mean over benchmarks."""

import pytest

from mpo.multimodal.errors import ConfigError
from rewards.choosing.matrix import Critic, Measured, breakdown, cell, needed_ks, overall, votes_for
from rewards.types import Problem

PRM = Critic("PRM", "prm", 1.0)


def measured(prm, vote, *, metric="accuracy", metas=None):
    """One value per problem at k = 1, and twice as far from a half at k = 2 for the PRM."""
    problems = [Problem(str(place), "?", meta=(metas or [{}] * len(prm))[place]) for place in range(len(prm))]
    values = {
        "prm": {1: vote, 2: prm},
        "majority": {1: vote, 2: vote, 4: [1.0] * len(prm)},
        "random": {1: vote, 2: vote},
    }
    return Measured(problems, values, metric)


def test_a_vote_of_equal_tokens_draws_what_the_critic_reads():
    assert [votes_for(k, 0.0, 8) for k in (1, 8)] == [1, 8]
    assert [votes_for(k, 1.0, 8) for k in (1, 4, 5)] == [2, 8, None]
    assert votes_for(3, 1 / 3, 8) == 4  # a rounding error of the product loses no sample


def test_what_is_measured_is_every_n_and_every_vote_beside_it():
    assert needed_ks([1, 2, 4, 8], [PRM, Critic("free", "prm")], 8) == [1, 2, 4, 8]
    assert needed_ks([1, 2, 4, 8], [Critic("large", "prm", 2.0)], 12) == [1, 2, 3, 4, 6, 8, 12]
    assert needed_ks([4, 8], [PRM], 2) == []


def test_a_cell_by_hand():
    one = measured(prm=[1.0, 1.0, 0.0, 1.0], vote=[1.0, 0.0, 0.0, 0.0])
    made = cell(one, PRM, 2, most=4)
    assert made["accuracy"]["mean"] == made["official"]["mean"] == 0.75
    assert made["minus_majority"]["mean"] == 0.5
    assert made["equal_tokens_k"] == 4
    assert made["minus_majority_equal_tokens"]["mean"] == -0.25  # the vote of four samples is always right
    assert cell(one, PRM, 2, most=3)["minus_majority_equal_tokens"] is None


def test_the_official_metric_is_of_units_and_accuracy_of_problems():
    metas = [{"qid": 1}, {"qid": 1}, {"qid": 2}, {"qid": 2}]
    one = measured(prm=[1.0, 1.0, 1.0, 0.0], vote=[1.0, 0.0, 1.0, 0.0], metric="worst case", metas=metas)
    made = cell(one, PRM, 2, most=2)
    assert (made["accuracy"]["mean"], made["official"]["mean"], made["official"]["n"]) == (0.75, 0.5, 2)
    assert made["minus_majority"]["mean"] == 0.5


def test_the_mean_over_benchmarks_weighs_each_the_same():
    large = measured(prm=[1.0] * 9, vote=[0.0] * 9)
    small = measured(prm=[0.0], vote=[0.0])
    total = overall([large, small], PRM, 2, most=2)
    assert total["official"]["mean"] == 0.5
    assert total["gain"]["mean"] == total["minus_majority"]["mean"] == 0.5
    assert total["official"]["n"] == 10


def test_the_interval_of_the_mean_resamples_problems_within_benchmarks():
    """Two sure benchmarks: Wilson's interval of 20 of 20 begins at 0.8389, that of 0 of 20 ends at 0.1611, so half of
    0.1611 to both sides; an unsure one beside many sure problems gives half of its own."""
    sure = overall([measured([1.0] * 20, [0.0] * 20), measured([0.0] * 20, [0.0] * 20)], PRM, 2, most=2)["official"]
    assert (sure["mean"], sure["low"], sure["high"]) == pytest.approx((0.5, 0.5 - 0.0806, 0.5 + 0.0806), abs=1e-4)
    unsure = measured([1.0, 0.0] * 50, [0.0] * 100)
    alone = overall([unsure], PRM, 2, most=2)["official"]
    beside = overall([unsure, measured([1.0] * 2000, [0.0] * 2000)], PRM, 2, most=2)["official"]
    assert beside["high"] - beside["low"] == pytest.approx((alone["high"] - alone["low"]) / 2, rel=0.1)


def test_accuracy_by_subject_skips_problems_without_one():
    metas = [{"subject": "art"}, {"subject": "law"}, {"subject": "art"}, {}]
    one = measured(prm=[1.0, 0.0, 0.5, 1.0], vote=[0.0] * 4, metas=metas)
    found = breakdown(one, "prm", 2, ("topic", "subject"))
    assert found == {"art": {"accuracy": 0.75, "problems": 2}, "law": {"accuracy": 0.0, "problems": 1}}
    assert breakdown(one, "prm", 2, ("topic",)) == {}


@pytest.mark.parametrize("cost", [-1.0, float("inf"), float("nan")])
def test_a_cost_is_a_number_of_at_least_zero(cost):
    with pytest.raises(ConfigError, match="cost"):
        Critic("x", "prm", cost)
