"""tokens/s and the warning of collapse, in real runs of a tiny InternVL."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest

from mpo.monitors import PATIENCE, TOLERANCE, chosen_changes, stays_below
from mpo.multimodal.messages import prompt_text, response_ids, user_message
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import preference_rows, tiny_config, tiny_internvl

DPO = {"preference_weight": 1.0, "quality_weight": 0.0, "generation_weight": 0.0}


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Messages of `mpo.monitors`; transformers' loggers do not propagate by themselves."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if r.name == "mpo.monitors"]


def trainer_in(folder: Path, **changes: Any) -> MPOTrainer:
    own = {key: changes.pop(key) for key in ("ref_model", "train_dataset", "eval_dataset") if key in changes}
    own.setdefault("train_dataset", preference_rows(4))
    return MPOTrainer(tiny_internvl(), args=tiny_config(folder, **changes), **own)


def lines(trainer: MPOTrainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("layout", ["shared", "paired"])
def test_tokens_are_those_of_the_rows_that_ran(tmp_path: Path, layout: str) -> None:
    """Two micro-batches of two rows per step, one clock tick a log: a shared prompt counts once, a paired one twice."""
    rows = preference_rows(4)
    trainer = trainer_in(tmp_path, layout=layout, train_dataset=rows, gradient_accumulation_steps=2, logging_steps=2)
    trainer.monitor.token_rate.clock = itertools.count().__next__
    trainer.train()
    processor = trainer.processing_class
    expected = 0
    for row in rows:
        text = prompt_text(processor, [user_message(row["prompt"][0]["content"], 1)])
        prompt = len(processor(text=[text], images=[row["images"]])["input_ids"][0])
        both = [len(response_ids(processor, row[side][0]["content"])) for side in ("chosen", "rejected")]
        # packed: prompt[:-1] | p_last, chosen | p_last, rejected
        expected += prompt - 1 + 1 + 1 + sum(both) if layout == "shared" else 2 * prompt + sum(both)
    assert [line["tokens/s"] for line in lines(trainer)] == [2 * expected]  # every row once per step, two steps


def test_tokens_a_second_of_a_real_clock(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, max_steps=3, eval_dataset=preference_rows(2), eval_strategy="steps", eval_steps=1)
    trainer.train()
    rates = [line["tokens/s"] for line in lines(trainer)]
    assert len(rates) == 3
    assert all(10 < rate < 1e6 for rate in rates)
    assert not any("tokens/s" in name for line in trainer.state.log_history if "eval_loss" in line for name in line)


def test_the_chosen_log_prob_beside_its_start(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, max_steps=2, per_device_train_batch_size=4)
    trainer.train()
    first, second = lines(trainer)
    start = first["logps/chosen_per_token_reference"]
    assert first["logps/chosen_per_token"] == start == pytest.approx(-first["loss/generation"], abs=1e-6)
    assert second["logps/chosen_per_token_reference"] == pytest.approx(start, abs=1e-6)  # the same four rows
    assert second["logps/chosen_per_token"] > start + TOLERANCE  # L_g raises it
    changes = chosen_changes(trainer.state.log_history, starts_at_reference=True)
    assert changes == pytest.approx([0.0, second["logps/chosen_per_token"] - start], abs=1e-6)


@pytest.fixture(scope="module")
def confident(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has learned the chosen responses of `close_rows`."""
    folder = tmp_path_factory.mktemp("confident")
    alone = {"preference_weight": 0.0, "quality_weight": 0.0, "generation_weight": 1.0}
    settings = {**alone, "max_steps": 40, "report_to": "none", "optim": "adamw_torch", "learning_rate": 3e-3}
    trainer = trainer_in(folder, train_dataset=close_rows(), **settings)
    trainer.train()
    trainer.save_model()
    return folder


def close_rows() -> list[Any]:
    """Two pairs whose sides differ in their first digit alone: what lowers the rest of one lowers that of the other."""
    rows = preference_rows(2)
    for row in rows:
        for side, digit in (("chosen", 1), ("rejected", 2)):
            row[side] = [{"role": "assistant", "content": f"{digit} one two three four five six seven "}]
    return rows


def preferring(policy: Path, folder: Path, **changes: Any) -> MPOTrainer:
    """DPO on the close rows, from the confident policy."""
    settings = {"max_steps": 12, "learning_rate": 0.3, **DPO, **changes}
    return MPOTrainer(str(policy), args=tiny_config(folder, **settings), train_dataset=close_rows())


def test_collapse_is_said_once_and_not_again_after_a_resume(confident: Path, tmp_path: Path, warnings: Any) -> None:
    trainer = preferring(confident, tmp_path, save_strategy="steps", save_steps=10)
    trainer.train()
    changes = chosen_changes(trainer.state.log_history, starts_at_reference=True)
    assert lines(trainer)[-1]["rewards/margins"] > 5  # it has learned the preference nevertheless
    (message,) = warnings()
    step = next(end for end in range(len(changes) + 1) if stays_below(changes[:end]))
    assert PATIENCE <= step < 10
    assert f"step {step}: the chosen responses" in message
    assert f"{-changes[step - 1]:.3f} below the start" in message
    assert "raise generation_weight" in message

    resumed = preferring(confident, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert chosen_changes(resumed.state.log_history, starts_at_reference=True) == pytest.approx(changes, abs=1e-6)
    assert len(warnings()) == 1


def test_collapse_is_counted_across_a_resume(confident: Path, tmp_path: Path, warnings: Any) -> None:
    """Fewer than `PATIENCE` lines below before the resume, and fewer after it."""
    trainer = preferring(confident, tmp_path, save_strategy="steps", save_steps=1)
    trainer.train()
    changes = chosen_changes(trainer.state.log_history, starts_at_reference=True)
    step = next(end for end in range(len(changes) + 1) if stays_below(changes[:end]))
    assert len(warnings()) == 1
    resumed = preferring(confident, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step - 2}"))
    assert [message.split(":")[0] for message in warnings()] == [f"step {step}"] * 2


def test_mpo_on_the_same_rows_does_not_collapse(confident: Path, tmp_path: Path, warnings: Any) -> None:
    trainer = preferring(confident, tmp_path, preference_weight=0.8, quality_weight=0.2, generation_weight=1.0)
    trainer.train()
    assert chosen_changes(trainer.state.log_history, starts_at_reference=True)[-1] > TOLERANCE
    assert warnings() == []


def test_another_reference_is_not_the_start(tmp_path: Path) -> None:
    """Policy minus reference of 0.3 at the first line: a fall counts from there."""
    history = [
        {"loss": 1.0, "logps/chosen_per_token": value, "logps/chosen_per_token_reference": -1.0}
        for value in (-0.7, -0.8)
    ]
    assert chosen_changes(history, starts_at_reference=False) == pytest.approx([0.0, -0.1])
    assert chosen_changes(history, starts_at_reference=True) == pytest.approx([0.3, 0.2])
    assert chosen_changes([], starts_at_reference=False) == []
    assert not trainer_in(tmp_path, ref_model=tiny_internvl()).monitor.starts_at_reference


def test_patience_and_tolerance() -> None:
    below, within = -TOLERANCE - 1e-6, -TOLERANCE + 1e-6
    assert stays_below([below] * PATIENCE)
    assert not stays_below([below] * (PATIENCE - 1))
    assert not stays_below([*[below] * (PATIENCE - 1), within])
    assert not stays_below([float("nan"), *[below] * (PATIENCE - 1)])
