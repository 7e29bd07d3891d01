import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.multimodal.errors import DataError
from rewards.answers import canonical_answer
from rewards.selection import SELECTORS
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict


def group_of(*rows, id="p"):
    """rows: (text, reward, verdict)."""
    rollouts = tuple(Rollout(Completion(text), reward=reward, verdict=verdict) for text, reward, verdict in rows)
    return RolloutGroup(Problem(id, "?"), rollouts)


def answers(*values, rewards=None):
    rewards = rewards or [0.5] * len(values)
    texts = ["no idea" if value is None else f"Final answer: {value}" for value in values]
    return group_of(*((text, reward, None) for text, reward in zip(texts, rewards, strict=True)))


def pick(name, group):
    return SELECTORS[name](group, canonical_answer)


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


def test_blind_rulers_and_oracle():
    group = group_of(
        ("bb", 0.1, Verdict.TIMEOUT), ("cccc", 0.2, Verdict.WRONG), ("a", 0.3, Verdict.CORRECT),
        ("dddd", 0.4, Verdict.CORRECT), ("e", 0.5, None),
    )  # fmt: skip
    assert {name: pick(name, group) for name in ("first", "longest", "shortest", "oracle")} == {
        "first": 0, "longest": 1, "shortest": 2, "oracle": 2,
    }  # fmt: skip
    assert pick("oracle", answers("1", "2")) == 0


@pytest.mark.parametrize("name", ["best_of_n", "weighted_vote"])
@pytest.mark.parametrize("reward", [None, float("nan"), float("inf")])
def test_a_missing_reward_is_an_error_not_a_zero(name, reward):
    with pytest.raises(DataError, match="rollout 1 of problem 'p' has reward"):
        pick(name, answers("1", "2", rewards=[0.5, reward]))


@pytest.mark.parametrize("name", list(SELECTORS))
def test_an_empty_group_is_an_error(name):
    with pytest.raises(DataError, match="no rollouts"):
        pick(name, RolloutGroup(Problem("p", "?"), ()))


@given(st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), st.floats(0, 1)), min_size=1, max_size=8), st.text())
def test_every_selector_returns_an_index_and_is_deterministic(rows, id):
    group = answers(*(value for value, _ in rows), rewards=[reward for _, reward in rows])
    group = RolloutGroup(Problem(id, "?"), group.rollouts)
    for name in SELECTORS:
        index = pick(name, group)
        assert 0 <= index < len(rows)
        random.seed(index)  # the global generator plays no part
        assert pick(name, group) == index


def test_random_is_spread_over_indexes_and_stable_over_processes():
    picks = [pick("random", RolloutGroup(Problem(f"p{i}", "?"), answers(*"1234").rollouts)) for i in range(400)]
    counts = [picks.count(index) for index in range(4)]
    assert min(counts) > 60  # expected 100 each, standard deviation 8.7
    code = (
        "from rewards.selection import SELECTORS\nfrom rewards.types import *\n"
        "g = lambda i: RolloutGroup(Problem(f'p{i}', '?'), (Rollout(Completion('x')),) * 4)\n"
        "print([SELECTORS['random'](g(i), None) for i in range(20)])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(picks[:20])
