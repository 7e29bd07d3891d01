"""`mpo train-mpo --report_to wandb` in wandb's offline mode: what is in its files, and what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.images import load_image
from recipes.config import TrainMPOConfig
from recipes.stage.folder import MANIFEST
from recipes.training.tracking import tracking
from recipes.training.train_mpo import train_mpo
from recipes.worlds.digits.world import scenes, to_problem
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.types import Completion, PreferencePair
from tests.recipes.training.wandb_files import artifacts, config, history, records

ROOT = Path(__file__).resolve().parents[3]
PROBLEMS = [to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("test", 3, 1))]
LOSSES = ("loss/preference", "loss/quality", "loss/generation", "bco/delta")
# In the environment and on the command line of the run; nothing of it may be in its files.
SECRETS = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "SOME_TOKEN": "canary-in-the-environment"}
ARGUMENT = "canary-on-the-command-line"


@pytest.fixture
def fresh_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """wandb reads its environment once per process: forget it before and after."""
    wandb.teardown()
    for name in ("WANDB_API_KEY", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    wandb.teardown()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    made = [PreferencePair(p, Completion(f"one {i}"), Completion("two"), "test") for i, p in enumerate(PROBLEMS)]
    write_trl_parquet(made, path)
    return path


@pytest.fixture(scope="module")
def out(pairs: Path, policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in a process of its own, whose command line ends up in wandb by default."""
    out = tmp_path_factory.mktemp("tracked") / "mpo"
    flags = {
        **{"--policy": policy_folder, "--pairs": pairs, "--out": out, "--max_steps": 11, "--batch_size": 2},
        **{"--sample_every": 5, "--sample_problems": 2, "--sample_tokens": 8, "--report_to": "wandb"},
    }
    program = "import sys; from recipes.cli import main; sys.exit(main(sys.argv[2:]))"
    words = [str(word) for pair in flags.items() for word in pair]
    environment = {**os.environ, **SECRETS, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, ARGUMENT, "train-mpo", *words],
        env=environment, cwd=out.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_the_losses_and_delta_come_back(out: Path) -> None:
    """Of every logged line, as the trainer itself logged them."""
    lines = [line for line in json.loads((out / "log_history.json").read_text()) if "loss" in line]
    rows = [row for row in history(records(out)) if "train/loss" in row]
    assert [row["train/global_step"] for row in rows] == [line["step"] for line in lines] == [1, 10]
    for row, line in zip(rows, lines, strict=True):
        assert {name: row[f"train/{name}"] for name in LOSSES} == {name: line[name] for name in LOSSES}
        assert row["train/tokens/s"] == line["tokens/s"] > 0
        assert row["train/logps/chosen_per_token_reference"] == line["logps/chosen_per_token_reference"]
    assert rows[1]["train/bco/delta"] != 0.0


def test_the_table_of_pictures_comes_back(out: Path) -> None:
    found = records(out)
    tables = [row for row in history(found) if "samples/table" in row]
    assert [row["train/global_step"] for row in tables] == [0, 5, 10]
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    stored = artifacts(found)
    assert len(stored) == 3
    for row, files in zip(tables, stored, strict=True):
        assert all(path.is_relative_to(out) for path in files.values())  # not in the home folder
        assert row["samples/table"]["_type"] == "table-file"
        (name,) = [name for name in files if name.endswith(".table.json")]
        table = json.loads(files[name].read_text())
        assert table["columns"] == ["step", "draw", "image 1", "question", "answer", "faults"]
        expected = [sample for sample in samples if sample["step"] == row["train/global_step"]]
        assert len(table["data"]) == len(expected) == 2 * 2  # draws, problems
        for cells, sample in zip(table["data"], expected, strict=True):
            step, draw, picture, question, answer, faults = cells
            assert [step, draw, question, answer] == [sample[k] for k in ("step", "draw", "question", "answer")]
            assert faults == ", ".join(sample["faults"])
            (problem,) = [problem for problem in PROBLEMS if problem.id == sample["problem_id"]]
            shown = load_image(files[picture["path"]].read_bytes())
            assert shown.tobytes() == load_image(problem.images[0]).tobytes()
    rates = [row for row in history(found) if "train/samples/greedy/repetition" in row]
    assert [row["train/global_step"] for row in rates] == [0, 5, 10]


def test_nothing_of_the_machine_goes_in(out: Path) -> None:
    found = records(out)
    kinds = {record.WhichOneof("record_type") for record in found}
    assert {"run", "history", "artifact", "exit"} <= kinds
    assert kinds.isdisjoint({"environment", "stats", "output", "output_raw"})
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert (run.host, run.git.remote_url, run.git.commit, run.entity) == ("", "", "", "")
    names = sorted(path.name for path in (out / "wandb").rglob("*") if path.is_file())
    assert not {"requirements.txt", "wandb-metadata.json", "output.log", "diff.patch", "code"} & set(names)
    content = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for secret in (*SECRETS.values(), ARGUMENT, "PYTHONPATH", os.uname().release):
        assert secret.encode() not in content, secret
    settings = config(found)
    assert settings["beta"] == 0.1
    assert settings["hub_token"] in (None, "<HUB_TOKEN>")


def test_the_default_reports_nothing(pairs: Path, policy_folder: Path, tmp_path: Path) -> None:
    plain = train_mpo(TrainMPOConfig(policy_folder, pairs, tmp_path / "mpo", max_steps=1, batch_size=2))
    assert not (plain / "wandb").exists()
    assert not (plain / "samples.jsonl").exists()
    # How closely a run is watched is no setting of it: the finished stage is not refused, and not run again.
    written = (plain / MANIFEST).stat().st_mtime_ns
    watched = TrainMPOConfig(
        policy_folder, pairs, tmp_path / "mpo", max_steps=1, batch_size=2, sample_every=1, report_to="wandb"
    )
    assert train_mpo(watched) == plain
    assert (plain / MANIFEST).stat().st_mtime_ns == written


def test_refusals(tmp_path: Path, fresh_wandb: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ConfigError, match="report_to must be one of none, wandb, tensorboard, trackio, got 'all'"),
        tracking("all", tmp_path, name="x"),
    ):
        pass
    fresh_wandb.setenv("WANDB_MODE", "online")
    fresh_wandb.setenv("NETRC", str(tmp_path / "netrc"))
    with (
        pytest.raises(ConfigError, match=r"wandb did not start .*WANDB_MODE=offline"),
        tracking("wandb", tmp_path, name="x"),
    ):
        pass
    assert "WANDB_DATA_DIR" not in os.environ


def test_a_failed_stage_ends_its_run_as_failed(tmp_path: Path, fresh_wandb: pytest.MonkeyPatch) -> None:
    fresh_wandb.setenv("WANDB_MODE", "offline")
    with pytest.raises(RuntimeError, match="broken"), tracking("wandb", tmp_path, name="x"):
        raise RuntimeError("broken")
    wandb.teardown()  # its process writes the file out
    exits: list[Any] = [r.exit.exit_code for r in records(tmp_path) if r.WhichOneof("record_type") == "exit"]
    assert exits == [1]


def test_only_the_first_rank_reports(tmp_path: Path, fresh_wandb: pytest.MonkeyPatch) -> None:
    fresh_wandb.setenv("WANDB_MODE", "offline")
    fresh_wandb.setenv("RANK", "1")
    with tracking("wandb", tmp_path, name="x"):
        pass
    assert not (tmp_path / "wandb").exists()
