"""One guard for every trainer: no loss, gradient or weight that is not finite is stepped on, saved or loaded."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpo.multimodal.errors import ConfigError, NonFiniteLossError
from mpo.multimodal.loading import load_model
from mpo.trainer import MPOTrainer
from recipes.config import SampleConfig, TrainPRMConfig, WarmStartConfig
from recipes.data.sample import sample
from recipes.stage.folder import MANIFEST
from recipes.stage.groups import read_problems
from recipes.training.train_prm import train_prm
from recipes.training.warm_start import warm_start
from rewards.prm.model_prm import ModelPRM
from rewards.types import Completion, MonteCarloCount, Rollout, RolloutGroup
from tests.mpo.tiny import preference_rows, tiny_config, tiny_internvl
from tests.recipes.run_folders import make_problems, write_stage

DIVERGES = 1e30


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    problems = make_problems(tmp_path, "labelled", 6, random.Random(0))
    counts = tuple(MonteCarloCount(right, 4) for right in (4, 2))
    rollout = Rollout(Completion("Red is 3\n\nFinal answer: 3"), mc=counts, label_source="mc:full:4")
    groups = [RolloutGroup(problem, (rollout,)) for problem in read_problems(problems).values()]
    return write_stage(tmp_path / "groups", groups, problems)


def with_weight(model: Path, folder: Path, value: float) -> Path:
    """A copy of a model in which one number of one weight is another."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, weight in weights.items() if weight.dim() == 2 and "embed_tokens" in name)
    weights[name][0, 0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def prm_config(groups: Path, model: Path, out: Path, **changes: Any) -> TrainPRMConfig:
    given = {"prm_format": "step_end", "max_steps": 6, "batch_groups": 2, **changes}
    return TrainPRMConfig(groups=groups, model=model, out=out, **given)


def test_a_prm_that_diverges_is_not_finished(labelled: Path, policy_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "prm"
    with pytest.raises(NonFiniteLossError, match=r"finite (loss|gradient|weights)"):
        train_prm(prm_config(labelled, policy_folder, out, learning_rate=DIVERGES))
    assert not (out / MANIFEST).exists()
    assert not (out / "model.safetensors").exists()


def test_a_prm_that_diverges_keeps_the_last_finite_checkpoint(
    labelled: Path, policy_folder: Path, tmp_path: Path
) -> None:
    """With a checkpoint at every step, none that is on the disk holds NaN."""
    out = tmp_path / "prm"
    with pytest.raises(NonFiniteLossError):
        train_prm(prm_config(labelled, policy_folder, out, learning_rate=DIVERGES, save_steps=1))
    for file in out.glob("checkpoint-*/model.safetensors"):
        assert all(bool(weight.isfinite().all()) for weight in load_file(file).values()), file


def test_a_prms_guard_names_the_problems(labelled: Path, policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"micro-batch of \[labelled-\d+"):
        train_prm(prm_config(labelled, policy_folder, tmp_path / "prm", learning_rate=DIVERGES))


def test_a_warm_start_that_diverges_is_not_finished(labelled: Path, policy_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "warm"
    with pytest.raises(NonFiniteLossError):
        warm_start(
            WarmStartConfig(policy=policy_folder, demonstrations=labelled, out=out, learning_rate=DIVERGES, max_steps=6)
        )
    assert not (out / MANIFEST).exists()
    assert not (out / "model.safetensors").exists()


def test_the_last_step_is_looked_at_too(tmp_path: Path) -> None:
    """A finite gradient times such a rate overflows the weights, and no loss follows that would show it."""
    args = tiny_config(tmp_path, max_steps=1, learning_rate=3e38, max_grad_norm=1e9)
    trainer = MPOTrainer(tiny_internvl(), args=args, train_dataset=preference_rows(2))
    trainer.train()
    with pytest.raises(NonFiniteLossError, match="finite weights after step 1"):
        trainer.save_model(str(tmp_path))
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("load", [load_model, lambda path: ModelPRM.load(path, prm_format="step_end")])
def test_weights_that_are_not_finite_are_refused(
    load: Callable[[Path], Any], value: float, policy_folder: Path, tmp_path: Path
) -> None:
    model = with_weight(policy_folder, tmp_path / "model", value)
    with pytest.raises(ConfigError, match=r"holds NaN or infinity in .*embed_tokens"):
        load(model)


def test_no_stage_starts_from_such_weights(labelled: Path, policy_folder: Path, tmp_path: Path) -> None:
    model = with_weight(policy_folder, tmp_path / "model", math.nan)
    with pytest.raises(ConfigError, match="NaN or infinity"):
        train_prm(prm_config(labelled, model, tmp_path / "prm"))
    drawing = SampleConfig(policy=model, problems=tmp_path / "labelled.jsonl", out=tmp_path / "samples")
    with pytest.raises(ConfigError, match="NaN or infinity"):
        sample(replace(drawing, num_samples=1, max_new_tokens=4))


def test_half_precision_is_looked_at_as_well(policy_folder: Path, tmp_path: Path) -> None:
    """1e38 is finite in bfloat16 and float32, and too much for float16."""
    model = with_weight(policy_folder, tmp_path / "model", 1e38)
    load_model(model, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="NaN or infinity"):
        load_model(model, dtype=torch.float16)
