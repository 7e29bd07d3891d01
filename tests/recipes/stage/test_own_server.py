"""`--serve true`: a server of the stage's own answers; what ends the stage ends it; what goes wrong is one line."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError
from recipes.cli import main
from recipes.config import SampleConfig
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups, write_problems
from recipes.stage.own_server import LOG, served
from rewards.types import Problem
from tests.recipes.killing import KILLED, ended, start, stored
from tests.server_process import TESTS, until


def command(log: Path) -> str:
    """Serves the scripted replies of `tests/model_server.py`, whatever the policy is."""
    return f"env POLICY={{model}} {sys.executable} {TESTS / 'serve_model.py'} {{port}} {log}"


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    asked = [Problem(f"p{i}", f"What is {i}?", (tmp_path / "red.png",), str(i)) for i in range(6)]
    write_problems(tmp_path / "problems.jsonl", asked)
    return tmp_path / "problems.jsonl"


def flags(problems: Path, policy: Path, out: Path, *more: str) -> list[str]:
    asked = ["sample", "--problems", str(problems), "--policy", str(policy), "--out", str(out), "--serve", "true"]
    return [*asked, "--num_samples", "2", "--concurrency", "1", *more]


def test_the_policy_is_what_the_stage_is_made_of(
    problems: Path, policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its content is in the manifest, no address is; the same samples come from a server that runs already."""
    out = tmp_path / "out"
    assert main(flags(problems, policy_folder, out, "--serve_command", command(tmp_path / "log"))) == 0
    said = capsys.readouterr().err
    assert f"it writes to {out / LOG}" in said
    assert "server: ready after " in said
    assert [len(group.rollouts) for group in read_groups(out)] == [2] * 6
    made = manifest_of(out)
    assert "policy" in made["fingerprint"]["inputs"]
    assert made["fingerprint"]["settings"]["serve"] is True
    assert "serve_command" not in made["fingerprint"]["settings"]
    assert not living(tmp_path / "log")
    (out / "manifest.json").unlink()
    (tmp_path / "log").unlink()
    assert main(flags(problems, policy_folder, out, "--serve_command", command(tmp_path / "log"))) == 0
    assert not (tmp_path / "log").exists()  # all was drawn: no server was started


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGKILL, KILLED), (signal.SIGINT, 130)])
def test_it_ends_with_the_stage_however_that_ends(
    problems: Path,
    policy_folder: Path,
    tmp_path: Path,
    sign: signal.Signals,
    code: int,
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    log, out = tmp_path / "log", tmp_path / "out"
    words = flags(problems, policy_folder, out, "--serve_command", command(log))
    child = start(words, log=tmp_path / "client")
    signal.signal(signal.SIGINT, before)
    until(lambda: bool(living(log)) and len(stored(out)) > 1)
    os.kill(child, sign)
    assert ended(child) == code
    deadline = time.monotonic() + 12
    while living(log) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living(log)
    assert main(words) == 0
    assert [len(group.rollouts) for group in read_groups(out)] == [2] * 6


def living(log: Path) -> list[int]:
    """Processes that have the server's log among their words: itself and what looks after it."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        ours = str(log) in words and "serve_model" in words and "sample" not in words.split()
        if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["--serve_command", "no-such-server {model} {port}"], "there is no program 'no-such-server'"),
        (["--serve_command", "vllm serve {model}"], "expected {port} in it, got 'vllm serve {model}'"),
        (["--serve_command", "vllm 'serve {model} {port}"], "serve_command: No closing quotation"),
        (["--base_url", "http://127.0.0.1:9/v1", "--model", "x"], "expected either policy"),
        (["--engine", "ray"], "leave base_url, model and engine ray out"),
        (
            ["--serve_command", f"{sys.executable} -c 'print(\"no room for {{model}}\");exit({{port}}*0+3)'"],
            "the server of serve_command ended before it answered: no room for ",
        ),
    ],
)
def test_what_cannot_work_is_one_line(
    problems: Path,
    policy_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    line: str,
) -> None:
    assert main(flags(problems, policy_folder, tmp_path / "out", *changes)) == 2
    assert line in capsys.readouterr().err.strip().splitlines()[-1]


def test_an_adapter_is_refused_before_a_server_starts(policy_folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(policy_folder)}))
    config = SampleConfig(tmp_path, tmp_path, policy=adapter, serve=True)
    with (
        pytest.raises(ConfigError, match="is an adapter, and a server is started with whole weights"),
        served(config, tmp_path),
    ):
        pass
    assert not (tmp_path / LOG).exists()
