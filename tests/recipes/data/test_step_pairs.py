"""Step pairs from the command line: a policy's own continuations become the chosen side, and a kill repeats none."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from recipes.cli import main
from recipes.stage.folder import MANIFEST, manifest_of
from recipes.stage.groups import read_groups, write_problems
from rewards.errors import StoreError
from rewards.interchange.trl_rows import read_trl_parquet
from rewards.kept.calls import in_turn
from rewards.prm.labelling.continuations import CONTINUATIONS, KeptContinuations, with_right_continuations
from rewards.prm.labelling.monte_carlo import Continuer, Task
from rewards.sampling.generator import Generator, Sample
from rewards.types import Completion, FinishReason, Problem, Rollout, RolloutGroup, Verdict
from tests.recipes.run_folders import write_stage

ROOT = Path(__file__).resolve().parents[3]
C, W = Verdict.CORRECT, Verdict.WRONG
SHARED = "See Red 3\n\nNow 3 to 3\n\n"
RIGHT = SHARED + "See Blue 9\n\nNow 3 to 9\n\nFinal answer: 6"
WRONG = SHARED + "See Blue 8\n\nNow 3 to 8\n\nFinal answer: 5"
OTHER = "See Blue 9\n\nNow 9 to 9\n\nSee Red 3\n\nNow 3 to 9\n\nFinal answer: 6"  # right, and shares nothing with WRONG


def run(command: str, **flags: object) -> int:
    return main([command, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Path:
    """A policy that has learned RIGHT and WRONG by heart, and verified responses of which the right one is OTHER."""
    folder = tmp_path_factory.mktemp("world")
    Image.new("RGB", (64, 32), "white").save(folder / "a.png")
    problem = Problem("a", "Largest minus smallest?", (folder / "a.png",), "6")
    write_problems(folder / "problems.jsonl", [problem])
    for name, texts in (("demonstrations", {RIGHT: C, WRONG: C}), ("verified", {OTHER: C, WRONG: W})):
        group = RolloutGroup(problem, tuple(Rollout(Completion(text), verdict) for text, verdict in texts.items()))
        write_stage(folder / name, [group], folder / "problems.jsonl", name="verify")
    settings = {"max_steps": 150, "batch_size": 8, "learning_rate": 5e-3}
    given = {"policy": policy_folder, "demonstrations": folder / "demonstrations", "out": folder / "policy"}
    assert run("warm-start", **given, **settings) == 0
    return folder


@pytest.fixture(scope="module")
def labelled(world: Path) -> Path:
    paths = {"groups": world / "verified", "policy": world / "policy", "out": world / "labelled"}
    assert run("label-steps", **paths, num_continuations=8, max_new_tokens=40, keep_continuations=True) == 0
    return world / "labelled"


def kept(folder: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / CONTINUATIONS)) as connection:
        return connection.execute("SELECT * FROM continuations").fetchall()


def test_every_continuation_is_kept_with_its_verdict(labelled: Path) -> None:
    """The counts are those of the kept verdicts, step by step."""
    rows = kept(labelled)
    (group,) = read_groups(labelled)
    for rollout in group.rollouts:
        steps = rollout.completion.text.split("\n\n")
        for index, count in enumerate(rollout.mc[:-1]):
            prefix = "\n\n".join(steps[: index + 1])
            found = [row[-1] for row in rows if str(row[1]).rstrip() == prefix]
            verdicts = [verdict for verdict in found if verdict in ("correct", "wrong")]  # a miss is out of K
            assert (verdicts.count("correct"), len(verdicts)) == (count.correct, count.total)
    assert len(rows) == manifest_of(labelled)["counts"]["drawn"]["continuations"] == 64


def test_a_continuation_becomes_the_chosen_side(labelled: Path, world: Path, tmp_path: Path) -> None:
    """WRONG goes bad at its third step; no sampled response shares its first two, but continuations from there do."""
    assert run("pairs", groups=labelled, out=tmp_path / "pairs", rule="step_prefix") == 0
    (row,) = read_trl_parquet(tmp_path / "pairs" / "pairs.parquet")
    chosen, rejected = (row[side][0]["content"][0]["text"] for side in ("chosen", "rejected"))
    assert rejected == WRONG
    assert chosen.startswith(SHARED)
    assert chosen.endswith("Final answer: 6")
    assert json.loads((tmp_path / "pairs" / "report.json").read_text())["sources"] == {"step_prefix": 1}
    settings = {"policy": world / "policy", "pairs": tmp_path / "pairs", "out": tmp_path / "mpo"}
    assert run("train-mpo", **settings, max_steps=1, batch_size=1) == 0
    assert manifest_of(tmp_path / "mpo")["counts"] == {"in": 1, "out": 1, "rejected": {}}


def test_without_the_texts_there_is_no_pair(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("groups.jsonl", MANIFEST):
        (tmp_path / name).write_bytes((labelled / name).read_bytes())
    manifest = manifest_of(labelled)
    manifest["files"] = {"groups.jsonl": manifest["files"]["groups.jsonl"]}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert run("pairs", groups=tmp_path, out=tmp_path / "pairs", rule="step_prefix") == 2
    assert "no pair could be made" in capsys.readouterr().err


SLOWLY = """
import sys, time
from recipes.cli import main
from rewards.prm.labelling.continuations import KeptContinuations
keep = KeptContinuations._keep
def slowly(self, task, result):
    keep(self, task, result)
    time.sleep(0.5)
