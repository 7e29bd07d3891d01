"""`mpo train-mpo` at scale: micro-batches, number types, adapters, frozen vision, checkpoints, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mpo.multimodal.errors import ConfigError, FingerprintError
from mpo.multimodal.loading import load_model, load_processor, stored_dtype
from recipes.cli import main
from recipes.config import TrainMPOConfig
from recipes.stage.folder import MANIFEST, manifest_of
from recipes.training.arguments import micro_batches
from recipes.training.mpo_run import build_trainer, mpo_config, read_pairs
from recipes.training.train_mpo import train_mpo
from recipes.training.weights import ADAPTER, in_order
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.types import Completion, PreferencePair, Problem

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pairs, two for each of four images."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    write_trl_parquet([_pair(number) for number in range(8)], path)
    return path


def _pair(number: int) -> PreferencePair:
    colour = (60 * (number // 2), 0, 0)
    problem = Problem(f"p{number // 2}", "How many digits?", (Image.new("RGB", (32, 32), colour),))
    return PreferencePair(problem, Completion("one two " + str(number)), Completion(f"three {number}"), "correctness")


def settings(policy: Path, pairs: Path, out: Path, **changes: Any) -> TrainMPOConfig:
    changes = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-3, **changes}
    return TrainMPOConfig(policy=policy, pairs=pairs, out=out, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = load_model(folder, dtype=stored_dtype(folder))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def difference(one: Path, other: Path) -> dict[str, float]:
    """Parameter → largest difference, of two models."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return {name: float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours}


def flags(config: TrainMPOConfig, **more: Any) -> list[str]:
    given = {name: getattr(config, name) for name in ("policy", "pairs", "out", "max_steps", "batch_size")}
    return [word for name, value in {**given, "learning_rate": config.learning_rate, **more}.items()
            for word in (f"--{name}", str(value))]  # fmt: skip


