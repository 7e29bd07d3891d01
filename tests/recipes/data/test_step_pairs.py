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
from rewards.pairing.prefixes import is_all_wrong, sound_beginnings
from rewards.pairing.spans import RejectedSpan
from rewards.prm.labelling.continuations import CONTINUATIONS, KeptContinuations, with_right_continuations
from rewards.prm.labelling.monte_carlo import Continuer
from rewards.sampling.generator import Generator, Sample, Task
from rewards.types import Completion, FinishReason, Problem, Rollout, RolloutGroup, StepScores, Verdict
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
    counts = manifest_of(tmp_path / "mpo")["counts"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (1, 1, {})


@pytest.fixture(scope="module")
def all_wrong(world: Path) -> Path:
    """A problem whose only sample goes bad at its third step, as step scores say."""
    scores = StepScores((0.9, 0.9, 0.2, 0.4, 0.3))
    (group,) = read_groups(world / "verified")
    wrong = Rollout(Completion(WRONG), W, step_scores=scores, reward=0.54)
    write_stage(world / "scored", [RolloutGroup(group.problem, (wrong,))], world / "problems.jsonl", name="score")
    return world / "scored"


def test_a_problem_with_only_wrong_samples_is_continued(all_wrong: Path, world: Path, tmp_path: Path) -> None:
    """Eight continuations from the end of its second step; right ones are chosen against its third, and trained on."""
    drawing = {"policy": world / "policy", "num_continuations": 8, "max_new_tokens": 40, "batch_rows": 8}
    assert run("continue", groups=all_wrong, out=tmp_path / "continued", **drawing) == 0
    (group,) = read_groups(tmp_path / "continued")
    assert len(group.rollouts) == 8
    assert all(rollout.completion.text.startswith(SHARED) for rollout in group.rollouts)
    counts = manifest_of(tmp_path / "continued")["counts"]
    assert (counts["in"], counts["out"], counts["continuations"], counts["solved"]) == (1, 1, 8, 1)

    limits = {"rule": "correctness_and_prm", "min_step_score": 0}  # the continuations were not scored here
    assert run("pairs", groups=all_wrong, out=tmp_path / "without", **limits) == 2  # no right sample, no pair
    assert run("pairs", groups=all_wrong, continued=tmp_path / "continued", out=tmp_path / "pairs", **limits) == 0
    (row,) = read_trl_parquet(tmp_path / "pairs" / "pairs.parquet")
    chosen, rejected = (row[side][0]["content"][0]["text"] for side in ("chosen", "rejected"))
    assert (chosen[: len(SHARED)], chosen.endswith("Final answer: 6")) == (SHARED, True)
    assert rejected[slice(*row["rejected_span"])] == "See Blue 8"
    settings = {"policy": world / "policy", "pairs": tmp_path / "pairs", "out": tmp_path / "mpo"}
    assert run("train-mpo", **settings, max_steps=1, batch_size=1) == 0


def test_what_cannot_be_continued_is_counted() -> None:
    span, problem = RejectedSpan("first_bad_step"), Problem("p", "?")

    def wrong(*scores: float, tail: str = "") -> Rollout:
        return Rollout(Completion(WRONG + tail), W, step_scores=StepScores(scores) if scores else None)

    late = [wrong(0.9, 0.9, 0.9, 0.1, 0.1, tail=tail) for tail in ("", "1")]
    group = RolloutGroup(problem, (wrong(0.1, 0.9, 0.9, 0.9, 0.9), wrong(), *late, wrong(0.9, 0.1, 0.9, 0.9, 0.9)))
    found, reasons = sound_beginnings(group, span, most=1)
    assert [one.prefix for one in found] == [SHARED + "See Blue 8\n\n"]  # two responses have it; the longest is first
    assert reasons == {"bad_from_the_start": 1, "no_step_scores": 1, "over_the_number_of_prefixes": 1}
    assert sound_beginnings(group, span, most=9)[0][1].prefix == "See Red 3\n\n"
    assert is_all_wrong(group)
    assert not is_all_wrong(RolloutGroup(problem, (Rollout(Completion("?"), Verdict.TIMEOUT),)))


def test_without_the_texts_there_is_no_pair(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "groups.jsonl").write_bytes((labelled / "groups.jsonl").read_bytes())
    manifest = manifest_of(labelled)
    files = {"groups.jsonl": manifest["files"]["groups.jsonl"]}  # a folder in which no other file was written
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "files": files}))
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
