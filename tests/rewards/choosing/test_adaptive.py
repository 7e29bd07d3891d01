"""Stopping rules against brute force and simulation, and what they save on groups whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mpo.multimodal.errors import ConfigError, DataError
from rewards.choosing.adaptive import (
    MAY_CHANGE,
    best_may_change,
    looks,
    replay,
    vote_may_change,
    weighted_vote_may_change,
)
from rewards.types import Completion, Problem, Rollout, RolloutGroup, StepScores, Verdict


def group_of(answers, rewards=None, id="p", right="1"):
    rewards = [0.5] * len(answers) if rewards is None else rewards
    rollouts = tuple(
        Rollout(
            Completion("It depends.\n\nI cannot tell." if answer is None else f"Final answer: {answer}", num_tokens=10),
            Verdict.CORRECT if answer == right else Verdict.WRONG,
            step_scores=None if reward is None else StepScores((reward,)),
            reward=reward,
        )
        for answer, reward in zip(answers, rewards, strict=True)
    )
    return RolloutGroup(Problem(id, "?"), rollouts)


def sampled_groups(number, samples, seed, *, honest=True):
    """Problem i is answered rightly with p_i ~ U(0.2, 1); wrong answers are three; an honest PRM rewards right ones."""
    rng = np.random.default_rng(seed)
    groups = []
    for index in range(number):
        p = rng.uniform(0.2, 1.0)
        answers = rng.choice(["1", "2", "3", "4"], samples, p=[p, *[(1 - p) / 3] * 3]).tolist()
        rewards = [float(np.clip(rng.normal(0.7 if honest and a == "1" else 0.4, 0.15), 0, 1)) for a in answers]
        groups.append(group_of(answers, rewards, id=f"p{index}"))
    return groups


def test_golden_values():
    """Leader 2, runner-up 1, one left: overtakes (ties count) iff it gets it: E[p₂] = 2/5 under Beta(2, 3).

    Three equal answers: a new one cannot reach 3 with two left; with three left it needs all: E[p³] under Beta(1, 4).
    """
    assert vote_may_change(group_of("112"), 1) == pytest.approx(2 / 5)
    assert vote_may_change(group_of("111"), 2) == 0.0
    assert vote_may_change(group_of("111"), 3) == pytest.approx(1 * 2 * 3 / (5 * 6 * 7))
    assert vote_may_change(group_of([None, None]), 3) == 1.0
    assert vote_may_change(group_of("12"), 0) == 0.0
    # the better half is {1, 1}, one beside the best: (0 + ½) / (1 + 1) · 2/6; then {1, 2}: (1 + ½) / 2 · 2/6
    assert best_may_change(group_of("1122", [0.9, 0.8, 0.2, 0.1]), 2) == pytest.approx(1 / 12)
    assert best_may_change(group_of("1122", [0.9, 0.1, 0.8, 0.2]), 2) == pytest.approx(1 / 4)
    assert best_may_change(group_of("11", [None, None]), 2) == 1.0


def test_with_many_left_it_is_adaptive_consistency():
    """P(p₂ > ½) under Beta(v₂ + 1, v₁ + 1), as in arXiv 2305.11860."""
    for first, second in ((4, 0), (5, 2), (9, 4)):
        group = group_of("1" * first + "2" * second)
        limit = stats.beta.sf(0.5, second + 1, first + 1)
        assert vote_may_change(group, 200_000) == pytest.approx(limit, abs=1e-3)


def test_equal_rewards_make_the_weighted_vote_the_vote():
    for answers, left in (("112", 1), ("1112", 6), ("11", 14)):
        plain = vote_may_change(group_of(answers), left)
        weighted = weighted_vote_may_change(group_of(answers, [0.3] * len(answers)), left)
        assert weighted == pytest.approx(plain)
    assert weighted_vote_may_change(group_of("12", [0.9, 0.1]), 2) < vote_may_change(group_of("12"), 2)


@pytest.mark.parametrize(("first", "second", "left"), [(1, 1, 1), (3, 0, 5), (4, 3, 9), (7, 2, 4), (2, 2, 12)])
def test_the_vote_rule_is_the_beta_binomial_tail(first, second, left):
    needed = math.ceil((first - second + left) / 2)
    expected = stats.betabinom.sf(needed - 1, left, second + 1, first + 1)
    found = vote_may_change(group_of("1" * first + "2" * second), left)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("v1", [2, 4])
def test_the_vote_rule_is_calibrated_under_its_own_model(v1):
    """p ~ Beta(2, v₁ + 1) and 6 more votes for two answers: the frequency of overtaking, 40,000 draws."""
    rng = np.random.default_rng(0)
    gained = rng.binomial(6, rng.beta(2, v1 + 1, 40_000))
    frequency = (1 + gained >= v1 + 6 - gained).mean()
    expected = vote_may_change(group_of("1" * v1 + "2"), 6)
    assert frequency == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 40_000))


def test_a_new_best_is_as_probable_as_exchangeability_says():
    """The best of 12 lies among the last 4 with probability 4 / 12; all answers differ here."""
    rng = np.random.default_rng(1)
    share = (rng.random((40_000, 12)).argmax(1) >= 8).mean()
    assert share == pytest.approx(4 / 12, abs=0.01)
    group = group_of([str(i) for i in range(8)], np.linspace(0.9, 0.1, 8).tolist())
    assert best_may_change(group, 4) == pytest.approx((3 + 0.5) / 4 * 4 / 12)


@pytest.mark.parametrize(("answers", "others", "disagree"), [("11", 0, 0), ("1111", 1, 0), ("112222", 2, 1)])
def test_the_best_sample_is_no_observation_of_itself(answers: str, others: int, disagree: int) -> None:
    """The share of other answers is the mean of Jeffreys' posterior over the others alone: at two samples it is ½."""
    rewards = np.linspace(0.9, 0.1, len(answers)).tolist()
    posterior = stats.beta(disagree + 0.5, others - disagree + 0.5).mean()
    left = 10_000_000  # so the best of all is almost surely yet to come
    assert best_may_change(group_of(answers, rewards), left) == pytest.approx(posterior, abs=1e-5)