@pytest.fixture(scope="module")
def plain(policy_folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with every default: float32, one micro-batch, every weight."""
    return train_mpo(settings(policy_folder, pairs, tmp_path_factory.mktemp("plain") / "out"))


def test_what_the_digits_runs_take(policy_folder: Path, pairs: Path, tmp_path: Path) -> None:
    """One micro-batch, float32, no activation checkpointing, checkpoints, the same warm-up."""
    for steps, warm_up in ((3, 1), (20, 1), (200, 10), (300, 15), (390, 19)):
        args = mpo_config(settings(policy_folder, pairs, tmp_path, max_steps=steps), tmp_path, rows=10_000)
        assert (args.max_steps, args.warmup_steps) == (steps, warm_up)
        assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (4, 1)
        assert (args.bf16, args.activation_checkpointing, args.save_strategy.value) == (False, False, "steps")
        assert (args.group_by_prompt, args.max_row_tokens, args.precompute_ref_log_probs) == (False, None, False)
        assert args.train_sampling_strategy == "random"
    balanced = settings(policy_folder, pairs, tmp_path, balance_tokens=True)
    assert mpo_config(balanced, tmp_path, rows=10_000).train_sampling_strategy == "batch_rebalance"


def test_micro_batches_make_the_same_update(policy_folder: Path, pairs: Path, plain: Path, tmp_path: Path) -> None:
    cut = train_mpo(settings(policy_folder, pairs, tmp_path / "cut", per_device_batch=1, gradient_checkpointing=True))
    moved = difference(plain, policy_folder)
    assert max(difference(cut, plain).values()) < 0.02 * max(moved.values())
    log = json.loads((cut / "log_history.json").read_text())
    assert log[0]["loss"] == pytest.approx(0.8318 + log[0]["loss/generation"], abs=1e-3)


def test_a_batch_that_cannot_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert micro_batches(8) == (8, 1)
    assert micro_batches(8, 2) == (2, 4)
    with pytest.raises(ConfigError, match=r"batch_size=8 .* micro-batches of 3 on 1 processes"):
        micro_batches(8, 3)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert micro_batches(8) == (2, 1)
    assert micro_batches(8, 1) == (1, 2)
    with pytest.raises(ConfigError, match=r"batch_groups=8 .* micro-batches of 4 on 4 processes"):
        micro_batches(8, 4, name="batch_groups")


def test_epochs_instead_of_steps(policy_folder: Path, pairs: Path, tmp_path: Path) -> None:
    by_epoch = {"max_steps": 0, "min_steps": 0}
    out = train_mpo(settings(policy_folder, pairs, tmp_path / "out", **by_epoch))
    log = json.loads((out / "log_history.json").read_text())
    assert log[-1]["step"] == 2  # one epoch of 8 rows in batches of 4
    with pytest.raises(ConfigError, match="max_steps=99 and epochs=1 both say how long"):
        mpo_config(settings(policy_folder, pairs, tmp_path, max_steps=99, epochs=1.0), tmp_path, rows=8)
    twice = mpo_config(settings(policy_folder, pairs, tmp_path, epochs=2.0, **by_epoch), tmp_path, rows=8)
    assert twice.precompute_ref_log_probs
    assert (twice.num_train_epochs, twice.get_warmup_steps(100)) == (2.0, 5)


def test_small_data_gets_steps(policy_folder: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    """own_data.yaml on 62 pairs made one step at rate 0; now the batch shrinks, the line says so, and weights move."""
    config = settings(policy_folder, pairs, tmp_path / "out", max_steps=0, epochs=1.0, batch_size=256)
    out = train_mpo(config)
    counts, said = manifest_of(out)["counts"], capsys.readouterr().err
    assert counts["training"]["steps"] == 8  # one pair each: 8 pairs cannot make 20 steps
    assert "batch_size 256 -> 1: so 1 epochs over 8 rows" in said
    assert "train-mpo: 8 in, 8 out, nothing rejected; 8 optimizer steps, 1 epochs, last logged loss" in said
    assert "WARNING: 8 optimizer steps: fewer than 10" in said
    assert any(difference(out, policy_folder).values())
    plan = mpo_config(replace(config, batch_size=64), tmp_path, rows=400)
    assert plan.per_device_train_batch_size * plan.gradient_accumulation_steps == 20


def test_the_checkpoints_number_type(policy_folder: Path, pairs: Path, tmp_path: Path) -> None:
    """A bfloat16 checkpoint is run in bfloat16, trained in float32 and written in bfloat16 again."""
    half = tmp_path / "half"
    load_model(policy_folder).to(torch.bfloat16).save_pretrained(half)
    load_processor(policy_folder).save_pretrained(half)
    config = settings(half, pairs, tmp_path / "out")
    trainer = build_trainer(config, tmp_path / "scratch", read_pairs(config))
    assert trainer.args.bf16
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    out = train_mpo(config)
    assert stored_dtype(out) == torch.bfloat16
    assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert any(difference(out, half).values())
    whole = build_trainer(replace(config, dtype="float32"), tmp_path / "float32", read_pairs(config))
    assert not whole.args.bf16
    adapted = build_trainer(replace(config, lora_rank=2), tmp_path / "adapted", read_pairs(config))
    dtypes = {(parameter.requires_grad, parameter.dtype) for parameter in adapted.model.parameters()}
    assert dtypes == {(False, torch.bfloat16), (True, torch.float32)}
    masters = build_trainer(replace(config, master_weights=True, max_steps=2), tmp_path / "masters", read_pairs(config))
    assert masters.args.master_weights
    models = (masters.model, masters.ref_model)
    assert {parameter.dtype for model in models for parameter in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match="trained weights in bfloat16, got float32: set dtype to bfloat16"):
        build_trainer(replace(config, master_weights=True, dtype="float32"), tmp_path / "no", read_pairs(config))


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("dtype", "fp8", "--dtype: expected one of auto, float32, bfloat16, got 'fp8'"),
        ("lora_rank", "-1", "--lora_rank: expected a whole number of at least 0, got '-1'"),
        ("warmup", "3", "--warmup: expected a number below 1, got '3'"),
        ("lora_targets", "q_prj", "has no layer 'q_prj'; all-linear takes every one"),
    ],
)
def test_values_that_cannot_work(
    policy_folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str,
    message: str,
) -> None:  # fmt: skip
    config = settings(policy_folder, pairs, tmp_path / "out")
    for command in ("train-mpo", "doctor"):
        assert main([command, *flags(config, **{"lora_rank": 2, flag: value})]) == 2
        assert message in capsys.readouterr().err


def test_adapters_are_merged_and_kept(policy_folder: Path, pairs: Path, tmp_path: Path) -> None:
    """OUT is a whole model, so every stage reads it; its changes are low-rank and stand in OUT/adapter too."""
    out = train_mpo(settings(policy_folder, pairs, tmp_path / "out", lora_rank=2, lora_alpha=4))
    adapter = load_file(out / ADAPTER / "adapter_model.safetensors")
    assert {value.shape[0] for name, value in adapter.items() if "lora_A" in name} == {2}
    assert not any("lm_head" in name for name in adapter)
    changed = {name for name, value in difference(out, policy_folder).items() if value}
    assert changed
    assert any("vision_tower" in name for name in changed)
    for name in changed:
        delta = weights(out)[name] - weights(policy_folder)[name]
        assert torch.linalg.matrix_rank(delta, atol=1e-5) <= 2, name
        prefix = "base_model.model." + name.removesuffix(".weight")
        expected = 2.0 * adapter[f"{prefix}.lora_B.weight"] @ adapter[f"{prefix}.lora_A.weight"]
        torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-6)
    named = load_model(out / ADAPTER).state_dict()  # the adapter's folder is the same model
    assert all(torch.equal(value, named[name]) for name, value in load_model(out).state_dict().items())
    questions = tmp_path / "questions.jsonl"
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    questions.write_text(json.dumps({"id": "a", "question": "How many?", "images": ["a.png"], "answer": "1"}) + "\n")
    drawn = ["--policy", out, "--problems", questions, "--out", tmp_path / "samples", "--num_samples", 2]
    assert main(["sample", *map(str, drawn), "--max_new_tokens", "4"]) == 0
    again = train_mpo(settings(out, pairs, tmp_path / "again", lora_rank=2))  # a second round starts from the first
    assert any(difference(again, out).values())


@pytest.mark.parametrize("rank", [0, 2])
def test_frozen_vision(policy_folder: Path, pairs: Path, tmp_path: Path, rank: int) -> None:
    config = settings(policy_folder, pairs, tmp_path / "out", freeze_vision=True, lora_rank=rank)
    changed = {name for name, value in difference(train_mpo(config), policy_folder).items() if value}
    assert changed
    assert all("language_model" in name or name == "lm_head.weight" for name in changed)
    assert ("lm_head.weight" in changed) == (rank == 0)


def test_only_the_named_layers_get_adapters(policy_folder: Path, pairs: Path, tmp_path: Path) -> None:
    config = settings(policy_folder, pairs, tmp_path, lora_rank=2, lora_targets=["q_proj", "v_proj"])
    trainer = build_trainer(config, tmp_path, read_pairs(config))
    trained = {name.split(".")[-4] for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "v_proj"}


@pytest.mark.timeout(300)
def test_killed_and_resumed(policy_folder: Path, pairs: Path, tmp_path: Path) -> None:
    """Three SIGKILLs: the weights are bit by bit those of a run that was left alone, and the log has every step."""
    config = settings(policy_folder, pairs, tmp_path / "killed", max_steps=24)
    more = {"save_steps": 2, "per_device_batch": 2, "group_by_prompt": "true"}
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "kill_stage.py"),
        "3",
        "train-mpo",
        *flags(config, **more),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["status"] == 0
    assert report["left"] == sorted(set(report["left"]))  # each attempt went on from the one before
    straight = train_mpo(replace(config, out=tmp_path / "straight", save_steps=0, per_device_batch=2,
                                 group_by_prompt=True))  # fmt: skip
    killed, whole = (load_file(folder / "model.safetensors") for folder in (config.out, straight))
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    logs = [json.loads((folder / "log_history.json").read_text()) for folder in (config.out, straight)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]] == [1, 10, 20, 24]
    assert len(list(config.out.glob("checkpoint-*"))) == 2


def test_checkpoints_of_other_settings_are_not_gone_on_from(
    policy_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(policy_folder, pairs, tmp_path / "out", save_steps=1)
    train_mpo(config)
    (config.out / MANIFEST).unlink()  # as a kill before the end leaves it
    with pytest.raises(FingerprintError, match=r"lora_rank \(0 then, 2 now\)"):
        train_mpo(replace(config, lora_rank=2))
    steps = manifest_of(train_mpo(replace(config, per_device_batch=1)))  # how a step is cut is not what it makes
    assert steps["counts"]["in"] == 8


@pytest.mark.timeout(600)
def test_two_processes_are_one_run(policy_folder: Path, pairs: Path, tmp_path: Path, plain: Path) -> None:
    """Started with the configuration that we ship; the second process writes nothing, and a rerun does nothing."""
    config = settings(policy_folder, pairs, tmp_path / "out")
    launch = ["-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/multi_gpu.yaml",
              "--num_processes", "2", "--main_process_port", "0", "-m", "recipes.cli", "train-mpo"]  # fmt: skip
    command = [sys.executable, *launch, *flags(config, per_device_batch=1, save_steps=2)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    moved = difference(plain, policy_folder)
    assert max(difference(config.out, plain).values()) < 0.02 * max(moved.values())
    logs = [json.loads((folder / "log_history.json").read_text()) for folder in (config.out, plain)]
    assert logs[0][0]["loss"] == pytest.approx(logs[1][0]["loss"], abs=1e-4)
    counts = manifest_of(config.out)["counts"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (8, 8, {})
    assert counts["training"]["steps"] == 3
    before = (config.out / MANIFEST).stat().st_mtime_ns
    train_mpo(replace(config, per_device_batch=1, save_steps=2))
    assert (config.out / MANIFEST).stat().st_mtime_ns == before


def test_an_adapters_configuration_does_not_know_the_hash_seed(tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    written = set()
    for names in (["v_proj", "q_proj", "o_proj"], ["o_proj", "v_proj", "q_proj"]):
        file.write_text(json.dumps({"target_modules": names, "r": 4, "exclude_modules": None}))
        in_order(file, base=Path("models--org--name/snapshots/0c351dd"))
        written.add(file.read_bytes())
    assert len(written) == 1
    said = json.loads(written.pop())
    assert said["target_modules"] == ["o_proj", "q_proj", "v_proj"]
    assert (said["base_model_name_or_path"], said["revision"]) == ("org/name", "0c351dd")  # of a base from the hub
