"""`mpo convert`: from a folder as the hub has it to a model that `mpo score` takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.cli import main
from rewards.prm.model_prm import ModelPRM
from rewards.types import Problem
from tests.rewards.conversion.chat_checkpoints import QWEN, write_chat_checkpoint


def test_convert_a_reward_model(tmp_path: Path) -> None:
    source = write_chat_checkpoint(tmp_path / "source", QWEN, architectures=["InternVLRewardModel"])
    arguments = ["convert", "--checkpoint", str(source), "--out", str(tmp_path / "prm"), "--shard_gb", "0.0001"]
    assert main(arguments) == 0
    counts = json.loads((tmp_path / "prm/manifest.json").read_text())["counts"]
    assert counts["in"] == counts["out"] == 65
    assert (counts["rejected"], counts["parameters"]) == ({}, 73)
    assert counts["files"] == len(list((tmp_path / "prm").glob("*.safetensors"))) > 1
    (scores,) = ModelPRM.load(tmp_path / "prm").score(Problem("p", "How many?"), ["one\n\ntwo"])
    assert len(scores.values) == 2
    assert main(arguments) == 0  # complete: nothing is written again


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--checkpoint", "nowhere"], "input nowhere does not exist"),
        (["--checkpoint", "source", "--shard_gb", "0"], "--shard_gb: expected a number above 0, got '0'"),
    ],
)
def test_wrong_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments, "--out", "native"]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "native").exists()
