"""δ: read before it is committed, independent of micro-batches, and the same after a round trip through JSON."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError
from mpo.reward_shift import RewardShift


def observe(shift: RewardShift, chosen: list[float], rejected: list[float]) -> None:
    shift.observe(torch.tensor(chosen), torch.tensor(rejected))


def test_value_is_zero_until_the_first_commit() -> None:
    shift = RewardShift()
    observe(shift, [1.0], [3.0])
    assert shift.value == 0.0
    shift.commit()
    assert shift.value == 2.0


def test_cumulative_is_the_mean_of_everything() -> None:
    shift = RewardShift("cumulative")
    observe(shift, [1.0], [3.0])
    shift.commit()
    observe(shift, [5.0, 5.0], [5.0, 5.0])
    shift.commit()
    assert shift.value == pytest.approx((1 + 3 + 5 + 5 + 5 + 5) / 6)


def test_ema_starts_from_zero() -> None:
    shift = RewardShift("ema", momentum=0.9)
    for expected in (0.1 * 2, 0.9 * 0.2 + 0.1 * 2):
        observe(shift, [1.0], [3.0])
        shift.commit()
        assert shift.value == pytest.approx(expected)


def test_zero_stays_zero() -> None:
    shift = RewardShift("zero")
    observe(shift, [1.0], [3.0])
    shift.commit()
    assert shift.value == 0.0


def test_commit_without_observations_changes_nothing() -> None:
    shift = RewardShift()
    observe(shift, [1.0], [3.0])
    shift.commit()
    shift.commit()
    assert shift.value == 2.0


def test_ranks_are_summed_once_a_commit() -> None:
    calls = []

    def other_rank_had_the_same(pending: torch.Tensor) -> torch.Tensor:
        calls.append(pending.tolist())
        return pending + torch.tensor([10.0, 2.0])

    shift = RewardShift()
    observe(shift, [1.0], [3.0])
    observe(shift, [2.0], [2.0])
    shift.commit(other_rank_had_the_same)
    assert calls == [[8.0, 4.0]]
    assert shift.value == pytest.approx((8 + 10) / (4 + 2))


def test_observing_keeps_no_graph() -> None:
    rewards = torch.tensor([1.0], requires_grad=True)
    shift = RewardShift()
    shift.observe(rewards * 2, rewards)
    assert not shift._pending[0].requires_grad


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=8), st.sampled_from(["cumulative", "ema"]))
@settings(deadline=None)
def test_micro_batches_do_not_matter(rewards: list[float], mode: str) -> None:
    whole, cut = RewardShift(mode), RewardShift(mode)
    observe(whole, rewards, rewards)
    for reward in rewards:
        observe(cut, [reward], [reward])
    whole.commit()
    cut.commit()
    assert cut.value == pytest.approx(whole.value, abs=1e-5)


@pytest.mark.parametrize("mode", ["cumulative", "ema", "zero"])
def test_state_round_trips_through_json(mode: str) -> None:
    straight, first = RewardShift(mode), RewardShift(mode)
    for shift in (straight, first):
        observe(shift, [1.0, 0.25], [3.0, -1.0])
        shift.commit()
    resumed = RewardShift(mode)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for shift in (straight, resumed):
        observe(shift, [0.5], [7.0])
        shift.commit()
    assert resumed.value == straight.value
    assert resumed.state_dict() == straight.state_dict()


def test_another_modes_state_is_refused() -> None:
    with pytest.raises(ConfigError, match="'ema', this run asks for 'cumulative'"):
        RewardShift("cumulative").load_state_dict(RewardShift("ema").state_dict())


def test_foreign_state_is_refused() -> None:
    with pytest.raises(ConfigError, match="lacks"):
        RewardShift().load_state_dict({"mean": 1.0})


@pytest.mark.parametrize(("mode", "momentum"), [("median", 0.99), ("ema", 1.0), ("ema", -0.1)])
def test_bad_settings_are_refused(mode: str, momentum: float) -> None:
    with pytest.raises(ConfigError, match="reward_shift"):
        RewardShift(mode, momentum=momentum)