@pytest.mark.parametrize("selector", MAY_CHANGE)
def test_replay_saves_samples_within_the_stated_error(selector):
    """What the rule promises, on problems that do not follow its prior: another answer in at most 5 % of them."""
    found = replay(sampled_groups(300, 16, seed=2), 16, selector=selector, error=0.05)
    summary = found.summary(resamples=200)
    assert summary["samples_saved"] > 0.2
    assert summary["tokens_saved"] == pytest.approx(summary["samples_saved"])
    assert summary["changed"]["mean"] <= 0.05
    assert abs(summary["difference"]["mean"]) <= summary["changed"]["mean"] + 1e-12
    assert all(2 <= samples <= 16 for samples in found.samples)


def test_more_error_saves_more():
    groups = sampled_groups(60, 16, seed=3)
    saved = [replay(groups, 16, error=error).summary(resamples=50)["samples_saved"] for error in (0.01, 0.05, 0.2)]
    assert saved == sorted(saved)
    assert saved[0] < saved[-1]


def test_replay_is_seeded_and_takes_n_of_more():
    groups = sampled_groups(20, 16, seed=4)
    assert replay(groups, 8, seed=1) == replay(groups, 8, seed=1) != replay(groups, 8, seed=2)
    assert replay(groups, 8).n == 8
    assert max(replay(groups, 8).samples) <= 8


def test_hard_problems_get_more_samples():
    easy, hard = group_of("1" * 16, id="easy"), group_of("1234" * 4, id="hard")
    found = replay([easy, hard], 16, selector="majority")
    assert found.samples[0] == 4.0
    assert found.samples[1] > 12


def test_refusals():
    groups = [group_of("1122")]
    with pytest.raises(ConfigError, match="adaptive N needs a selector"):
        replay(groups, 4, selector="longest")
    with pytest.raises(ConfigError, match="adaptive N needs"):
        replay(groups, 4, error=0.0)
    with pytest.raises(ConfigError, match="at least n=5"):
        replay(groups, 5)
    with pytest.raises(ConfigError, match="at least one"):
        list(looks(4, 0))
    unverified = RolloutGroup(Problem("p", "?"), (Rollout(Completion("x")),))
    with pytest.raises(DataError, match="verified"):
        replay([unverified], 1)
