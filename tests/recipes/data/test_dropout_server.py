"""`mpo pairs --rule dropout_ntp` and `mpo continue` from servers, and what a kill or a server costs them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from recipes.cli import main
from recipes.config import SampleConfig
from recipes.data.pairs import REPORT
from recipes.stage.folder import PAIRS, manifest_of, open_stage
from recipes.stage.groups import write_groups, write_problems
from rewards.interchange.trl_rows import read_trl_parquet
from rewards.sampling import openai_generator
from rewards.sampling.openai_generator import OpenAIGenerator
from rewards.types import Completion, Problem, Rollout, RolloutGroup
from tests import simulated_policy
from tests.model_server import ModelServer
from tests.recipes.killing import KILLED, ended, start, stored
from tests.server_process import ServerProcess, until

SAID = "{} see a red square.\n\nIt is large.\n\nFinal answer: {}"


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    """Six questions without a reference answer, each about an image, with two responses."""
    groups = []
    for number in range(6):
        Image.new("RGB", (4, 4), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
        problem = Problem(f"p{number}", f"What is {number}?", (tmp_path / f"{number}.png",))
        texts = (SAID.format("We", number), SAID.format("They", "none"))
        groups.append(RolloutGroup(problem, tuple(Rollout(Completion(text)) for text in texts)))
    write_problems(tmp_path / "problems.jsonl", [group.problem for group in groups])
    stage = open_stage("sample", SampleConfig(tmp_path, tmp_path / "sampled"), inputs=[])
    write_groups(stage.out, groups)
    return stage.finish({"in": 12, "out": 12, "rejected": {}, "problems": str(tmp_path / "problems.jsonl")})


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(reply=simulated_policy.reply, models=["tiny"]) as running:
        yield running


def flags(sampled: Path, out: Path, *urls: str) -> list[str]:
    asked = ["pairs", "--groups", str(sampled), "--out", str(out), "--rule", "dropout_ntp", "--model", "tiny"]
    return [*asked, "--base_url", *urls, "--concurrency", "2"]


def test_halves_are_continued_without_the_image(server: ModelServer, sampled: Path, tmp_path: Path) -> None:
    server.faults = ["ok", "refuse"]
    assert main(flags(sampled, tmp_path / "out", server.base_url)) == 0
    assert "image_url" not in json.dumps(server.requests)
    beginnings = {body["messages"][-1]["content"][0]["text"] for body in server.requests}
    halves = {f"{who} see a red square.\n\nIt" for who in ("We", "They")}  # a word's end nearest to the middle
    assert beginnings == halves
    rows = list(read_trl_parquet(tmp_path / "out" / PAIRS))
    sides = [[row[side][0]["content"][0]["text"] for side in ("chosen", "rejected")] for row in rows]
    assert all(rejected.startswith(tuple(halves)) for _, rejected in sides)
    assert len(rows) == 11
    assert json.loads((tmp_path / "out" / REPORT).read_bytes())["rejected_rollouts"]["continuation_refused"] == 1


@pytest.mark.timeout(300)
def test_a_kill_costs_what_was_under_way(sampled: Path, tmp_path: Path) -> None:
    """As many continuations as before are kept, and the pairs are those of a run that nobody killed."""
    server = ServerProcess(tmp_path / "server", model="simulated")
    try:
        straight, out = tmp_path / "straight", tmp_path / "out"
        assert main(flags(sampled, straight, server.base_url)) == 0
        asked = len(server.asked())
        child = start(flags(sampled, out, server.base_url), pause=0.05, log=tmp_path / "client")
        until(lambda: len(stored(out)) > 2)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == KILLED
        kept = len(stored(out))
        assert main(flags(sampled, out, server.base_url)) == 0
        assert (out / PAIRS).read_bytes() == (straight / PAIRS).read_bytes()
        assert len(server.asked()) - asked <= 12 + 2 * 4  # what was under way at the kill
        assert kept > 2
    finally:
        server.kill()


def test_a_problem_that_always_fails_is_set_aside_after_three_runs(
    server: ModelServer, sampled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_generator, "OpenAIGenerator", partial(OpenAIGenerator, attempts=1))
    server.breaks_on = "What is 4?"
    command = flags(sampled, tmp_path / "out", server.base_url)
    assert [main(command) for _ in range(3)] == [2, 2, 0]
    counts = manifest_of(tmp_path / "out")["counts"]
    assert (counts["in"], counts["out"]) == (6, 5)
    assert counts["rejected"] == {"no usable reply of the server": 1}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["--policy", "x"], "expected either policy (a model folder), or base_url and model (a server)"),
        (["--rule", "correctness"], "the other rules take no policy"),
        (["--engine", "ray"], "engine ray is for a model in this process"),
    ],
)
def test_wrong_settings_are_one_line(
    sampled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], line: str
) -> None:
    assert main([*flags(sampled, tmp_path / "out", "http://127.0.0.1:9/v1"), *changes]) == 2
    assert line in capsys.readouterr().err.strip().splitlines()[-1]