KeptContinuations._keep = slowly
sys.exit(main(sys.argv[1:]))
"""


def begun(folder: Path) -> bool:
    try:
        return (folder / CONTINUATIONS).exists() and len(kept(folder)) > 0
    except sqlite3.OperationalError:  # its tables are not there yet
        return False


@pytest.mark.timeout(300)
def test_after_a_kill_the_same_are_kept(labelled: Path, world: Path, tmp_path: Path) -> None:
    paths = {"groups": world / "verified", "policy": world / "policy", "out": tmp_path / "out"}
    settings = {**paths, "num_continuations": 8, "max_new_tokens": 40, "keep_continuations": True, "batch_rows": 8}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", SLOWLY, "label-steps", *words], env=environment)
    while child.poll() is None and not begun(tmp_path / "out"):
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert 0 < len(kept(tmp_path / "out")) < 64
    assert run("label-steps", **settings) == 0
    assert run("label-steps", **(settings | {"out": tmp_path / "straight"})) == 0
    assert kept(tmp_path / "out") == kept(tmp_path / "straight")
    assert read_groups(tmp_path / "out") == read_groups(tmp_path / "straight")


def test_a_call_made_again_keeps_no_row_twice_and_other_settings_start_empty(labelled: Path, tmp_path: Path) -> None:
    problem, path = Problem("p", "?"), tmp_path / "a %23#?b" / CONTINUATIONS

    class Fixed(Generator):
        def draw(self, problems, n, *, prefixes=None, seed, done=frozenset()):
            for place, prefix in enumerate(prefixes):
                texts = [f"\0{prefix}{seed}{i}" for i in range(n)]
                yield [Sample(place, i, seed, Completion(text, FinishReason.LENGTH)) for i, text in enumerate(texts)]

    def call(fingerprint: int, seed: int) -> None:
        run = in_turn(Continuer(Fixed(), lambda answers: [C] * len(answers), with_texts=True))
        ((_, result),) = KeptContinuations(path, {"f": fingerprint}, run)([Task([problem, problem], "ab", 2, seed)])
        assert set(result) == {"verdicts", "tokens", "seconds"}

    path.parent.mkdir()
    for seed in (0, 0, 1):
        call(1, seed)
    assert len(kept(path.parent)) == 8
    (group,) = with_right_continuations([RolloutGroup(problem, ())], path)
    assert sorted(r.completion.text for r in group.rollouts) == sorted(
        f"{prefix}\0{prefix}{seed}{i}" for prefix in "ab" for seed in (0, 1) for i in (0, 1)
    )
    assert {r.completion.finish_reason for r in group.rollouts} == {FinishReason.LENGTH}
    call(2, 0)
    assert len(kept(path.parent)) == 4
    path.write_text("no database " * 1000)
    with pytest.raises(StoreError, match="cannot be read as kept continuations"):
        list(with_right_continuations([RolloutGroup(problem, ())], path))
