"""Micro-batches one at a time: their step's counts are known before they are made."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.whole_steps import MicroBatches, PlannedBatches
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import preference_rows, tiny_config, tiny_internvl


def trainer(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> MPOTrainer:
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 6, "max_steps": 3, **settings}
    return MPOTrainer(tiny_internvl(), args=tiny_config(folder, **settings), train_dataset=rows)


def weights(run: MPOTrainer) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in run.model.parameters()]


@pytest.mark.parametrize("workers", [0, 1])
def test_one_micro_batch_is_alive_at_a_time(tmp_path: Path, workers: int) -> None:
    """Of six per step: one is trained on; in this process one more waits in accelerate's loader."""
    run = trainer(tmp_path, preference_rows(9), dataloader_num_workers=workers)
    pixels: list[weakref.ref[torch.Tensor]] = []
    trained: list[int] = []
    compute_loss, prepare = run.compute_loss, run._prepare_inputs

    def prepared(inputs: Any) -> Any:
        pixels.append(weakref.ref(inputs["pixel_values"]))
        return prepare(inputs)

    def counted(model: Any, inputs: Any, **more: Any) -> Any:
        trained.append(sum(pixel() is not None for pixel in pixels))
        return compute_loss(model, inputs, **more)

    run._prepare_inputs, run.compute_loss = prepared, counted  # type: ignore[method-assign]
    run.train()
    assert len(trained) == 6 + 3 + 6
    assert set(trained) == {1}


def test_workers_end_with_what_they_worked_for(tmp_path: Path) -> None:
    """Left to Python's collector they were told too late, and it waited five seconds for each: 20 s after a training
    on a GPU, whose loaders have four."""
    ahead = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2}
    args = tiny_config(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, **ahead)
    run = MPOTrainer(tiny_internvl(), args=args, train_dataset=preference_rows(8), eval_dataset=preference_rows(4))
    mine = psutil.Process()
    before = {child.pid for child in mine.children()}
    run.train()
    assert {child.pid for child in mine.children()} <= before
    run.evaluate()
    assert {child.pid for child in mine.children()} <= before


@pytest.mark.parametrize("average", ["response", "token", "square"])
def test_steps_are_those_of_micro_batches_made_first(tmp_path: Path, average: str) -> None:
    lazy = trainer(tmp_path / "lazy", preference_rows(8), generation_average=average)
    first = trainer(tmp_path / "first", preference_rows(8), generation_average=average)
    first._chosen_tokens = None
    for run in (lazy, first):
        run.train()
    for one, other in zip(weights(lazy), weights(first), strict=True):
        assert torch.equal(one, other)


def test_a_run_that_goes_on_in_mid_epoch_knows_its_rows(tmp_path: Path) -> None:
    """Twenty rows, four per step: the checkpoint lies in the middle of an epoch, the end in the next."""
    settings = {"gradient_accumulation_steps": 4, "max_steps": 7}
    straight = trainer(tmp_path / "straight", preference_rows(20), **settings)
    straight.train()
    cut = {**settings, "save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path / "cut", preference_rows(20), **cut).train()
    resumed = trainer(tmp_path / "cut", preference_rows(20), **cut)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    for one, other in zip(weights(resumed), weights(straight), strict=True):
        assert torch.equal(one, other)


def test_a_row_that_changes_is_an_error(tmp_path: Path) -> None:
    rows = preference_rows(6)
    run = trainer(tmp_path, rows)
    rows[3]["chosen"] = [{"role": "assistant", "content": "another response of more words"}]
    with pytest.raises(ConfigError, match=r"the pairs \['pair-3'\] have \[\d+\] chosen tokens, and had \[\d+\] when"):
        run.train()


def test_an_epoch_is_planned_when_its_first_batch_is_asked_for() -> None:
    planned = PlannedBatches([[2, 0], [1]])
    batches = iter(planned)
    assert planned.plan == []
    assert next(batches) == [2, 0]
    assert planned.plan == [[2, 0], [1]]
    assert len(planned) == 2


def test_a_micro_batch_is_emptied_once_it_is_done() -> None:
    held = [{"rows": [place]} for place in range(3)]
    full = []
    for _ in MicroBatches(held[0], iter(held[1:]), [[0], [1], [2]], lambda batch, rows: batch):
        full.append([bool(batch) for batch in held])
    assert full == [[True, True, True], [False, True, True], [False, False, True]]
    assert not any(held)
