"""Values worked by hand, closed-form gradients, and properties that hold for every batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.losses import (
    Denominators,
    generation_loss,
    implicit_rewards,
    mpo_loss,
    preference_loss,
    quality_loss,
)
from mpo.multimodal.errors import ConfigError
from mpo.types import LossWeights, PairLogps

LN2 = math.log(2.0)
REWARD = st.floats(-20, 20, width=32)


def pairs(*rows: tuple[float, float, float, float, int]) -> PairLogps:
    """Rows (π_c, π_r, ρ_c, ρ_r, |y_c|)."""
    columns = list(zip(*rows, strict=True))
    return PairLogps(*(torch.tensor(column, dtype=torch.float32) for column in columns[:4]), torch.tensor(columns[4]))


GOLDEN = pairs((-10.0, -15.0, -12.0, -13.0, 5))


def test_golden() -> None:
    # r_c = .1·(−10+12) = .2, r_r = .1·(−15+13) = −.2, δ = .05
    # L_p = −log σ(.4) = .513015
    # L_q = −log σ(.15) − log σ(.25) = .620957 + .575939 = 1.196896
    # L_g = 10/5 = 2,  L = .8·.513015 + .2·1.196896 + 2 = 2.649791
    loss = mpo_loss(GOLDEN, beta=0.1, reward_shift=0.05)
    assert loss.preference.item() == pytest.approx(0.513015, abs=1e-6)
    assert loss.quality.item() == pytest.approx(1.196896, abs=1e-6)
    assert loss.generation.item() == 2.0
    assert loss.total.item() == pytest.approx(2.649791, abs=1e-6)


def test_step_zero_is_1_2_ln2_plus_generation() -> None:
    # policy = reference and δ = 0: .8·ln 2 + .2·2·ln 2 + L_g = .8318 + L_g
    loss = mpo_loss(pairs((-10.0, -15.0, -10.0, -15.0, 4)), reward_shift=0.0)
    assert loss.total.item() == pytest.approx(0.8 * LN2 + 0.4 * LN2 + 2.5, abs=1e-6)


def test_label_smoothing() -> None:
    # m = .4, ε = .1: .9·.513015 + .1·.913015 = .553015
    loss = mpo_loss(GOLDEN, reward_shift=0.05, label_smoothing=0.1)
    assert loss.preference.item() == pytest.approx(0.553015, abs=1e-6)


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        ("response", (8 / 4 + 9 / 9) / 2),
        ("token", (8 + 9) / (4 + 9)),
        ("square", (8 / 2 + 9 / 3) / (2 + 3)),  # Σ −π_c·|y|^−.5 / Σ |y|^.5
    ],
)
def test_generation_averages(average: str, expected: float) -> None:
    two = pairs((-8.0, -1.0, -8.0, -1.0, 4), (-9.0, -1.0, -9.0, -1.0, 9))
    loss = mpo_loss(two, reward_shift=0.0, generation_average=average)
    assert loss.generation.item() == pytest.approx(expected, rel=1e-6)


def test_closed_form_gradients() -> None:
    logps = GOLDEN
    logps.policy_chosen.requires_grad_()
    logps.policy_rejected.requires_grad_()
    grads = torch.autograd.grad(
        mpo_loss(logps, beta=0.1, reward_shift=0.05).total, [logps.policy_chosen, logps.policy_rejected]
    )
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    # dL/dπ_c = β·(−.8·σ(−.4) − .2·σ(−.15)) − 1/5,  dL/dπ_r = β·(.8·σ(−.4) + .2·σ(−.25))
    assert grads[0].item() == pytest.approx(0.1 * (-0.8 * sigmoid(-0.4) - 0.2 * sigmoid(-0.15)) - 0.2, abs=1e-6)
    assert grads[1].item() == pytest.approx(0.1 * (0.8 * sigmoid(-0.4) + 0.2 * sigmoid(-0.25)), abs=1e-6)
    logps.policy_chosen.requires_grad_(False)
    logps.policy_rejected.requires_grad_(False)


@pytest.mark.filterwarnings("ignore:Input #:UserWarning")  # float32 is what we promise; hence the wide step
@pytest.mark.parametrize("average", ["response", "token", "square"])
def test_gradcheck(average: str) -> None:
    reference, lengths = torch.tensor([0.3, -0.4]), torch.tensor([3, 2])

    def total(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        logps = PairLogps(chosen, rejected, reference, reference, lengths)
        return mpo_loss(logps, beta=1.0, reward_shift=0.2, generation_average=average, label_smoothing=0.1).total

    inputs = (torch.tensor([-0.5, 0.7], requires_grad=True), torch.tensor([0.1, -0.9], requires_grad=True))
    assert torch.autograd.gradcheck(total, inputs, eps=1e-2, atol=2e-3, rtol=2e-3)


def test_no_gradient_into_reward_shift() -> None:
    delta = torch.tensor(0.05, requires_grad=True)
    chosen = torch.tensor([0.2], requires_grad=True)
    quality_loss(chosen, torch.tensor([-0.2]), delta).sum().backward()
    assert delta.grad is None
    assert chosen.grad is not None


def test_low_precision_is_computed_in_float32() -> None:
    low = PairLogps(*(getattr(GOLDEN, name).bfloat16() for name in list(vars(GOLDEN))[:4]), GOLDEN.chosen_lengths)
    loss = mpo_loss(low, reward_shift=0.05)
    assert {part.dtype for part in vars(loss).values()} == {torch.float32}
    assert loss.total.item() == pytest.approx(2.649791, abs=1e-6)  # −10, −12, −13, −15 are exact in bfloat16


def test_pair_weight_multiplies_one_pair() -> None:
    two = pairs((-8.0, -5.0, -7.0, -6.0, 4), (-9.0, -2.0, -8.5, -1.0, 9))
    each = [mpo_loss(pairs(row), reward_shift=0.1).total.item() for row in
            ((-8.0, -5.0, -7.0, -6.0, 4), (-9.0, -2.0, -8.5, -1.0, 9))]  # fmt: skip
    weighted = mpo_loss(two, reward_shift=0.1, pair_weight=torch.tensor([2.0, 0.0]))
    assert weighted.total.item() == pytest.approx(2.0 * each[0] / 2, rel=1e-6)


@pytest.mark.parametrize(
    "broken",
    [
        PairLogps(*[torch.zeros(2)] * 4, torch.ones(3)),
        PairLogps(*[torch.zeros(2, 1)] * 4, torch.ones(2, 1)),
        PairLogps(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.ones(2)),
    ],
)
def test_shapes_that_would_broadcast_are_refused(broken: PairLogps) -> None:
    with pytest.raises(ConfigError, match="one shape"):
        mpo_loss(broken, reward_shift=0.0)


def test_unknown_average_is_refused() -> None:
    with pytest.raises(ConfigError, match="generation_average must be one of"):
        mpo_loss(GOLDEN, reward_shift=0.0, generation_average="sum")


def test_weights_are_checked() -> None:
    with pytest.raises(ConfigError, match="weights"):
        LossWeights(preference=-1.0)


# Properties


@st.composite
def batches(draw: st.DrawFn, max_pairs: int = 6) -> PairLogps:
    number = draw(st.integers(2, max_pairs))
    logp = st.floats(-200, -0.5, width=32)
    column = lambda: torch.tensor(draw(st.lists(logp, min_size=number, max_size=number)))  # noqa: E731
    lengths = torch.tensor(draw(st.lists(st.integers(1, 400), min_size=number, max_size=number)))
    return PairLogps(column(), column(), column(), column(), lengths)


def rows_of(logps: PairLogps, index: slice | torch.Tensor) -> PairLogps:
    return PairLogps(*(value[index] for value in vars(logps).values()))


@given(REWARD, REWARD)
def test_preference_antisymmetry(chosen: float, rejected: float) -> None:
    # −log σ(m) + log σ(−m) = −m
    c, r = torch.tensor([chosen]), torch.tensor([rejected])
    assert (preference_loss(c, r) - preference_loss(r, c)).item() == pytest.approx((r - c).item(), abs=1e-4)


@given(REWARD, REWARD, st.floats(-5, 5, width=32))
def test_quality_sees_rewards_relative_to_the_shift(chosen: float, rejected: float, offset: float) -> None:
    c, r, o = torch.tensor([chosen]), torch.tensor([rejected]), torch.tensor(offset)
    moved = quality_loss(c + o, r + o, o).item()
    assert moved == pytest.approx(quality_loss(c, r, 0.0).item(), abs=1e-4)


@given(batches(), st.sampled_from(["response", "token", "square"]), st.data())
@settings(deadline=None)
def test_any_cut_into_micro_batches_adds_up(logps: PairLogps, average: str, data: st.DataObject) -> None:
    number = len(logps.chosen_lengths)
    cut = data.draw(st.integers(1, number - 1))
    whole = mpo_loss(logps, reward_shift=0.3, generation_average=average)
    denominators = Denominators.of(logps.chosen_lengths, average)
    parts = [
        mpo_loss(rows_of(logps, part), reward_shift=0.3, generation_average=average, denominators=denominators)
        for part in (slice(0, cut), slice(cut, number))
    ]
    for name, value in vars(whole).items():
        assert sum(getattr(part, name) for part in parts).item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5)


@given(batches(), st.sampled_from(["response", "token", "square"]), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_pairs_does_not_matter(logps: PairLogps, average: str, rng: object) -> None:
    order = list(range(len(logps.chosen_lengths)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    shuffled = mpo_loss(rows_of(logps, torch.tensor(order)), reward_shift=0.1, generation_average=average)
    total = mpo_loss(logps, reward_shift=0.1, generation_average=average).total.item()
    assert shuffled.total.item() == pytest.approx(total, rel=1e-4, abs=1e-5)


@given(batches())
@settings(deadline=None)
def test_gradient_signs(logps: PairLogps) -> None:
    """No batch makes the chosen response less likely or the rejected one more likely."""
    logps.policy_chosen.requires_grad_()
    logps.policy_rejected.requires_grad_()
    total = mpo_loss(logps, reward_shift=0.0).total
    chosen, rejected = torch.autograd.grad(total, [logps.policy_chosen, logps.policy_rejected])
    assert bool((chosen < 0).all())
    assert bool((rejected >= 0).all())
    assert bool(total.isfinite())


def test_extreme_rewards_stay_finite() -> None:
    extreme = torch.tensor([-1e4, 1e4])
    assert bool(preference_loss(extreme, -extreme).isfinite().all())
    assert bool(quality_loss(extreme, -extreme, 0.0).isfinite().all())
    assert bool(generation_loss(torch.tensor([-1e6]), torch.tensor([1])).isfinite().all())


def test_implicit_rewards() -> None:
    chosen, rejected = implicit_rewards(GOLDEN, beta=0.1)
    assert (chosen.item(), rejected.item()) == (pytest.approx(0.2), pytest.approx(-0.2))
