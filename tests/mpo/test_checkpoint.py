"""Checkpoints are whole or skipped; a resumed run is the run that it was."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kill_run
import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mpo.multimodal.checkpoint_files import MANIFEST, PREFIX, faults_of, newest_complete, write_manifest
from mpo.multimodal.errors import ConfigError, StageError
from mpo.trainer import REWARD_SHIFT_FILE, MPOTrainer
from tests.mpo.kill_run import KILLS, STEPS, train
from tests.mpo.tiny import preference_rows, tiny_config, tiny_internvl

ROOT = Path(__file__).resolve().parents[2]
SAVING: dict[str, Any] = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}


def trainer_in(folder: Path, **changes: Any) -> MPOTrainer:
    rows = changes.pop("rows", None) or preference_rows(6)
    return MPOTrainer(tiny_internvl(), args=tiny_config(folder, **(SAVING | changes)), train_dataset=rows)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints 1, 2 and 3."""
    trainer_in(tmp_path).train()
    return tmp_path


def test_a_checkpoint_vouches_for_every_file(run: Path) -> None:
    for step in (1, 2, 3):
        folder = run / f"checkpoint-{step}"
        assert faults_of(folder) == []
        named = json.loads((folder / MANIFEST).read_text())["files"]
        assert named.keys() == {path.name for path in folder.iterdir()} - {MANIFEST}
        assert {"model.safetensors", "optimizer.pt", "trainer_state.json", REWARD_SHIFT_FILE} <= named.keys()


