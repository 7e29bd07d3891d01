"""The guard's rules: each alone stops a run, and stays quiet a little below its limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mpo.multimodal.errors import ConfigError
from rewards.choosing.training_guard import RULES, Limits, Look, mean_dependence, remaining_share, stop_reason
from rewards.types import Completion, Problem, Rollout, RolloutGroup, StepScores, Unseen

IDS = tuple(f"p{number}" for number in range(12))
START = Look(0, remaining=0.5, blind=0.25, repetition=0.0, tokens=20.0, problem_ids=IDS,
             gold=(0.9,) * 12, reward=(0.5,) * 12)  # fmt: skip
NOISE = tuple(0.01 * (number % 3) for number in range(12))
BAD = {
    "image_blind_reward": {"remaining": 0.96},
    "image_blind_policy": {"blind": 1.1},
    "repetition": {"repetition": 0.6},
    "length_drift": {"tokens": 61.0},
    "reward_up_accuracy_down": {
        "gold": tuple(0.5 + noise for noise in NOISE),
        "reward": tuple(0.7 + noise for noise in NOISE),
    },
}
FINE = [
    {"remaining": 0.94}, {"remaining": None}, {"blind": 0.9}, {"repetition": 0.5}, {"tokens": 59.0}, {"tokens": 7.0},
    {"gold": tuple(0.5 + noise for noise in NOISE)},  # both fell or stayed
    {"reward": tuple(0.7 + noise for noise in NOISE)},
    {"gold": (0.9,) * 11 + (0.8,), "reward": (0.5,) * 11 + (0.6,)},  # within noise
    {"problem_ids": (), "gold": (), "reward": ()},
    {"gold": tuple(0.5 + noise for noise in NOISE), "reward": ()},  # without a PRM
    {"problem_ids": ("other",), "gold": (0.0,), "reward": (1.0,)},  # none was measured at both looks
    {"problem_ids": (*IDS[1:], "other"), "gold": (0.9,) * 11 + (0.0,), "reward": (0.5,) * 11 + (1.0,)},
]  # fmt: skip


@pytest.mark.parametrize("reason", RULES)
def test_a_rule_stops_after_two_looks_in_a_row(reason: str) -> None:
    bad = replace(START, **BAD[reason])
    looks = [START, replace(bad, step=5), replace(START, step=10), replace(bad, step=15)]
    assert stop_reason(looks, Limits()) is None
    found = stop_reason([*looks, replace(bad, step=20)], Limits())
    assert found is not None
    assert (found.step, found.reason) == (20, reason)
    assert stop_reason([START, bad], Limits(patience=1)) is not None


def test_these_are_all() -> None:
    assert BAD.keys() == RULES.keys()


@pytest.mark.parametrize("changes", FINE)
def test_quiet(changes: dict[str, object]) -> None:
    look = replace(START, **changes)
    assert stop_reason([START, look, look, look], Limits()) is None


def test_a_policy_that_was_blind_or_repeated_itself_at_the_start_is_not_blamed() -> None:
    start = replace(START, blind=1.0, repetition=0.9)
    assert stop_reason([start, start, start], Limits()) is None


def rollout(own: float, blank: float | None, swapped: float | None) -> Rollout:
    unseen = [None if value is None else Unseen(StepScores((value,)), value) for value in (blank, swapped)]
    return Rollout(Completion("a"), step_scores=StepScores((own,)), reward=own, blank=unseen[0], swapped=unseen[1])


def test_the_share_that_remains_by_hand() -> None:
    """Blank: (0.2 + 0.4) / 1.2. Swapped: (0.8 + 0.1) / 1.2, what the first gains by it not counted."""
    group = RolloutGroup(Problem("p", "?"), (rollout(0.8, 0.2, 0.9), rollout(0.4, 0.4, 0.1)))
    assert remaining_share([group]) == pytest.approx(0.75)
    assert mean_dependence([group]) == pytest.approx((-0.1 + 0.0) / 2)
    assert remaining_share([RolloutGroup(Problem("p", "?"), (rollout(0.8, None, None),))]) is None
    assert remaining_share([RolloutGroup(Problem("p", "?"), (rollout(0.0, 0.0, 0.0),))]) is None


def test_looks_are_kept_as_json() -> None:
    import json
    from dataclasses import asdict

    assert Look.of(json.loads(json.dumps(asdict(START)))) == START
    assert START.numbers() == pytest.approx({
        "guard/remaining": 0.5, "guard/blind": 0.25, "guard/repetition": 0.0, "guard/tokens": 20.0,
        "guard/accuracy": 0.9, "guard/prm": 0.5,
    })  # fmt: skip


@pytest.mark.parametrize("changes", [{"remaining": 1.1}, {"repetition": -1}, {"drift": 0.5}, {"patience": 0}])
def test_limits_that_cannot_be(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected remaining and repetition in"):
        Limits(**changes)
