"""Planted faults are flagged by name; an honest PRM on the same answers is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rewards.choosing.evaluation import evaluate
from rewards.choosing.selector_warnings import (
    image_blind,
    image_drop,
    length_bias,
    length_preference,
    not_above_majority,
    over_optimisation,
    selector_regret,
)
from rewards.scoring.visual_dependence import of_group
from rewards.types import Completion, Problem, Rollout, RolloutGroup, StepScores, Unseen, Verdict

KS = [1, 2, 4, 8]


def answered(number: int = 120, samples: int = 8, seed: int = 0) -> list[RolloutGroup]:
    """Verified answers of mixed length: right with p_i ~ U(0.2, 0.8), wrong ones all different."""
    rng = np.random.default_rng(seed)
    groups = []
    for index in range(number):
        p = rng.uniform(0.2, 0.8)
        rollouts = []
        for _sample in range(samples):
            right = bool(rng.random() < p)
            text = "x" * int(rng.integers(10, 200)) + f"\n\nFinal answer: {0 if right else rng.integers(1, 4)}"
            rollouts.append(Rollout(Completion(text), Verdict.CORRECT if right else Verdict.WRONG))
        groups.append(RolloutGroup(Problem(f"p{index}", "?", answer="0"), tuple(rollouts)))
    return groups


def scored_by(groups, rule, seed=1):
    """rule: (right, text, noise) → reward."""
    rng = np.random.default_rng(seed)

    def score(rollout):
        noise = float(rng.normal(0, 0.1))
        reward = float(np.clip(rule(rollout.verdict is Verdict.CORRECT, rollout.completion.text, noise), 0, 1))
        return rollout.with_(reward=reward, step_scores=StepScores((reward,)))

    return [replace(group, rollouts=tuple(map(score, group.rollouts))) for group in groups]


def honest(right, text, noise):
    return (0.7 if right else 0.4) + noise


def blind(right, text, noise):
    return 0.4 + noise  # what an honest PRM says of an answer about another image


def likes_length(right, text, noise):
    return len(text) / 250


def scored_unseen(groups, other):
    """The groups, with what `other` says of the same answers as their scores with another image."""
    return [
        replace(
            group,
            rollouts=tuple(
                r.with_(swapped=Unseen(o.step_scores, o.reward), blank=Unseen(o.step_scores, o.reward))
                for r, o in zip(group.rollouts, beside.rollouts, strict=True)
            ),
        )
        for group, beside in zip(groups, other, strict=True)
    ]


def names(groups):
    return [warning["name"] for warning in evaluate(groups, KS)["warnings"]]


def test_an_honest_prm_is_not_flagged():
    groups = scored_unseen(scored_by(answered(), honest), scored_by(answered(), blind))
    assert names(groups) == []
    assert image_drop(groups).mean == pytest.approx(0.3, abs=0.03)
    right = [value for group in groups if (value := of_group(group)["dependence_right"]) is not None]
    assert sum(right) / len(right) == pytest.approx(0.3, abs=0.03)


def test_a_prm_that_likes_long_answers_is_flagged():
    groups = answered()
    found = evaluate(scored_by(groups, likes_length), KS)
    assert [warning["name"] for warning in found["warnings"]] == ["not_above_majority", "length"]
    assert found["length_preference"]["mean"] == 1.0
    assert "prefers the longer one" in found["warnings"][1]["message"]
    short = length_bias(length_preference(scored_by(groups, lambda right, text, noise: 1 - len(text) / 250)))
    assert "prefers the shorter one" in short.message


def test_an_image_blind_prm_is_flagged():
    groups = scored_by(answered(), honest)
    same = scored_unseen(groups, groups)  # the same scores with another image
    assert names(same) == ["image_blind"]
    assert {of_group(group)["dependence_right"] for group in same} <= {0.0, None}
    assert names(groups) == []  # nobody asked
    nearly = scored_by(answered(), lambda right, text, noise: honest(right, text, noise) - 0.01)
    assert image_blind(image_drop(scored_unseen(groups, nearly))) is not None


def test_over_optimisation_is_flagged():
    """One answer in six exploits the PRM: wrong, with the highest reward. The more samples, the surer it is found."""

    def exploited(right, text, noise):
        return 1.0 if not right and len(text) % 6 == 0 else honest(right, text, noise)

    found = evaluate(scored_by(answered(), exploited), KS)
    by_name = {warning["name"]: warning for warning in found["warnings"]}
    assert by_name["over_optimisation"]["evidence"]["high"] < 0
    assert by_name["over_optimisation"]["message"].startswith("over-optimisation: best@8 is below best@")
    assert "not_above_majority" in by_name


def test_a_fall_within_the_interval_is_none():
    better, noise = np.full(40, 0.5), np.tile([0.2, -0.22], 20)
    assert over_optimisation({1: better.tolist(), 2: (better + noise).tolist()}) is None
    fall = over_optimisation({1: better.tolist(), 2: (better + 0.1).tolist(), 4: (better - 0.1).tolist()})
    assert fall is not None
    assert "best@4 is below best@2 by 0.200" in fall.message


def test_majority_of_two_says_nothing():
    assert not_above_majority({1: [0.0], 2: [0.0]}, {1: [1.0], 2: [1.0]}) is None
    below = not_above_majority({4: [0.0] * 6}, {4: [1.0] * 6})
    assert below is not None
    assert "below majority@4 by 1.000" in below.message
    few = not_above_majority({4: [0.0] * 2}, {4: [1.0] * 2})  # two problems show nothing, not even so much
    assert few is not None
    assert "minus majority@4 is −1.000 [−1.000, 0.315], not shown" in few.message


def test_few_problems_accuse_no_prm_of_blindness():
    """Two problems on which the reward falls by 0.3 show neither that the PRM looks nor that it does not."""
    groups = scored_by(answered(2), honest)
    other = scored_by(answered(2), lambda right, text, noise: noise + 0.1)
    drop = image_blind(image_drop(scored_unseen(groups, other)))
    assert drop is not None
    assert drop.message.startswith("perhaps blind")
    assert "hardly looks" not in drop.message


def test_length_is_compared_among_equally_right_answers_only():
    """Right answers are long and rewarded, wrong ones short: that is no bias. Pairs: 20 > 10 won, 4 > 2 lost."""
    rows = [("x" * 20, True, 0.9), ("x" * 10, True, 0.8), ("xxxx", False, 0.1), ("xx", False, 0.2)]
    rollouts = tuple(
        Rollout(Completion(text), Verdict.CORRECT if right else Verdict.WRONG, reward=reward)
        for text, right, reward in rows
    )
    estimate = length_preference([RolloutGroup(Problem("p", "?"), rollouts)])
    assert (estimate.mean, estimate.n) == (0.5, 1)
    tied = tuple(rollout.with_(reward=0.5) for rollout in rollouts[:2])
    assert length_preference([RolloutGroup(Problem("p", "?"), tied)]).mean == 0.5
    unscored = tuple(rollout.with_(reward=None) for rollout in rollouts)
    assert length_preference([RolloutGroup(Problem("p", "?"), unscored)]) is None


def test_regret_is_oracle_minus_choice():
    assert selector_regret([1.0, 1.0, 0.0], [0.5, 1.0, 0.0]).mean == pytest.approx(1 / 6)
    found = evaluate(scored_by(answered(40), honest), KS)
    oracle, prm = found["estimates"]["oracle"]["8"]["mean"], found["estimates"]["prm"]["8"]["mean"]
    assert found["regret"]["8"]["mean"] == pytest.approx(oracle - prm)
    assert found["regret"]["1"]["mean"] == 0.0


def test_what_was_not_scored_without_its_picture_says_nothing():
    groups = scored_by(answered(3), honest)
    assert image_drop(groups) is None
    assert image_blind(None) is None
    assert set(of_group(groups[0]).values()) == {None}
