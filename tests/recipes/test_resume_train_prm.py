"""`mpo train-prm` killed by SIGKILL goes on from its checkpoint, to the weights of the run that was not killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mpo.multimodal.errors import FingerprintError
from mpo.multimodal.loading import load_model
from recipes.config import TrainPRMConfig
from recipes.groups import read_problems
from recipes.run import open_stage
from recipes.train_prm import train_prm
from recipes.training import checkpoint_to_resume
from rewards.prm.model_prm import ModelPRM
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, RolloutGroup
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
        max_steps=24,
        batch_groups=2,
        save_steps=4,
    )


def killed_after_a_checkpoint(settings: TrainPRMConfig) -> None:
    """Run the stage in a process of its own and kill it when its first checkpoint is whole."""
    flags = [f"--{key}={value}" for key, value in asdict(settings).items()]
    child = subprocess.Popen([sys.executable, "-m", "recipes.cli", "train-prm", *flags], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not (settings.out / "checkpoint-4" / "trainer_state.json").exists() and time.monotonic() < deadline:
        assert child.poll() is None, "the stage ended before it was killed"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def test_a_killed_run_goes_on_to_the_same_weights(settings: TrainPRMConfig) -> None:
    killed_after_a_checkpoint(settings)
    assert not (settings.out / "manifest.json").exists()
    with pytest.raises(FingerprintError, match="holds checkpoints of other settings or inputs"):
        train_prm(replace(settings, learning_rate=0.5))
    cut_off = settings.out / "checkpoint-99"  # killed inside its save: no trainer_state.json
    cut_off.mkdir()
    stage = open_stage("train-prm", settings, inputs=[settings.groups, settings.model])
    resumed_from = Path(checkpoint_to_resume(stage) or "")
    assert resumed_from.name.startswith("checkpoint-")
    assert resumed_from != cut_off
    cut_off.rmdir()

    train_prm(settings)
    train_prm(replace(settings, out=settings.out.parent / "straight", save_steps=0))
    resumed, straight = (load_model(folder).state_dict() for folder in (settings.out, settings.out.parent / "straight"))
    before = load_model(settings.model).state_dict()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert any(not torch.equal(straight[name], before[name]) for name in straight)
    assert len(ModelPRM.load(settings.out).score(Problem("q", "What?"), TEXTS)) == 2
