"""`mpo sample` from a server: the same stage, the same files, nothing lost when the server fails."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recipes.cli import main
from recipes.data.sample import STORE
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups
from rewards.sampling import openai_generator
from rewards.sampling.openai_generator import OpenAIGenerator
from tests.model_server import ModelServer, scripted_reply

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    rows = [{"id": f"p{i}", "question": f"What is {i}?", "images": ["red.png"] * (i % 2)} for i in range(6)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "questions.jsonl"


def sample(server: ModelServer, questions: Path, out: Path, *flags: str) -> int:
    asked = ["--problems", str(questions), "--out", str(out), "--base_url", server.base_url, "--model", "tiny"]
    return main(["sample", *asked, "--num_samples", "3", "--concurrency", "1", *flags])


def keys_of(out: Path) -> list[str]:
    with closing(sqlite3.connect(out / STORE)) as connection:
        return [key for (key,) in connection.execute("SELECT key FROM samples ORDER BY key")]


def test_a_run_that_the_server_broke_goes_on(
    server: ModelServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server dies after three problems and comes back at another address: the same units, each drawn once."""
    out = tmp_path / "samples"
    server.faults, server.then = ["ok"] * 3, "404"
    assert sample(server, questions, out) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"mpo: {server.base_url} refuses requests (HTTP 404" in line
    assert len(keys_of(out)) == 9
    assert not (out / "groups.jsonl").exists()
    with ModelServer() as another:
        assert sample(another, questions, out) == 0
        assert len(another.requests) == 3
        assert sample(another, questions, out) == 0  # complete: nothing is asked
        assert len(another.requests) == 3
        assert sample(another, questions, tmp_path / "straight") == 0
    assert keys_of(out) == keys_of(tmp_path / "straight")
    assert (out / "groups.jsonl").read_bytes() == (tmp_path / "straight" / "groups.jsonl").read_bytes()
    assert [group.problem.id for group in read_groups(out)] == [f"p{i}" for i in range(6)]


def test_a_client_of_a_server_does_without_torch(server: ModelServer, questions: Path, tmp_path: Path) -> None:
    """It alone takes half a gigabyte."""
    words = ["--problems", str(questions), "--out", str(tmp_path / "out"), "--base_url", server.base_url]
    code = "import sys; from recipes.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "sample", *words, "--model", "tiny", "--num_samples", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", done.stderr


def test_a_problem_that_the_server_refuses_is_counted(server: ModelServer, questions: Path, tmp_path: Path) -> None:
    server.faults = ["ok", "refuse", "ok", "filtered"]
    assert sample(server, questions, tmp_path / "samples") == 0
    assert [group.problem.id for group in read_groups(tmp_path / "samples")] == ["p0", "p2", "p4", "p5"]
    counts = manifest_of(tmp_path / "samples")["counts"]
    assert (counts["in"], counts["out"]) == (18, 12)
    assert counts["rejected"] == {"refused by the server": 6}
    lines = (tmp_path / "samples" / "quarantine.jsonl").read_text().splitlines()
    refused = {row["id"]: row["detail"] for row in map(json.loads, lines)}
    assert refused["p1"].startswith("the server: HTTP 400")
    assert refused["p3"] == "the server: finish_reason 'content_filter'"


def test_a_server_that_refuses_everything_is_an_error(
    server: ModelServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.then = "refuse"
    assert sample(server, questions, tmp_path / "samples") == 2
    assert "could be sampled" in capsys.readouterr().err
    assert not (tmp_path / "samples" / "manifest.json").exists()


def test_secrets_are_written_nowhere(
    server: ModelServer,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    caplog.set_level("DEBUG")
    for number, fault in enumerate(("ok", "refuse", "401", "404")):
        server.faults = [fault]
        sample(server, questions, tmp_path / f"run{number}", "--parquet", "true")
    address = server.base_url.replace("http://", "http://user:url-canary@")
    assert sample(server, questions, tmp_path / "run4", "--base_url", address) == 2
    assert all(headers["authorization"] for headers in server.headers)
    printed = capsys.readouterr()
    written = [path.read_bytes() for folder in tmp_path.glob("run*") for path in folder.iterdir()]
    assert len(written) > 8
    for text in (printed.out, printed.err, caplog.text, *(content.decode("latin-1") for content in written)):
        assert "canary" not in text


def test_another_model_is_refused_with_exit_code_4(
    server: ModelServer, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(server, questions, tmp_path / "samples") == 0
    assert sample(server, questions, tmp_path / "samples", "--model", "other") == 4
    assert "model ('tiny' then, 'other' now)" in capsys.readouterr().err
    assert sample(server, questions, tmp_path / "samples", "--num_samples", "5") == 0
    assert [body["n"] for body in server.requests] == [3] * 6 + [2] * 6


def test_a_problem_that_always_fails_is_set_aside_after_three_runs(
    server: ModelServer, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers 500 to one problem of six: two runs say so, the third goes on without it, with its reason."""
    monkeypatch.setattr(openai_generator, "OpenAIGenerator", partial(OpenAIGenerator, attempts=1))
    server.breaks_on = "What is 4?"
    out = tmp_path / "samples"
    assert [sample(server, questions, out) for _ in range(3)] == [2, 2, 0]
    assert [group.problem.id for group in read_groups(out)] == ["p0", "p1", "p2", "p3", "p5"]
    assert manifest_of(out)["counts"]["rejected"] == {"refused by the server": 3}
    (row,) = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert row["id"] == "p4"
    assert "no usable reply in 3 runs" in row["detail"]
    kept = keys_of(out)
    server.breaks_on = ""
    assert sample(server, questions, out, "--num_samples", "4") == 0  # and is tried again when there is work anew
    assert len(read_groups(out)) == 6
    assert set(kept) < set(keys_of(out))


def test_a_server_that_is_down_sets_no_problem_aside(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_generator, "OpenAIGenerator", partial(OpenAIGenerator, attempts=1))
    out = tmp_path / "samples"
    with ModelServer() as gone:
        pass
    assert [sample(gone, questions, out) for _ in range(4)] == [2] * 4
    with ModelServer() as broken:
        broken.then = "500"
        assert [sample(broken, questions, out) for _ in range(4)] == [2] * 4
    assert not (out / "quarantine.jsonl").exists()


def test_removing_a_line_or_mending_one_asks_for_that_problem_alone(
    server: ModelServer, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "samples"
    assert sample(server, questions, out) == 0
    lines = questions.read_text().splitlines(keepends=True)
    questions.write_text("".join([*lines[:2], lines[3].replace("What is 3?", "What is 33?"), *lines[4:]]))
    server.requests.clear()
    assert sample(server, questions, out) == 0
    assert len(server.requests) == 1
    assert [group.problem.id for group in read_groups(out)] == ["p0", "p1", "p3", "p4", "p5"]


def test_a_positive_log_probability_is_none(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openai_generator, "OpenAIGenerator", partial(OpenAIGenerator, attempts=1))

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        told = scripted_reply(body)
        for choice in told["choices"]:
            choice["logprobs"] = {"content": [{"token": "a", "logprob": 5.0}]}
        return told

    with ModelServer(reply=reply) as wrong:
        assert sample(wrong, questions, tmp_path / "samples", "--logprobs", "true") == 2
    assert "logprob" in capsys.readouterr().err
