"""The guard of `mpo train-mpo`: it stops what it should, changes nothing else, and its problems are in no pair."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.images import load_image
from mpo.multimodal.loading import load_model
from recipes.cli import main
from recipes.config import TrainMPOConfig
from recipes.stage.folder import MANIFEST, manifest_of
from recipes.training import train_mpo as stage
from recipes.training.train_mpo import train_mpo
from recipes.training.training_guard import LOOKS
from recipes.worlds.digits.world import scenes, to_problem
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.sampling.prompts import PROMPTS
from rewards.types import Completion, PreferencePair
from tests.recipes.training.planted import digit_problems, planted, prm_of_policy

# Rules that the responses of a policy with random weights would break by themselves.
QUIET = {"guard_repetition": 1.0, "guard_drift": 1000.0}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pairs of four problems, asked step by step."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    made = [replace(to_problem(scene, f"t{i}"), prompt=PROMPTS["cot"]) for i, scene in enumerate(scenes("test", 4, 9))]
    write_trl_parquet(
        [
            PreferencePair(problem, Completion(f"one two {k}"), Completion(f"three {k}"), "correctness")
            for problem in made
            for k in range(2)
        ],
        path,
    )
    return path


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_problems(tmp_path_factory.mktemp("guard"), "guard", 4)


@pytest.fixture(scope="module")
def prm_folder(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prm_of_policy(policy_folder, tmp_path_factory.mktemp("prm") / "prm")


def settings(policy: Path, pairs: Path, out: Path, **changes: Any) -> TrainMPOConfig:
    tiny = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-3, "save_steps": 0, "guard_tokens": 12}
    return TrainMPOConfig(policy, pairs, out, **(tiny | {"guard_every": 1, "timeout_s": 60.0} | QUIET | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder).state_dict())


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("sees", [False, True])
def test_a_run_whose_prm_does_not_look_is_stopped(
    policy_folder: Path, pairs: Path, guard: Path, prm_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sees: bool,
) -> None:  # fmt: skip
    """And one that was killed before its end stops at the same step with the same weights."""
    monkeypatch.setattr(stage, "prm_in_training", planted(guard, sees=sees))
    config = settings(policy_folder, pairs, tmp_path / "out", guard=guard, prm=prm_folder, save_steps=1, guard_every=2)
    out = train_mpo(config)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    training = manifest_of(out)["counts"]["training"]
    looks = [json.loads(line) for line in (out / LOOKS).read_text().splitlines()]
    saved = sorted(path.name for path in out.glob("checkpoint-*"))
    if sees:
        assert (training["steps"], training["stopped"]) == (3, None)
        assert max(look["remaining"] for look in looks) < 0.2
        assert "STOPPED" not in said
        assert saved == ["checkpoint-2", "checkpoint-3"]
        assert "| stopped by the guard | no |" in (out / "README.md").read_text()
        return
    assert training["steps"] == 2  # the second look in a row
    assert training["epochs"] == 1.0
    assert training["stopped"]["reason"] == "image_blind_reward"
    assert [(look["step"], look["remaining"]) for look in looks] == [(0, 1.0), (2, 1.0)]
    assert "STOPPED by the guard at step 2: image_blind_reward (100 % of the PRM's reward remains" in said
    assert "| stopped by the guard | image_blind_reward: 100 %" in (out / "README.md").read_text()
    assert saved == ["checkpoint-1"]
    before = {"weights": weights(out), "counts": manifest_of(out)["counts"]}
    for name in (MANIFEST, "model.safetensors", "log_history.json"):
        (out / name).unlink()
    train_mpo(config)
    after = weights(out)
    assert all(torch.equal(after[name], tensor) for name, tensor in before["weights"].items())
    assert manifest_of(out)["counts"] == before["counts"]


@pytest.mark.timeout(200)
def test_the_run_does_not_notice_a_guard_that_only_logs(
    policy_folder: Path, pairs: Path, guard: Path, prm_folder: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """With a real PRM; without `guard` there are no looks and the account says nothing of a guard."""
    watching = {"guard": guard, "prm": prm_folder, "guard_stop": False}
    plain = train_mpo(settings(policy_folder, pairs, tmp_path / "plain"))
    watched = train_mpo(settings(policy_folder, pairs, tmp_path / "watched", **watching))
    assert same(plain, watched)
    assert not same(plain, policy_folder)
    looks = [json.loads(line) for line in (watched / LOOKS).read_text().splitlines()]
    assert [look["step"] for look in looks] == [0, 1, 2, 3]
    assert all(look["remaining"] is not None and look["gold"] for look in looks)
    logged = [line for line in json.loads((watched / "log_history.json").read_text()) if "guard/remaining" in line]
    assert [line["guard/remaining"] for line in logged] == [look["remaining"] for look in looks]
    assert not (plain / LOOKS).exists()
    assert "stopped" not in manifest_of(plain)["counts"]["training"]


@pytest.mark.parametrize("command", ["train-mpo", "doctor"])
def test_the_guards_problems_may_not_be_in_the_pairs(
    policy_folder: Path, pairs: Path, guard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Though the pairs ask them in a template; the same scenes under other ids are found by question and pixels."""
    trained_on = digit_problems(tmp_path / "data", "guard", 3, seed=9)
    words = {"policy": policy_folder, "pairs": pairs, "guard": trained_on, "out": tmp_path / "out", "max_steps": 1}
    (tmp_path / "mpo.yaml").write_text("".join(f"{name}: {value}\n" for name, value in words.items()))
    assert main([command, "--config", str(tmp_path / "mpo.yaml")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"3 of 3 questions of --guard {trained_on} are also in --pairs {pairs}" in said
    assert said.endswith("the guard must be held out: choose other problems")
    assert not (tmp_path / "out").exists()
    if command == "doctor":
        assert main([command, "--config", str(tmp_path / "mpo.yaml"), "--guard", str(guard)]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "4 problems, 0 left out, none of them asked by a pair; 4 are looked at every 20 steps" in printed
        assert not (tmp_path / "out").exists()


@pytest.mark.timeout(100)
def test_near_duplicates_of_the_pairs_are_said(
    policy_folder: Path, pairs: Path, guard: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same scene in another size."""
    row = json.loads(digit_problems(tmp_path / "data", "near", 1, seed=9).read_text())
    image = load_image(tmp_path / "data" / row["images"][0])
    image.resize((2 * image.width, 2 * image.height)).save(tmp_path / "data" / row["images"][0])
    caplog.set_level(logging.WARNING)
    near = tmp_path / "data" / "near.jsonl"
    out = train_mpo(settings(policy_folder, pairs, tmp_path / "out", guard=near, max_steps=1, guard_problems=1))
    (message,) = [text for text in caplog.messages if "near-duplicates" in text]
    assert message.startswith("1 of 1 problems of --guard are near-duplicates of problems of --pairs")
    assert [json.loads(line)["test"] for line in (out / "pairs_near_duplicates.jsonl").read_text().splitlines()] == [
        "p0"
    ]


def test_what_cannot_work(policy_folder: Path, pairs: Path, prm_folder: Path, guard: Path, tmp_path: Path) -> None:
    for changes, message in [
        ({"prm": prm_folder}, "prm is for the guard"),
        ({"guard": guard, "prm_base_url": ["http://127.0.0.1:1/v1"], "prm_model": "prm"}, "prm_base_url needs prm too"),
        ({"guard": guard, "guard_drift": 0.5}, "drift >= 1"),
        ({"guard": guard, "guard_drift": 0.5, "guard_stop": False}, "drift >= 1"),
        ({"guard": guard, "verifier": "judge"}, "verifier judge is not supported in training"),
    ]:
        with pytest.raises(ConfigError, match=message):
            train_mpo(settings(policy_folder, pairs, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
