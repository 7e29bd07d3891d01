"""`mpo env`: what it says is so, and it says nothing of who runs it or where."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from mpo.multimodal import varlen
from recipes.config import EnvConfig
from recipes.report.environment import describe, environment
from recipes.stage.closing import commit_of

ROOT = Path(__file__).resolve().parents[3]
CANARIES = {
    **{"USER": "canary-user", "LOGNAME": "canary-logname", "OPENAI_API_KEY": "sk-canary-key", "HF_TOKEN": "hf_canary"},
    **{"SOME_SETTING": "canary-setting", "HOSTNAME": "canary-host"},
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a process of its own, with canaries in its environment and its home folder."""
    home = tmp_path_factory.mktemp("canary-home")
    environment = {**os.environ, **CANARIES, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "recipes.cli", "env", "--json"],
        env=environment, cwd=home, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "canary" not in done.stdout + done.stderr
    assert "gemm_4bit" not in done.stderr  # bitsandbytes' word about kernels that nobody asked for
    return json.loads(done.stdout)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def test_no_path_and_no_name_of_the_machine(printed: dict[str, Any]) -> None:
    texts = list(strings(printed))
    assert not [text for text in texts if "/" in text or "\\" in text]
    assert not [text for text in texts if platform.node() and platform.node() in text]


def test_versions_are_those_in_use(printed: dict[str, Any]) -> None:
    for name in ("transformers", "trl", "peft", "datasets"):
        assert printed["packages"][name] == version(name)
    assert set(printed["project"]) == {"mpo-prm", "commit"}
    assert ("torch sees no CUDA device" in printed["attention"]["shared prompt"]) != torch.cuda.is_available()


@pytest.mark.parametrize(
    ("cuda", "installed", "said"),
    [
        (False, None, "one scaled_dot_product_attention per part of a row: torch sees no CUDA device"),
        (
            True,
            "varlen_attn takes no scale",
            "one scaled_dot_product_attention per part of a row: varlen_attn takes no",
        ),
        (True, None, "torch.nn.attention.varlen in half precision"),
    ],
)
def test_which_attention_would_be_used_and_why(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, installed: str | None, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(varlen, "_installed", lambda: installed or (lambda: None))
    assert (describe()["attention"]["shared prompt"] or "").startswith(said)


def test_the_commit_of_a_checkout_and_of_none(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert commit_of.__wrapped__(tmp_path) is None
    git("init", "-q")
    assert commit_of.__wrapped__(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "first")
    assert commit_of.__wrapped__(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert commit_of.__wrapped__(tmp_path) == git("rev-parse", "HEAD") + ", with changes"


def test_the_lines_leave_out_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    environment(EnvConfig())
    lines = capsys.readouterr().out.splitlines()
    there = [name for part in describe().values() for name, value in part.items() if value is not None]
    assert [line.partition(":")[0] for line in lines] == there
    assert f"transformers: {version('transformers')}" in lines
