"""`mpo train-prm` with the settings of large models: bfloat16, checkpointing, frozen vision, epochs, adapters."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import Qwen2Config

from mpo.multimodal.errors import DataError
from mpo.multimodal.loading import load_model, load_processor, stored_dtype
from mpo.multimodal.prompt_length import PromptLength
from recipes.cli import main
from recipes.config import TrainPRMConfig
from recipes.stage.folder import MANIFEST, manifest_of
from recipes.stage.groups import read_problems
from recipes.training.train_prm import train_prm
from recipes.training.weights import choose_trained
from rewards.prm.formats import find_format
from rewards.prm.label_head import Qwen2ProcessRewardModel
from rewards.prm.model_prm import ModelPRM
from rewards.prm.rendering import row_length
from rewards.steps import split_into
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, RolloutGroup
from tests.recipes.run_folders import make_problems, write_stage

TEXTS = ["Red is 3\n\nBlue is 9\n\nFinal answer: 12", "Red is 4\n\nFinal answer: 4"]
LONG = "Red is 4\n\nBlue is 9\n\nGreen is 7\n\nThe sum is 20\n\nFinal answer: 20"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Path:
    """A tiny InternVL that is stored in bfloat16."""
    folder = tmp_path_factory.mktemp("half")
    load_model(policy_folder).to(torch.bfloat16).save_pretrained(folder)
    load_processor(policy_folder).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(tmp_path: Path, half: Path) -> TrainPRMConfig:
    problems = make_problems(tmp_path, "labelled", 6, random.Random(0))
    rollouts = tuple(
        Rollout(Completion(text), mc=tuple(MonteCarloCount(2 - i % 2, 4) for i in range(text.count("\n\n") + 1)))
        for text in (*TEXTS, LONG)
    )
    groups = [RolloutGroup(problem, rollouts) for problem in read_problems(problems).values()]
    return TrainPRMConfig(
        groups=write_stage(tmp_path / "groups", groups, problems),
        model=half,
        out=tmp_path / "prm",
        threshold=0.25,
        epochs=2.0,
        min_steps=0,
        batch_groups=2,
        per_device_batch=1,
        gradient_checkpointing=True,
        freeze_vision=True,
        max_length=between_second_longest_and_longest(half, next(iter(groups))),
        save_steps=2,
    )


def between_second_longest_and_longest(model: Path, group: RolloutGroup) -> int:
    processor, prm_format = load_processor(model), find_format("visualprm")
    count = PromptLength(processor)
    steps = [split_into(rollout.completion.text, len(rollout.mc)) for rollout in group.rollouts]
    lengths = sorted(row_length(processor, prm_format, group.problem, some, count) for some in steps)
    return lengths[-1] - 1


def changed(out: Path, start: Path) -> set[str]:
    before, after = (load_model(folder).state_dict() for folder in (start, out))
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_bfloat16_checkpointing_frozen_vision_and_a_resume(settings: TrainPRMConfig) -> None:
    """What was killed after step 4 of 6 ends with the weights of the straight run; long responses are counted."""
    out = train_prm(settings)
    counts = manifest_of(out)["counts"]
    assert counts["in"] == 18
    assert counts["out"] == 12
    assert counts["rejected"] == {f"longer than max_length={settings.max_length}": 6}
    log = json.loads((out / "log_history.json").read_text())
    assert log[-1]["step"] == 6  # two epochs of six problems, two a step
    assert stored_dtype(out) == torch.bfloat16
    straight = load_file(out / "model.safetensors")
    assert {value.dtype for value in straight.values()} == {torch.bfloat16}
    assert {value.dtype for value in load_file(out / "checkpoint-4" / "model.safetensors").values()} == {torch.float32}
    moved = changed(out, settings.model)
    assert moved
    assert all("language_model" in name or name == "lm_head.weight" for name in moved)
    (scores, _) = ModelPRM.load(out).score(Problem("q", "What?"), TEXTS)
    assert len(scores.values) == 3

    for name in (MANIFEST, "model.safetensors"):
        (out / name).unlink()
    shutil.rmtree(out / "checkpoint-6")
    train_prm(settings)
    resumed = load_file(out / "model.safetensors")
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_checkpointing_changes_nothing(settings: TrainPRMConfig) -> None:
    settings = replace(settings, dtype="float32", save_steps=0, epochs=1.0)
    with_it = train_prm(settings)
    without = train_prm(replace(settings, gradient_checkpointing=False, out=settings.out.parent / "plain"))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (with_it, without))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("freeze", [True, False])
def test_adapters_train_under_checkpointing(settings: TrainPRMConfig, freeze: bool) -> None:
    settings = replace(
        settings, lora_rank=2, freeze_vision=freeze, save_steps=0, learning_rate=0.01, lora_targets=["all-linear"]
    )
    moved = changed(train_prm(settings), settings.model)
    assert any("language_model" in name for name in moved)
    assert any("vision" in name for name in moved) != freeze
    assert "lm_head.weight" not in moved
    assert stored_dtype(settings.out) == torch.bfloat16


def test_values_that_cannot_work(settings: TrainPRMConfig, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--groups", settings.groups, "--model", settings.model, "--out", settings.out]
    for flag, value, message in (
        ("dtype", "fp8", "--dtype: expected one of auto, float32, bfloat16"),
        ("warmup", 1, "--warmup: expected a number below 1"),
        ("max_length", 0, "--max_length: expected a whole number of at least 1"),
    ):
        assert main(["train-prm", *map(str, given), f"--{flag}", str(value)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(DataError, match=r"no response of .* can be trained on; rejected: \{'longer than"):
        train_prm(replace(settings, max_length=3))


def test_a_label_head_is_trained_whatever_is_frozen() -> None:
    """A text model: there is no vision to freeze, and adapters reach the head's layers too."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ProcessRewardModel(Qwen2Config(num_hidden_layers=2, vocab_size=50, **sizes))
    config = TrainPRMConfig(Path("g"), Path("m"), Path("o"), freeze_vision=True)
    assert choose_trained(model, config) is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    adapters = choose_trained(model, replace(config, lora_rank=2, freeze_vision=False))
    trained = [name for name, p in get_peft_model(model, adapters).named_parameters() if p.requires_grad]
    assert any("score" in name for name in trained)
    assert all("lora" in name for name in trained)
