"""bfloat16 weights with float32 masters: equal to plain float32 training, small steps kept, resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from mpo.doctor.preflight import preflight
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.master_weights import MasterWeights, check_masters
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import preference_rows, tiny_config, tiny_internvl

ADAM: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}


def trainer_for(folder: Path, model: Any = None, **changes: Any) -> MPOTrainer:
    more = {name: changes.pop(name) for name in ("optimizers", "peft_config") if name in changes}
    return MPOTrainer(
        tiny_internvl() if model is None else model,
        args=tiny_config(folder, **changes),
        train_dataset=preference_rows(8),
        processing_class=load_processor(tiny_internvl()),
        **more,
    )


def test_float32_weights_train_as_without_masters_bit_for_bit(tmp_path: Path) -> None:
    """AdamW with decay, clipping and accumulation, through Trainer; the masters are copies."""
    ends = []
    for masters in (False, True):
        model = load_model(tiny_internvl())
        optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
        if masters:
            MasterWeights(optimizer)
        trainer = trainer_for(
            tmp_path / str(masters), model, optimizers=(optimizer, None), max_steps=3, gradient_accumulation_steps=2
        )
        trainer.train()
        ends.append([*(p.detach() for p in trainer.model.parameters())])
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        ends[-1].append(torch.tensor(losses))
    assert all(torch.equal(plain, kept) for plain, kept in zip(*ends, strict=True))


def test_small_steps_are_not_lost() -> None:
    """A step of 1e-6 is 1/4000 of the distance from 1 down to the next number of bfloat16, 1 - 2^-8."""
    pure, kept = (nn.Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(2))
    optimizers = [torch.optim.SGD([weight], lr=1e-6) for weight in (pure, kept)]
    masters = MasterWeights(optimizers[1]).masters
    for _ in range(3000):
        for weight, optimizer in zip((pure, kept), optimizers, strict=True):
            weight.grad = torch.ones(4, dtype=torch.bfloat16 if weight is pure else torch.float32)
            optimizer.step()
        if not bool((masters[0] < 1).all()):
            raise AssertionError("a master stayed")
    assert torch.equal(pure, torch.ones_like(pure))
    assert masters[0][0].item() == pytest.approx(1 - 3e-3, abs=2e-4)
    assert kept[0].item() == 1 - 2**-8


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    """256 gradients of 1/256 beside one of 1: in bfloat16 each of them would vanish."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    MasterWeights(torch.optim.SGD([weight], lr=1.0))
    for size in (1.0, *[2.0**-9] * 256):
        (weight * torch.tensor(size, dtype=torch.bfloat16)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == 1.5


def test_a_resumed_run_is_the_run_that_was_never_cut(tmp_path: Path) -> None:
    """Weights, masters, Adam's states, δ and losses of 2 + 2 steps are those of 4, to the last bit."""
    settings: dict[str, Any] = {"master_weights": True, "optim": "adamw_torch", "learning_rate": 1e-5, "max_steps": 4}
    whole = trainer_for(tmp_path / "whole", **settings)
    whole.train()
    cut = trainer_for(tmp_path / "cut", **settings, save_strategy="steps", save_steps=2)
    cut.train()
    again = trainer_for(tmp_path / "cut", **settings, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert again.model.dtype == torch.bfloat16
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    states = [trainer.optimizer.state_dict() for trainer in (whole, again)]
    masters = [state["master_weights"] for state in states]
    assert all(torch.equal(one, other) for one, other in zip(*masters, strict=True))
    assert any(not torch.equal(master, master.bfloat16().float()) for master in masters[0])  # bits that weights lack
    moments = [[some["exp_avg"] for some in state["state"].values()] for state in states]
    assert all(torch.equal(one, other) for one, other in zip(*moments, strict=True))
    assert whole.reward_shift.state_dict() == again.reward_shift.state_dict()
    logged = [[line["loss"] for line in trainer.state.log_history if "loss" in line] for trainer in (whole, again)]
    assert logged[0][2:] == logged[1][2:]


def test_policy_and_reference_are_one_model_in_bfloat16(tmp_path: Path) -> None:
    found = preflight(trainer_for(tmp_path, master_weights=True, optim="adamw_torch"))
    assert found.step_zero.largest_reward == 0.0
    memory = found.memory
    assert memory.reference == memory.weights  # 2 bytes each
    assert memory.optimizer == 6 * memory.weights  # two states and the master, 4 bytes each
    assert memory.gradients == 2 * memory.weights


def test_a_checkpoint_without_masters_is_refused() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    plain = optimizer.state_dict()
    MasterWeights(optimizer)
    with pytest.raises(
        ConfigError, match="expected the float32 masters of 1 weights in the optimizer's state, got none"
    ):
        optimizer.load_state_dict(plain)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"sharded": True}, "FSDP and DeepSpeed keep float32 weights"),
        ({"ranks": 2}, r"DistributedDataParallel \(2 processes\)"),
        ({"adapters": True}, "adapters train in float32"),
    ],
)
def test_what_cannot_keep_masters_is_named(how: dict[str, Any], named: str) -> None:
    model = nn.Linear(2, 2).bfloat16()
    with pytest.raises(ConfigError, match=f"master_weights=True is not possible: {named}"):
        check_masters(model, **{"sharded": False, "ranks": 1, "adapters": False, **how})


def test_float32_weights_and_adapters_are_refused_by_the_trainer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected trained weights in bfloat16, got float32"):
        trainer_for(tmp_path, load_model(tiny_internvl()), master_weights=True)
    with pytest.raises(ConfigError, match="adapters train in float32"):
        trainer_for(tmp_path, master_weights=True, peft_config=LoraConfig(target_modules=["q_proj"], r=2))
