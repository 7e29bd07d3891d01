"""The guard of iterative rounds: it stops where the PRM's mean rises and the accuracy falls, and nowhere else."""

import random

import pytest

from mpo.multimodal.errors import DataError
from rewards.choosing.round_guard import RoundMeasure, compare_rounds, measure_round
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict


def measured(gold: float, reward: float, *, n: int = 100, seed: int = 0) -> RoundMeasure:
    """Problems whose values scatter around two means."""
    rng = random.Random(seed)
    noise = [rng.uniform(-0.1, 0.1) for _ in range(n)]
    ids = tuple(str(i) for i in range(n))
    return RoundMeasure(ids, tuple(gold + x for x in noise), tuple(reward + x for x in noise))


@pytest.mark.parametrize(
    ("gold", "reward", "stops"),
    [(0.4, 0.6, True), (0.6, 0.6, False), (0.4, 0.4, False), (0.6, 0.4, False), (0.5, 0.6, False), (0.4, 0.5, False)],
)
def test_only_a_falling_accuracy_under_a_rising_mean_stops(gold: float, reward: float, stops: bool) -> None:
    change = compare_rounds(measured(0.5, 0.5), measured(gold, reward))
    assert change.over_optimised == stops
    assert change.gold.mean == pytest.approx(gold - 0.5)


def test_noise_is_named() -> None:
    clear = compare_rounds(measured(0.5, 0.5), measured(0.4, 0.6))
    assert clear.over_optimised
    assert clear.beyond_noise
    unclear = compare_rounds(measured(0.5, 0.5, n=10), measured(0.49, 0.51, n=10, seed=1))
    assert unclear.beyond_noise is False


def test_an_unread_response_counts_nothing_and_an_unverified_one_is_refused() -> None:
    problem = Problem("p", "?")
    rollouts = (Rollout(Completion("7"), Verdict.CORRECT, reward=0.8), Rollout(Completion("8"), Verdict.TIMEOUT))
    assert measure_round([RolloutGroup(problem, rollouts)]) == RoundMeasure(("p",), (0.5,), (0.4,))
    with pytest.raises(DataError, match="verifier"):
        measure_round([RolloutGroup(problem, (Rollout(Completion("7"), reward=0.8),))])
    with pytest.raises(DataError, match="without problems"):
        measure_round([])


def test_other_problems_are_not_compared() -> None:
    with pytest.raises(DataError, match="same problems"):
        compare_rounds(measured(0.5, 0.5), measured(0.5, 0.5, n=99))
