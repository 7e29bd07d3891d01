from __future__ import annotations

import pytest
import torch

from mpo.losses import Denominators, mpo_loss
from mpo.metrics import MetricMeans, TokenRate, pair_metrics
from mpo.types import PairLogps

TWO = PairLogps(
    policy_chosen=torch.tensor([-10.0, -8.0]),
    policy_rejected=torch.tensor([-15.0, -6.0]),
    reference_chosen=torch.tensor([-12.0, -8.0]),
    reference_rejected=torch.tensor([-13.0, -7.0]),
    chosen_lengths=torch.tensor([5, 2]),
)


def rows(index: slice) -> PairLogps:
    return PairLogps(*(value[index] for value in vars(TWO).values()))


def test_names_and_values() -> None:
    metrics = pair_metrics(mpo_loss(TWO, reward_shift=0.05), TWO, beta=0.1, reward_shift=0.05)
    assert list(metrics) == [
        "loss/preference", "loss/quality", "loss/generation", "bco/delta",
        "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
        "logps/chosen", "logps/rejected", "logps/chosen_per_token", "logps/chosen_per_token_reference",
    ]  # fmt: skip
    # r_c = (.2, 0), r_r = (−.2, .1)
    expected = {
        "loss/generation": (10 / 5 + 8 / 2) / 2,
        "bco/delta": 0.05,
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.05,
        "rewards/margins": 0.15,
        "rewards/accuracies": 0.5,
        "logps/chosen": -9.0,
        "logps/rejected": -10.5,
        "logps/chosen_per_token": -(10 / 5 + 8 / 2) / 2,
        "logps/chosen_per_token_reference": -(12 / 5 + 8 / 2) / 2,
    }
    assert {name: metrics[name].item() for name in expected} == pytest.approx(expected, abs=1e-6)


def test_metrics_carry_no_graph() -> None:
    logps = PairLogps(**(vars(TWO) | {"policy_chosen": torch.tensor([-10.0, -8.0], requires_grad=True)}))
    metrics = pair_metrics(mpo_loss(logps, reward_shift=0.0), logps, beta=0.1, reward_shift=0.0)
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("average", ["response", "token", "square"])
def test_micro_batches_average_to_the_step(average: str) -> None:
    whole = mpo_loss(TWO, reward_shift=0.05, generation_average=average)
    step = Denominators.of(TWO.chosen_lengths, average)
    means = MetricMeans()
    for index in (slice(0, 1), slice(1, 2)):
        part = rows(index)
        loss = mpo_loss(part, reward_shift=0.05, generation_average=average, denominators=step)
        means.add(pair_metrics(loss, part, beta=0.1, reward_shift=0.05, loss_scale=step.pairs / 1), pairs=1)
    expected = pair_metrics(whole, TWO, beta=0.1, reward_shift=0.05)
    assert means.pop() == pytest.approx({name: value.item() for name, value in expected.items()}, abs=1e-6)


def test_pop_starts_anew_and_sums_ranks_once() -> None:
    means = MetricMeans()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, pairs=2)
    # the other rank: sums (10, 20) over 3 pairs
    assert means.pop(lambda row: row + torch.tensor([10.0, 20.0, 3.0])) == pytest.approx({"a": 12 / 5, "b": 24 / 5})
    assert means.pop() == {}


def test_tokens_a_second_over_ranks_since_the_last_pop() -> None:
    """Construction at 0 s, `restart` at 10 s, pops at 14 s and 15 s; the other rank counts as many tokens."""
    rate = TokenRate(clock=iter([0.0, 10.0, 14.0, 15.0]).__next__)
    rate.add(torch.ones(1, 1))
    rate.restart()
    for mask in ([[1, 1, 1], [1, 0, 0]], [[1, 1]]):
        rate.add(torch.tensor(mask))
    assert rate.pop(lambda tokens: 2 * tokens) == {"tokens/s": 2 * 6 / 4}
    assert rate.pop() == {}
    rate.add(torch.tensor([[1, 0, 1]]))
    assert rate.pop() == {"tokens/s": 2 / 1}
