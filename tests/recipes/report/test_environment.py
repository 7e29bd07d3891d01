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
from mpo.multimodal.varlen import why_no_kernel
from recipes.config import EnvConfig
from recipes.report.environment import _commit, describe, environment
from recipes.report.environment import shared_prompts as varlen_said

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


def test_versions_and_devices_are_those_in_use(printed: dict[str, Any]) -> None:
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets"):
        assert printed["packages"][name] == version(name)
    assert printed["python"].startswith(platform.python_version())
    assert len(printed["devices"]) == torch.accelerator.device_count()
    assert printed["cpu"]["usable"] <= printed["cpu"]["cores"] == os.cpu_count()
    assert printed["memory"]["total GiB"] >= printed["memory"]["free GiB"] > 0
    usable = why_no_kernel()
    said = printed["attention"]["shared prompts"]
    assert said == ("variable-length kernel" if usable is None else f"segment by segment by SDPA: {usable}")


@pytest.mark.parametrize(
    ("cuda", "installed", "said"),
    [
        (False, None, "segment by segment by SDPA: torch sees no CUDA device"),
        (
            True,
            "varlen_attn of torch 2.10.0 takes no scale",
            "segment by segment by SDPA: varlen_attn of torch 2.10.0 takes",
        ),
        (True, None, "variable-length kernel"),
    ],
)
def test_which_attention_would_be_used_and_why(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, installed: str | None, said: str
) -> None:
    monkeypatch.setattr(varlen.torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(varlen, "_installed", lambda: installed or (lambda: None))
    assert varlen_said().startswith(said)


def test_the_commit_of_a_checkout_and_of_none(printed: dict[str, Any], tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert _commit(tmp_path) == {"commit": None, "changed": None}
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "first")
    assert _commit(tmp_path) == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "file").write_text("two")
    assert _commit(tmp_path)["changed"] is True
    assert set(printed["mpo-prm"]) == {"version", "commit", "changed"}


def test_the_lines_leave_out_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    environment(EnvConfig())
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(describe())
    assert f"torch {version('torch')}" in next(line for line in lines if line.startswith("packages:"))
    assert "None" not in "".join(lines)
