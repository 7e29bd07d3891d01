"""`mpo answer`, on real models in folders and behind a server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from recipes.answering.answer import answer
from recipes.cli import main
from recipes.config import AnswerConfig
from recipes.worlds.digits.world import scenes, to_problem
from rewards.prm.concentration import ConcentrationHead
from rewards.prm.formats import STEP_END
from rewards.prm.model_prm import save_format
from tests.model_server import ModelServer


@pytest.fixture
def prm_folder(policy: Any, processor: Any, tmp_path: Path) -> Path:
    policy.save_pretrained(tmp_path / "prm")
    processor.save_pretrained(tmp_path / "prm")
    save_format(tmp_path / "prm", STEP_END)
    return tmp_path / "prm"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    to_problem(scenes("test", 1, 3)[0], "p").images[0].save(tmp_path / "scan.png")
    return tmp_path / "scan.png"


def test_one_command(policy_folder: Path, prm_folder: Path, scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--policy", str(policy_folder), "--prm", str(prm_folder), "--image", str(scan), "--question", "The sum?"]
    assert main(["answer", *flags, "--n", "4", "--max_new_tokens", "8", "--json", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["candidates"]) == len(found["rewards"]) == 4
    assert found["text"] == found["candidates"][found["index"]]
    assert found["tokens"] > 0


def test_stdout_is_json_alone_with_an_offline_tracker(
    policy_folder: Path, scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers says on stdout that wandb is offline, when a process imports it, as this one does anew."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delitem(sys.modules, "transformers.integrations.integration_utils", raising=False)
    flags = ["--policy", str(policy_folder), "--image", str(scan), "--question", "The sum?", "--selector", "majority"]
    assert main(["answer", *flags, "--n", "2", "--max_new_tokens", "8", "--json"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["candidates"]) == 2
    assert "Running in WANDB offline mode" in said.err


def test_the_lower_bound_needs_a_prm_that_tells_spreads(
    policy_folder: Path, prm_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--policy", str(policy_folder), "--prm", str(prm_folder), "--question", "The sum?", "--n", "4"]
    flags += ["--max_new_tokens", "8", "--selector", "lower_bound", "--json", "true"]
    assert main(["answer", *flags]) == 2
    assert f"{prm_folder} has no concentration head: choose by prm, or train one" in capsys.readouterr().err
    save_format(prm_folder, STEP_END, head=ConcentrationHead(32))
    assert main(["answer", *flags]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["rewards"][found["index"]] is not None


def test_a_server_answers_and_a_table_is_shown(prm_folder: Path) -> None:
    with ModelServer() as server:
        config = AnswerConfig(
            "What is 5?", base_url=server.base_url, model="tiny", prm=prm_folder, n=3, wave=2, error=0.01
        )
        console = Console(record=True, width=120)
        found = answer(config, console=console)
    shown = console.export_text()
    assert f"→ {found.index}" in shown
    assert found.text in shown
    assert "3 responses, unknown tokens; more would change the answer with probability 0.000" in shown


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--policy", "x"], "selector=prm needs prm"),
        (["--policy", "x", "--selector", "oracle"], "'oracle'"),
        (["--selector", "majority"], "expected either policy"),
        (["--policy", "x", "--selector", "majority", "--n", "4", "--temperature", "0"], "cannot draw 4"),
    ],
)
def test_refusals_before_anything_is_loaded(
    flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["answer", "--question", "What is 5?", *flags]) == 2
    assert expected in capsys.readouterr().err
