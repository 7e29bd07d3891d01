import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError, DataError
from rewards.choosing.evaluation import OF_SPREADS
from rewards.choosing.selection import CHOICES, best_of_n, majority, weighted_vote
from rewards.choosing.votes import VoteWeight
from rewards.scoring.aggregation import aggregate
from rewards.types import Completion, Problem, Rollout, RolloutGroup, StepScores

SELECTORS = {"best_of_n": best_of_n, "majority": majority, "weighted_vote": weighted_vote}
EVERY = {**SELECTORS, **{f"mpo answer: {name}": select for name, select in CHOICES.items()}}


def group_of(*rows, id="p"):
    """rows: (text, reward)."""
    rollouts = tuple(Rollout(Completion(text), reward=reward) for text, reward in rows)
    return RolloutGroup(Problem(id, "?"), rollouts)


def answers(*values, rewards=None):
    rewards = rewards or [0.5] * len(values)
    texts = ["It depends.\n\nI cannot tell." if value is None else f"Final answer: {value}" for value in values]
    return group_of(*zip(texts, rewards, strict=True))


def pick(name, group):
    return EVERY[name](group)


def test_best_of_n_takes_the_lowest_index_among_the_best():
    assert pick("best_of_n", answers("1", "2", "3", rewards=[0.1, 0.8, 0.8])) == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["4", "5", "5"], 1),
        (["4", "5", "5", "4"], 0),  # tie: 4 appeared first
        ([None, None, None, "7"], 3),  # unparsable answers do not vote, however many
        ([None, None], 0),
        (["4.", "5", " 4"], 0),  # canonical forms agree
    ],
)
def test_majority(values, expected):
    assert pick("majority", answers(*values)) == expected


@pytest.mark.parametrize(
    ("values", "rewards", "expected"),
    [
        (["4", "5", "5"], [0.9, 0.3, 0.3], 0),  # 0.9 > 0.6
        (["4", "5", "5"], [0.5, 0.3, 0.3], 1),  # 0.5 < 0.6
        (["4", "5", "5"], [0.75, 0.5, 0.25], 0),  # tie
        ([None, "5"], [1.0, 0.1], 1),
        ([None, None], [0.1, 0.9], 0),
    ],
)
def test_weighted_vote(values, rewards, expected):
    assert pick("weighted_vote", answers(*values, rewards=rewards)) == expected


def test_a_vote_by_product_hears_one_bad_step_that_the_mean_drowns():
    """8 twice with a bad step, 7 once without: means .825 · 2 > .95; products .36 · 2 < .81; lowest .4 · 2 < .95."""
    lucky, sound = StepScores((1.0, 1.0, 0.4, 0.9)), StepScores((0.95, 0.95, 0.95, 0.95))
    rollouts = [
        Rollout(Completion(f"Final answer: {value}"), step_scores=scores, reward=aggregate(scores, how="mean"))
        for value, scores in (("8", lucky), ("8", lucky), ("7", sound))
    ]
    group = RolloutGroup(Problem("p", "?"), tuple(rollouts))
    chosen = {name: CHOICES[name](group) for name in CHOICES if name not in OF_SPREADS}
    assert chosen == {
        "prm": 2, "weighted_vote": 0, "vote_prod": 2, "vote_min": 2, "vote_min_4": 2, "majority": 0,
    }  # fmt: skip
    unread = RolloutGroup(Problem("p", "?"), (Rollout(Completion("Final answer: 9")), *rollouts))
    assert CHOICES["vote_prod"](unread) == 3  # a response without scores has weight 0


@pytest.mark.parametrize(("how", "power"), [("best", 1.0), ("prod", 0.0), ("prod", -1.0), ("min", float("inf"))])
def test_bad_vote_weights_are_refused(how, power):
    with pytest.raises(ConfigError, match=r"vote_weight|vote_power"):
        VoteWeight(how, power)


@pytest.mark.parametrize("name", ["best_of_n", "weighted_vote"])
@pytest.mark.parametrize("reward", [None, float("nan"), float("inf")])
def test_a_missing_reward_is_an_error_not_a_zero(name, reward):
    with pytest.raises(DataError, match="rollout 1 of problem 'p' has reward"):
        pick(name, answers("1", "2", rewards=[0.5, reward]))


@pytest.mark.parametrize("name", list(EVERY))
def test_an_empty_group_is_an_error(name):
    with pytest.raises(DataError, match="no rollouts"):
        pick(name, RolloutGroup(Problem("p", "?"), ()))


@given(st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), st.floats(0, 1)), min_size=1, max_size=8), st.text())
def test_every_selector_returns_an_index_and_is_deterministic(rows, id):
    group = answers(*(value for value, _ in rows), rewards=[reward for _, reward in rows])
    group = RolloutGroup(Problem(id, "?"), group.rollouts)
    for name in EVERY:
        index = pick(name, group)
        assert 0 <= index < len(rows)
        random.seed(index)  # the global generator plays no part
        assert pick(name, group) == index