def damage_bytes(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def truncate(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes((folder / "optimizer.pt").read_bytes()[:-7])


def remove(folder: Path) -> None:
    (folder / REWARD_SHIFT_FILE).unlink()


def unfinished(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def nonsense(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")


@pytest.mark.parametrize(
    ("hurt", "fault"),
    [
        (damage_bytes, "model.safetensors does not match its SHA-256"),
        (truncate, r"optimizer.pt has \d+ bytes, expected \d+"),
        (remove, f"{REWARD_SHIFT_FILE} is missing"),
        (unfinished, "the save did not finish"),
        (nonsense, f"{MANIFEST} cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_checkpoint_is_skipped_or_refused_by_name(run: Path, hurt: Any, fault: str) -> None:
    hurt(run / "checkpoint-3")
    assert newest_complete(run) == run / "checkpoint-2"
    with pytest.raises(StageError, match=rf"checkpoint-3: .*{fault}.*pass True"):
        trainer_in(run).train(resume_from_checkpoint=str(run / "checkpoint-3"))
    resumed = trainer_in(run)
    resumed.train(resume_from_checkpoint=True)
    assert [row["step"] for row in resumed.state.log_history if "loss" in row] == [1, 2, 3]
    assert faults_of(run / "checkpoint-3") == []


@pytest.mark.parametrize("steps", [2, 3], ids=["within an epoch", "at its end"])
def test_a_run_that_is_done_takes_no_further_step(tmp_path: Path, steps: int) -> None:
    """A kill between the last checkpoint and the saved model: with a constant rate one more step is other weights."""
    changes = {"max_steps": steps, "lr_scheduler_type": "constant", "learning_rate": 1e-3}
    done = trainer_in(tmp_path, **changes)
    done.train()
    again = trainer_in(tmp_path, **changes)
    again.train(resume_from_checkpoint=True)
    assert (done.state.global_step, again.state.global_step) == (steps, steps)
    assert again.reward_shift.state_dict() == done.reward_shift.state_dict()
    for (name, one), other in zip(done.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_nothing_to_resume_says_why(run: Path, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        remove(run / f"checkpoint-{step}")
    with pytest.raises(StageError, match=r"checkpoint-3: .*missing; checkpoint-2: .*missing; checkpoint-1"):
        trainer_in(run).train(resume_from_checkpoint=True)
    with pytest.raises(StageError, match="it holds no checkpoint"):
        newest_complete(tmp_path / "empty")


def test_another_runs_settings_are_refused_with_all_differences(run: Path) -> None:
    changes: dict[str, Any] = {"beta": 0.2, "per_device_train_batch_size": 1, "rows": preference_rows(5)}
    with pytest.raises(ConfigError) as refused:
        trainer_in(run, **changes).train(resume_from_checkpoint=True)
    for part in ("beta: 1.0 then, 0.2 now", "rows_a_step: 2 then, 1 now", "train_rows: '6 rows, ", "'5 rows, "):
        assert part in str(refused.value)
    allowed = trainer_in(run, **changes, allow_config_change=True, max_steps=4)
    allowed.train(resume_from_checkpoint=True)
    assert allowed.state.global_step == 4


def test_the_same_batch_cut_otherwise_is_the_same_run(run: Path) -> None:
    cut = trainer_in(
        run, per_device_train_batch_size=1, gradient_accumulation_steps=2, logging_steps=2, output_dir=str(run)
    )
    cut.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert cut.state.global_step == 3


def test_a_step_that_is_saved_again_keeps_no_files_of_the_first_time(run: Path) -> None:
    """Another number of ranks leaves other files; a random state of before must not be read later."""
    (run / "checkpoint-3" / "rng_state_1.pth").write_bytes(b"of two ranks")
    trainer_in(run).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert not (run / "checkpoint-3" / "rng_state_1.pth").exists()
    assert faults_of(run / "checkpoint-3") == []


def test_a_checkpoint_of_other_ranks(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Plain weights go on, with a warning about dropout; DeepSpeed's shards cannot. test_ranks.py runs real ranks."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    folder = run / "checkpoint-2"
    write_manifest(folder, json.loads((folder / MANIFEST).read_text())["settings"], ranks=4)
    resumed = trainer_in(run)
    resumed.train(resume_from_checkpoint=str(folder))
    assert resumed.state.global_step == 3
    assert "resuming on 1 ranks a checkpoint that 4 ranks saved: dropout" in caplog.text
    sharded = trainer_in(run)
    sharded.is_deepspeed_enabled = True
    with pytest.raises(ConfigError, match=r"DeepSpeed on 4 ranks, this run has 1: .* start 4 processes"):
        sharded.train(resume_from_checkpoint=str(folder))


def test_old_checkpoints_go_only_after_a_complete_one(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, save_total_limit=1)
    seen: list[list[str]] = []
    save_own_state = trainer._save_own_state

    def spy(folder: Path) -> None:
        seen.append(sorted(path.name for path in tmp_path.glob("checkpoint-*") if not faults_of(path)))
        save_own_state(folder)

    trainer._save_own_state = spy  # type: ignore[method-assign]
    trainer.train()
    assert seen == [[], ["checkpoint-1"], ["checkpoint-2"]]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert trainer.args.save_total_limit == 1


@pytest.mark.timeout(300)
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    """Weights and δ after 20 SIGKILLs, five of them inside a save, are bit by bit those of an undisturbed run."""
    command = [sys.executable, str(Path(kill_run.__file__)), str(tmp_path / "killed")]
    (tmp_path / "killed").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["kills"], report["inside"], report["status"]) == (KILLS, KILLS // 4, 0)

    train(tmp_path / "straight")
    last = [tmp_path / name / f"checkpoint-{STEPS}" for name in ("killed", "straight")]
    killed, straight = (load_file(folder / "model.safetensors") for folder in last)
    assert killed.keys() == straight.keys()
    assert all((killed[name] == straight[name]).all() for name in straight)
    assert len({(folder / REWARD_SHIFT_FILE).read_text() for folder in last}) == 1


def test_times_of_files_do_not_matter_to_which_checkpoints_are_kept(tmp_path: Path) -> None:
    """The clock was ahead when the first checkpoints were written: they look newer than those that follow."""
    trainer_in(tmp_path, max_steps=2).train()
    for folder in tmp_path.glob("checkpoint-*"):
        os.utime(folder, (4e9, 4e9))
    trainer = trainer_in(tmp_path, max_steps=2, save_total_limit=2)
    trainer.args.max_steps = 4
    trainer.args.allow_config_change = True
    trainer.train(resume_from_checkpoint=True)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}


def test_a_damaged_later_checkpoint_does_not_cost_the_good_ones(run: Path) -> None:
    """Two of three are damaged: what is written after going on from the first stays, and takes their places."""
    for step in (2, 3):
        damage_bytes(run / f"checkpoint-{step}")
    trainer = trainer_in(run, save_total_limit=1)
    trainer.train(resume_from_checkpoint=True)
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-3"}
    assert faults_of(run / "checkpoint-3") == []


def test_the_folders_have_the_name_that_transformers_gives_them() -> None:
    assert PREFIX == PREFIX_CHECKPOINT_DIR
