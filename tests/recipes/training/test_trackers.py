"""`mpo train-mpo --report_to tensorboard` or `trackio`: every logged number comes back, from the stage's folder."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError
from recipes.config import TrainMPOConfig
from recipes.training.tracking import tracking
from recipes.training.train_mpo import train_mpo
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.types import Completion, PreferencePair, Problem

NAMES = ("loss", "loss/preference", "loss/quality", "loss/generation", "bco/delta", "rewards/margins")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    problem = Problem("p", "How many digits?", (Image.new("RGB", (32, 32)),))
    write_trl_parquet([PreferencePair(problem, Completion("one"), Completion("two"), "test")], path)
    return path


def run(report_to: str, policy: Path, pairs: Path, out: Path) -> list[dict[str, Any]]:
    """Train; the logged lines as the trainer kept them."""
    train_mpo(TrainMPOConfig(policy, pairs, out, max_steps=11, batch_size=1, report_to=report_to))
    lines = [line for line in json.loads((out / "log_history.json").read_text()) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 10]
    return lines


def test_tensorboard(policy_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    lines = run("tensorboard", policy_folder, pairs, tmp_path / "mpo")
    read = events.EventAccumulator(str(tmp_path / "mpo" / "tensorboard"))
    read.Reload()
    for name in NAMES:
        found = [(scalar.step, scalar.value) for scalar in read.Scalars(f"train/{name}")]
        assert found == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines], name
    assert [path.name for path in tmp_path.iterdir()] == ["mpo"]  # nothing beside the stage's folder


def test_trackio(policy_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="trackio 0.43 needs Pillow < 13, constraints.txt has 13")
    monkeypatch.chdir(tmp_path)
    lines = run("trackio", policy_folder, pairs, tmp_path / "mpo")
    (database,) = (tmp_path / "mpo" / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT metrics FROM metrics ORDER BY step").fetchall()
    logged = [row for row in (json.loads(text) for (text,) in rows) if "train/loss" in row]
    for name in NAMES:
        assert [row[f"train/{name}"] for row in logged] == [line[name] for line in lines], name


def test_one_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.training.tracking.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard"), tracking("tensorboard", tmp_path, name="x"):
        pass
