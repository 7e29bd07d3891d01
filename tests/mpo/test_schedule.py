"""No run that trains nothing: the first step has a rate, small data gets steps, and weights that stay are an error."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_processor
from mpo.multimodal.schedule import Schedule, checksums, rising_from_the_first_step
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import preference_row, preference_rows, tiny_config, tiny_internvl


def rates(warmup: int, steps: int) -> list[float]:
    """The rates that a run of so many steps takes, peak 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    rising_from_the_first_step(scheduler, optimizer, warmup)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_a_warm_up_starts_above_zero() -> None:
    """(s+1)/(w+1) in the warm-up; then transformers' own cosine: 1 at its first step."""
    assert rates(3, 8)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates(1, 1) == [0.5]
    assert min(rates(5, 100)) > 0
    assert rates(0, 4)[0] == 1.0  # no warm-up: left as it is
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    other = torch.optim.lr_scheduler.ConstantLR(optimizer)
    assert rising_from_the_first_step(other, optimizer, 3) is other


def test_the_schedule_of_a_resumed_run_goes_on() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = rising_from_the_first_step(get_cosine_schedule_with_warmup(optimizer, 3, 8), optimizer, 3)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    again = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    resumed = rising_from_the_first_step(get_cosine_schedule_with_warmup(again, 3, 8), again, 3)
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert isinstance(resumed, LambdaLR)
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.75


@pytest.mark.parametrize("settings", [{"max_steps": 1}, {"max_steps": -1, "num_train_epochs": 1.0}])
def test_one_step_with_warm_up_trains(tmp_path: Path, settings: dict[str, Any]) -> None:
    """256 pairs per step and 62 pairs: one step, whose rate was 0 and which changed nothing, exit code 0."""
    trainer = trainer_in(
        tmp_path, warmup_steps=0.03, lr_scheduler_type="cosine", per_device_train_batch_size=8, **settings
    )
    before = checksums(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.state.log_history[0]["learning_rate"] > 0
    assert checksums(trainer.model) != before


def test_weights_that_stay_are_an_error(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, rows=[preference_row(i, weight=0.0) for i in range(8)], max_steps=2)
    with pytest.raises(ConfigError, match=r"2 optimizer steps changed none of \d+ trained tensors"):
        trainer.train()
    with pytest.raises(ConfigError, match="learning_rate must be above 0"):
        trainer_in(tmp_path, learning_rate=0.0)


def test_what_stands_out_is_said_before_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trainer_in(tmp_path, max_steps=9, per_device_train_batch_size=8)
    assert "9 optimizer steps: fewer than 10" in caplog.text
    assert "each row is seen 9.0 times" in caplog.text


def test_advice_by_hand() -> None:
    large = {"rows": 1000, "rows_per_step": 10, "parameters": 8_000_000_000}
    assert Schedule(steps=100, peak=1e-6, adapters=False, **large).warnings() == []
    assert Schedule(steps=100, peak=1e-4, adapters=True, **large).warnings() == []
    (high,) = Schedule(steps=100, peak=2e-4, adapters=False, **large).warnings()
    assert "0.0002 is high: for all weights of a model of 8.0 billion" in high
    (often,) = Schedule(steps=501, peak=1e-6, adapters=False, **large).warnings()
    assert "5.0 times" in often
    stream = Schedule(steps=500, rows=0, rows_per_step=10, peak=1e-6, parameters=1, adapters=False)
    assert stream.epochs == 0.0
    assert stream.warnings() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_checksums_see_one_bit_and_a_swap(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 4).to(dtype)
    before = checksums(layer)
    assert len(before) == 2
    with torch.no_grad():
        layer.weight[0], layer.weight[1] = layer.weight[1].clone(), layer.weight[0].clone()
    swapped = checksums(layer)
    assert swapped[0] != before[0]
    with torch.no_grad():
        layer.bias.view(torch.uint8)[0] ^= 1
    assert checksums(layer)[1] != before[1]
    layer.bias.requires_grad_(False)
    assert len(checksums(layer)) == 1


def trainer_in(folder: Path, *, rows: list[Any] | None = None, **changes: Any) -> MPOTrainer:
    return MPOTrainer(
        tiny_internvl(),
        args=tiny_config(folder, **changes),
        train_dataset=rows or preference_rows(8),
        processing_class=load_processor(tiny_internvl()),
    )
