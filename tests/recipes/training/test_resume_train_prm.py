"""`mpo train-prm` killed by SIGKILL goes on to the weights of a run that was not killed; two processes are one run."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mpo.multimodal.checkpoint_files import MANIFEST as COMPLETE
from mpo.multimodal.errors import FingerprintError
from mpo.multimodal.loading import load_model
from recipes.config import TrainPRMConfig
from recipes.stage.folder import MANIFEST, manifest_of
from recipes.stage.groups import read_problems
from recipes.training.train_prm import train_prm
from rewards.prm.model_prm import ModelPRM
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, RolloutGroup
from tests.ranks import launched
from tests.recipes.run_folders import make_problems, write_stage

TEXTS = ["Red is 3\n\nBlue is 9\n\nFinal answer: 12", "Red is 4\n\nFinal answer: 4"]
COUNTS = [[(4, 4), (3, 4), (2, 4)], [(1, 4), (0, 4)]]


@pytest.fixture
def settings(tmp_path: Path, policy_folder: Path) -> TrainPRMConfig:
    problems = make_problems(tmp_path, "labelled", 12, random.Random(0))
    rollouts = tuple(
        Rollout(Completion(text), mc=tuple(MonteCarloCount(*pair) for pair in counts), label_source="mc:full:4")
        for text, counts in zip(TEXTS, COUNTS, strict=True)
    )
    groups = [RolloutGroup(problem, rollouts) for problem in read_problems(problems).values()]
    return TrainPRMConfig(
        groups=write_stage(tmp_path / "groups", groups, problems),
        model=policy_folder,
        out=tmp_path / "prm",
        prm_format="step_end",
        threshold=0.25,
        max_doubt=0.4,
        balance_classes=True,
        lora_rank=2,
        lora_alpha=4,
        max_steps=24,
        batch_groups=2,
        save_steps=4,
    )


def flags_of(settings: TrainPRMConfig) -> list[str]:
    """As on a command line; lists keep their defaults."""
    return [
        f"--{key}={value}" for key, value in asdict(settings).items() if not (value is None or isinstance(value, list))
    ]


def killed_after_a_checkpoint(settings: TrainPRMConfig) -> None:
    """Run the stage in a process of its own and kill it when its first checkpoint is whole."""
    flags = flags_of(settings)
    child = subprocess.Popen([sys.executable, "-m", "recipes.cli", "train-prm", *flags], stderr=subprocess.DEVNULL)
    whole = settings.out / "checkpoint-4" / COMPLETE
    deadline = time.monotonic() + 180
    while not whole.exists() and time.monotonic() < deadline:
        assert child.poll() is None, "the stage ended before it was killed"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert whole.exists(), "no checkpoint in time"
    assert child.wait() == -signal.SIGKILL


def test_a_killed_run_goes_on_to_the_same_weights(settings: TrainPRMConfig) -> None:
    killed_after_a_checkpoint(settings)
    assert not (settings.out / MANIFEST).exists()
    with pytest.raises(FingerprintError, match="made with other learning_rate"):
        train_prm(replace(settings, learning_rate=0.5))
    cut_off = settings.out / "checkpoint-99"  # killed inside its save: no manifest
    cut_off.mkdir()

    train_prm(settings)
    train_prm(replace(settings, out=settings.out.parent / "straight", save_steps=0))
    resumed, straight = (load_model(folder).state_dict() for folder in (settings.out, settings.out.parent / "straight"))
    before = load_model(settings.model).state_dict()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert any(not torch.equal(straight[name], before[name]) for name in straight)
    assert len(ModelPRM.load(settings.out).score(Problem("q", "What?"), TEXTS)) == 2


def test_two_processes_are_one_run_and_one_goes_on_from_it(settings: TrainPRMConfig) -> None:
    """Only the first process writes; what both saved, one process takes to the same end."""
    settings = replace(settings, max_steps=8)
    one = train_prm(replace(settings, out=settings.out.parent / "one"))
    flags = flags_of(settings)
    errors = launched("accelerate", "-m", "recipes.cli", "train-prm", *flags)
    assert "Traceback" not in errors
    written = [{path.name for path in folder.iterdir()} for folder in (settings.out, one)]
    assert written[0] == written[1]
    saved = settings.out / "checkpoint-4"
    assert json.loads((saved / COMPLETE).read_text())["ranks"] == 2
    assert manifest_of(settings.out)["counts"] == manifest_of(one)["counts"]
    logs = [json.loads((folder / "log_history.json").read_text()) for folder in (settings.out, one)]
    two_ranks, one_rank = ([line["train_loss"] for line in log if "train_loss" in line] for log in logs)
    assert two_ranks == pytest.approx(one_rank, rel=1e-2)  # the Trainer's end of a run: the first rank's share alone
    assert len(one_rank) == 1
    assert moved(settings.out, one) < 1e-2 * moved(one, settings.model)

    shutil.rmtree(settings.out / "checkpoint-8")  # as if both had been killed
    for name in (MANIFEST, "model.safetensors"):
        (settings.out / name).unlink()
    train_prm(settings)
    assert moved(settings.out, one) < 1e-2 * moved(one, settings.model)


def moved(folder: Path, start: Path) -> float:
    """Norm of the difference of two models' weights."""
    ours, theirs = (load_model(path).state_dict() for path in (folder, start))
    return float(torch.stack([(ours[name] - theirs[name]).norm() for name in theirs]).norm())


def test_a_step_that_two_processes_cannot_share_is_refused(settings: TrainPRMConfig) -> None:
    flags = flags_of(replace(settings, batch_groups=3))
    errors = launched("accelerate", "-m", "recipes.cli", "train-prm", *flags, code=1)
    assert "batch_groups=3 rows per step cannot be cut into micro-batches of 1 on 2 processes" in errors
