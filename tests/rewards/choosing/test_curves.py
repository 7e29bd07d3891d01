import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError, DataError
from rewards.choosing.curves import best_at_k, pass_at_k, ranked_at_k, ranking, vote_at_k
from rewards.choosing.evaluation import SELECTORS, accuracy_at_k
from rewards.choosing.selection import best_of_n
from rewards.statistics import mean_with_interval, paired_difference
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict, correctness_of
from tests.rewards.choosing.definitions import DEFINITIONS, brute_force

ROWS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from(["1", "22", "333", None])),
    min_size=1,
    max_size=7,
)


def group_of(rows, id="p"):
    return RolloutGroup(
        Problem(id, "?"),
        tuple(
            Rollout(
                Completion("none" if answer is None else f"Final answer: {answer}"),
                verdict=Verdict.CORRECT if correct else Verdict.WRONG,
                reward=reward,
            )
            for correct, reward, answer in rows
        ),
    )


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_every_selector_at_k_equals_the_definition(rows):
    group = group_of(rows)
    for (name, select), k in itertools.product(DEFINITIONS.items(), range(1, len(rows) + 1)):
        assert accuracy_at_k(group, name, k) == pytest.approx(brute_force(group, select, k), abs=1e-12), name
    assert accuracy_at_k(group, "first", len(rows)) == float(rows[0][0])
    assert accuracy_at_k(group, "random", 1) == pytest.approx(sum(c for c, *_ in rows) / len(rows))


@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_best_at_k_equals_the_definition(rows):
    group = group_of(rows)
    correct, rewards = correctness_of(group), [rollout.reward for rollout in group.rollouts]
    for k in range(1, len(rows) + 1):
        assert best_at_k(rewards, correct, k) == pytest.approx(brute_force(group, best_of_n, k), abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=20))
def test_laws(rows):
    correct, rewards = [c for c, _ in rows], [r for _, r in rows]
    n, mean = len(rows), sum(correct) / len(rows)
    passes = [pass_at_k(correct, k) for k in range(1, n + 1)]
    bests = [best_at_k(rewards, correct, k) for k in range(1, n + 1)]
    assert passes[0] == pytest.approx(mean)
    assert bests[0] == pytest.approx(mean)
    assert passes == sorted(passes)
    assert passes[-1] == float(any(correct))
    assert bests[-1] == float(correct[ranking(rewards)[0]])
    assert all(best <= high + 1e-12 for best, high in zip(bests, passes, strict=True))
    oracle = [best_at_k([float(c) for c in correct], correct, k) for k in range(1, n + 1)]
    assert oracle == pytest.approx(passes)  # a perfect reward reaches the ceiling


def test_golden_values():
    """n=5, c=2: 1 − C(3,2)/C(5,2) = 1 − 3/10; 1 − C(3,4)/C(5,4) = 1. Big n stays exact."""
    correct = [True, True, False, False, False]
    assert pass_at_k(correct, 2) == 0.7
    assert pass_at_k(correct, 4) == 1.0
    assert pass_at_k([True] + [False] * 1023, 512) == 0.5
    assert best_at_k([0.1, 0.2, 0.9, 0.8, 0.7], correct, 3) == 0.0  # 3 wrong ones outrank; every 3-subset holds one
    assert best_at_k([0.1, 0.8, 0.9, 0.2, 0.2], correct, 2) == pytest.approx(3 / 10)  # {1,0} {1,3} {1,4} of 10


def test_sampled_subsets_are_seeded_and_close_to_exact():
    rng = np.random.default_rng(1)
    answers = [str(answer) for answer in rng.integers(3, size=14)]
    correct, weights = [answer == "1" for answer in answers], rng.random(14).tolist()
    assert math.comb(14, 7) == 3432
    exact = vote_at_k(answers, weights, correct, 7, seed="p", max_subsets=3432)
    estimate = vote_at_k(answers, weights, correct, 7, seed="p", max_subsets=1000)
    assert estimate == vote_at_k(answers, weights, correct, 7, seed="p", max_subsets=1000)
    assert estimate == pytest.approx(exact, abs=0.06)  # 4 standard errors of 0.5/√1000
    few = {vote_at_k(answers, [1.0] * 14, correct, 7, seed=f"p{i}", max_subsets=9) for i in range(20)}
    assert len(few) > 1  # another problem id draws other subsets


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_outside_the_group_is_refused(k):
    correct = [True, False, False]
    message = f"between 1 and the number of rollouts, 3; got {k}"
    with pytest.raises(ConfigError, match=message):
        pass_at_k(correct, k)
    with pytest.raises(ConfigError, match=message):
        best_at_k([0.1, 0.2, 0.3], correct, k)
    with pytest.raises(ConfigError, match=message):
        vote_at_k(["1"] * 3, [1.0] * 3, correct, k, seed="p")
    for name in SELECTORS:
        with pytest.raises(ConfigError, match="number of rollouts"):
            accuracy_at_k(group_of([(True, 0.5, "1")] * 3), name, k)


def test_bad_data_is_refused():
    with pytest.raises(DataError, match="permutation"):
        ranked_at_k([0, 0], [True, False], 1)
    with pytest.raises(DataError, match="as many answers"):
        vote_at_k(["1"], [1.0, 1.0], [True, False], 1, seed="p")
    with pytest.raises(ConfigError, match="unknown selector 'best'"):
        accuracy_at_k(group_of([(True, 0.5, "1")]), "best", 1)
    with pytest.raises(DataError, match="finite rewards"):
        best_at_k([0.1, float("nan")], [True, False], 1)
    with pytest.raises(DataError, match="run the verifier first"):
        correctness_of(RolloutGroup(Problem("p", "?"), (Rollout(Completion("x")),)))
    for values in ([], [float("nan")], [[1.0]]):
        with pytest.raises(DataError, match="finite numbers"):
            mean_with_interval(values)
    with pytest.raises(DataError, match="got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ConfigError, match="confidence"):
        mean_with_interval([1.0, 2.0], confidence=95)


def test_failures_of_the_verifier_count_as_not_correct():
    verdicts = (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE, Verdict.TIMEOUT, Verdict.ERROR)
    rollouts = tuple(Rollout(Completion("x"), verdict=verdict) for verdict in verdicts)
    assert correctness_of(RolloutGroup(Problem("p", "?"), rollouts)) == (True, False, False, False, False)
