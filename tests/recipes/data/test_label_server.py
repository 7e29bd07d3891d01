"""`mpo label-steps` from servers: killed, broken, limited, priced; the labels are those of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from recipes.cli import main
from recipes.config import VerifyConfig
from recipes.stage.folder import manifest_of, open_stage
from recipes.stage.groups import GROUPS, read_groups, write_groups, write_problems
from rewards.prm.labelling.continuations import CONTINUATIONS, with_right_continuations
from rewards.sampling import openai_generator
from rewards.sampling.openai_generator import OpenAIGenerator
from rewards.steps import split_on_blank_lines
from rewards.types import MonteCarloCount, Rollout, Verdict
from tests import simulated_policy
from tests.model_server import ModelServer
from tests.recipes.killing import KILLED, ended, start, stored
from tests.rewards.prm.labelling.test_served_labels import groups_of
from tests.server_process import ServerProcess, until


@pytest.fixture
def verified(tmp_path: Path) -> Path:
    """Eight problems with an image of their own, three responses each, whose first errors are known."""
    groups = []
    for number, group in enumerate(groups_of(8)[0]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (4, 4), (20 * number, 0, 0)).save(path)
        groups.append(replace(group, problem=replace(group.problem, images=(path,))))
    write_problems(tmp_path / "problems.jsonl", [group.problem for group in groups])
    stage = open_stage("verify", VerifyConfig(tmp_path, tmp_path / "verified"), inputs=[])
    write_groups(stage.out, groups)
    return stage.finish({"in": 24, "out": 24, "rejected": {}, "problems": str(tmp_path / "problems.jsonl")})


def flags(verified: Path, out: Path, urls: list[str], *more: str) -> list[str]:
    asked = ["label-steps", "--groups", str(verified), "--out", str(out), "--model", "tiny", "--base_url", *urls]
    return [*asked, "--budget", "bisect", "--num_continuations", "4", "--responses", "4", "--concurrency", "2", *more]


@pytest.mark.timeout(300)
def test_kills_of_the_client_and_of_a_server_leave_the_same_labels(verified: Path, tmp_path: Path) -> None:
    """Three servers; the client is killed twice, one server once and comes back. Labels byte for byte those of one
    server and one run, nothing kept twice, and only what was under way is asked again."""
    servers = [ServerProcess(tmp_path / f"log{number}", model="simulated") for number in range(3)]
    try:
        straight, out = tmp_path / "straight", tmp_path / "labelled"
        assert main(flags(verified, straight, [servers[0].base_url], "--keep_continuations", "true")) == 0
        asked = len(servers[0].asked())
        command = flags(verified, out, [server.base_url for server in servers], "--keep_continuations", "true")
        rng = random.Random(os.urandom(8))
        for _ in range(2):
            before = len(stored(out))
            child = start(command, pause=0.02, log=tmp_path / "client")
            until(lambda have=before: len(stored(out)) > have + 2)
            time.sleep(rng.random() * 0.2)
            os.kill(child, signal.SIGKILL)
            assert ended(child) == KILLED
        killer = threading.Thread(target=_kill_and_restart, args=(servers[1], rng.random() * 0.5), daemon=True)
        killer.start()
        assert main(command) == 0
        killer.join(timeout=60)
        assert (out / GROUPS).read_bytes() == (straight / GROUPS).read_bytes()
        assert stored(out) == stored(straight)
        again = sum(len(server.asked()) for server in servers) - asked
        assert again <= asked + 2 * (2 * 3 + 12) + 6  # per kill: what was under way, and the estimate's sample
        kept = [list(with_right_continuations(read_groups(out), folder / CONTINUATIONS)) for folder in (straight, out)]
        assert kept[0] == kept[1]
        assert any(len(group.rollouts) > 3 for group in kept[0])
    finally:
        for server in servers:
            server.kill()


def _kill_and_restart(server: ServerProcess, wait: float) -> None:
    time.sleep(wait)
    server.kill()
    time.sleep(0.3)
    server.start()


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(reply=simulated_policy.reply, models=["tiny"]) as running:
        yield running


def test_the_price_is_said_and_the_limit_holds(
    server: ModelServer, verified: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = flags(verified, tmp_path / "out", [server.base_url], "--price_per_million_tokens", "2000")
    assert main([*command, "--max_tokens_total", "400"]) == 2
    said = capsys.readouterr().err
    assert "mpo: stopped: " in said.splitlines()[-1]
    assert "max_tokens_total is 400; what they gave is kept, and the same command with a larger" in said
    assert not (tmp_path / "out" / "manifest.json").exists()
    asked = len(server.requests)
    assert main([*command, "--max_tokens_total", "400"]) == 2
    assert len(server.requests) == asked
    assert main(command) == 0
    assert " at the given price" in capsys.readouterr().err
    counts = manifest_of(tmp_path / "out")["counts"]
    assert (counts["in"], counts["out"]) == (24, 24)
    assert counts["drawn"]["tokens"] > 0


def test_a_problem_that_always_fails_is_set_aside_after_three_runs(
    server: ModelServer, verified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_generator, "OpenAIGenerator", partial(OpenAIGenerator, attempts=1))
    server.breaks_on = "What is 4?"
    command = flags(verified, tmp_path / "out", [server.base_url])
    assert [main(command) for _ in range(3)] == [2, 2, 0]
    assert [group.problem.id for group in read_groups(tmp_path / "out")] == [f"p{i}" for i in range(8) if i != 4]
    counts = manifest_of(tmp_path / "out")["counts"]
    assert counts["rejected"]["no usable reply of the server"] == 3
    assert "no usable reply in 3 runs" in counts["drawn"]["set_aside"]["p4"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["--policy", "x"], "expected either policy (a model folder), or base_url and model (a server)"),
        (["--engine", "ray"], "engine ray is for a model in this process"),
        (["--max_tokens_total", "-1"], "--max_tokens_total: expected a whole number of at least 0"),
        (["--price_per_million_tokens", "nan"], "--price_per_million_tokens: expected a number"),
        (["--concurrency", "0"], "--concurrency: expected a whole number of at least 1"),
    ],
)
def test_wrong_settings_are_one_line(
    verified: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], line: str
) -> None:
    assert main(flags(verified, tmp_path / "out", ["http://127.0.0.1:9/v1"], *changes)) == 2
    assert line in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def all_wrong(verified: Path, tmp_path: Path) -> Path:
    """The eight problems with two wrong responses each, and where they go wrong."""
    groups = [replace(group, rollouts=group.rollouts[1:]) for group in read_groups(verified)]
    counted = tuple(replace(group, rollouts=tuple(_counted(rollout) for rollout in group.rollouts)) for group in groups)
    stage = open_stage("verify", VerifyConfig(tmp_path, tmp_path / "wrong"), inputs=[])
    write_groups(stage.out, counted)
    return stage.finish({"in": 16, "out": 16, "rejected": {}, "problems": str(tmp_path / "problems.jsonl")})


def continued(all_wrong: Path, out: Path, server: ModelServer) -> list[str]:
    asked = ["continue", "--groups", str(all_wrong), "--out", str(out), "--span_source", "mc", "--model", "tiny"]
    return [*asked, "--base_url", server.base_url, "--num_continuations", "3", "--samples_a_request", "2"]


def test_continue_asks_a_server_too(server: ModelServer, all_wrong: Path, tmp_path: Path) -> None:
    """Problems with only wrong samples are asked again from their sound beginnings; the simulated policy is right from
    there in 6 of 10 continuations, and those that are refused are left out."""
    server.faults = ["ok", "ok", "refuse"]
    assert main(continued(all_wrong, tmp_path / "out", server)) == 0
    counts = manifest_of(tmp_path / "out")["counts"]
    made = [rollout for group in read_groups(tmp_path / "out") for rollout in group.rollouts]
    assert counts["continuations"] - len(made) in (1, 2)  # of a request
    assert {rollout.verdict for rollout in made} == {Verdict.CORRECT, Verdict.WRONG}
    assert counts["tokens"] > 0


def test_continue_sets_a_problem_aside_that_always_fails(
    server: ModelServer, all_wrong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others gave is kept: the second run asks about this one alone."""
    monkeypatch.setattr(openai_generator, "OpenAIGenerator", partial(OpenAIGenerator, attempts=1))
    server.breaks_on = "What is 4?"
    command = continued(all_wrong, tmp_path / "out", server)
    assert main(command) == 2
    server.requests.clear()
    assert main(command) == 2
    assert all("What is 4?" in str(body) for body in server.requests)
    assert main(command) == 0
    counts = manifest_of(tmp_path / "out")["counts"]
    assert counts["rejected"]["no usable reply of the server"] == 1
    assert "no usable reply in 3 runs" in counts["set_aside"]["p4"]


def _counted(rollout: Rollout) -> Rollout:
    """With a count for each step: a success before the first wrong one, none from there on."""
    steps = split_on_blank_lines(rollout.completion.text)
    sound = [all("wrong" not in earlier.text for earlier in steps[: place + 1]) for place in range(len(steps))]
    sound[-1] = False
    return rollout.with_(mc=tuple(MonteCarloCount(int(one), 1) for one in sound), label_source="mc:full:1")
