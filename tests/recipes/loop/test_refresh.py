"""On-policy refresh of `mpo rounds`: spends no more than its budget, resumes, is measured, and is refused if it cannot
work. Every stage for real, on the smallest world; the policy hardly moves, so the guard keeps every round."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from recipes.cli import main
from recipes.loop.pipeline import _trained_prm
from recipes.loop.settings import Settings
from recipes.loop.stages import Stages
from recipes.loop.start import world_start
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups

TINY = Path(__file__).parents[1] / "digits_tiny.yaml"
BUDGET = 60
CHANGES = {
    "world": {"num_preference": 24},  # some responses of each round have to be right
    "train_mpo": {"learning_rate": 1e-12},
    "refresh_prm": {"max_steps": 3, "earlier_share": 0.25},
}


def write_settings(path: Path, changes: dict[str, dict[str, Any]]) -> Path:
    settings = yaml.safe_load(TINY.read_text())
    for section, values in {**CHANGES, **changes}.items():
        settings[section] = {**settings.get(section, {}), **CHANGES.get(section, {}), **values}
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, a policy and a PRM that was trained on `prm_labelled`."""
    folder = tmp_path_factory.mktemp("refresh")
    settings, do = Settings(write_settings(folder / "settings.yaml", {})), Stages()
    start = world_start(do, settings, folder, 0)
    _trained_prm(do, settings, start, folder, 0)
    return folder


def command(run: Path, out: Path, *more: str) -> list[str]:
    given: dict[str, Path] = {"settings": run / "settings.yaml", "policy": run / "policy", "prm": run / "prm"}
    given |= {"problems": run / "world" / "preference.jsonl", "guard": run / "world" / "test.jsonl", "out": out}
    return ["rounds", *(word for name, path in given.items() for word in (f"--{name}", str(path))), *more]


def refreshing(run: Path, out: Path, rounds: int) -> list[str]:
    labels = ["--prm_labels", str(run / "prm_labelled")]
    return command(run, out, "--rounds", str(rounds), "--refresh_budget", str(BUDGET), *labels)


def made_of(out: Path) -> dict[str, bytes]:
    """What the refresh makes that must not depend on kills."""
    return {name: (out / "round2" / name).read_bytes() for name in ("labelled/groups.jsonl", "prm/model.safetensors")}


def drawn_for(labelled: Path) -> int:
    """Continuations that were drawn, by the store of the calls."""
    with closing(sqlite3.connect(f"file:{labelled / 'calls.sqlite'}?mode=ro", uri=True)) as connection:
        calls = [json.loads(result) for (result,) in connection.execute("SELECT result FROM calls")]
    return sum(len(call.get("verdicts", ())) for call in calls)


def test_a_refresh_within_its_budget_killed_and_continued(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rounds"
    assert main(refreshing(run, out, 1)) == 0
    said = capsys.readouterr()
    found = json.loads((out / "rounds.json").read_text())
    told = found["rounds"][1]["refresh"]
    assert (found["rounds"][1]["prm"], found["prm"]) == (os.path.relpath(run / "prm", out), "round2/prm")
    assert (told["after_round"], told["prm"], told["budget"]) == (1, "round2/prm", BUDGET)

    labelled, prm = manifest_of(out / "round2" / "labelled"), manifest_of(out / "round2" / "prm")
    assert (
        told["continuations"] == labelled["counts"]["drawn"]["continuations"] == drawn_for(out / "round2" / "labelled")
    )
    assert 0 < told["continuations"] <= BUDGET
    assert labelled["counts"]["estimate"]["sample"] == 0  # nothing is drawn beside the labels
    assert labelled["sources"]["policy"][1] == str(out / "round1" / "policy")
    assert prm["sources"]["model"][1] == str(run / "prm")
    assert prm["sources"]["earlier[0]"][1] == str(run / "prm_labelled")
    assert prm["fingerprint"]["settings"]["max_steps"] == 3
    problems = len(read_groups(out / "round2" / "labelled"))
    assert told["earlier_problems"] == prm["counts"]["earlier problems"] == round(problems / 3)  # a quarter of all

    before, after = (
        json.loads((out / place / "best_of_n" / "results.json").read_text())
        for place in ("round1/guard", "round2/guard_before")
    )
    for name, results in (("before", before), ("after", after)):
        lead = fmean(results["values"]["prm"]["4"]) - fmean(results["values"]["majority"]["4"])
        assert told[name]["lead"]["mean"] == pytest.approx(lead)
        assert told[name]["within_problem_auc"] == results["within_problem_auc"]
    line = f"PRM refreshed after round 1, {told['continuations']} of {BUDGET} continuations for "
    closing = next(line for line in said.err.splitlines() if line.startswith("rounds: 1 rounds"))
    assert line in closing
    assert "best@4 of the PRM − majority" in closing
    assert "AUC within a problem" in closing
    assert f"{told['continuations']} of {BUDGET}" in said.out
    assert f"PRM that is kept: {out / 'round2' / 'prm'}" in said.out

    straight = made_of(out)
    for name in ("labelled", "prm", "guard_before"):
        shutil.rmtree(out / "round2" / name)
    for name in ("manifest.json", "rounds.json"):
        (out / name).unlink()
    killed = subprocess.run(
        [sys.executable, "-P", "-m", "recipes.cli", *refreshing(run, out, 1)],
        env={**os.environ, "MPO_FAILPOINT": "after_commit:2", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert (out / "round2" / "labelled" / "calls.sqlite").exists()
    assert not (out / "round2" / "prm").exists()

    assert main(refreshing(run, out, 2)) == 0
    assert made_of(out) == straight
    assert drawn_for(out / "round2" / "labelled") == told["continuations"]
    assert manifest_of(out / "round2" / "scored")["sources"]["prm"][1] == str(out / "round2" / "prm")
    again = json.loads((out / "rounds.json").read_text())
    assert {**again["rounds"][1]["refresh"], "seconds": 0} == {**told, "seconds": 0}
    second = again["rounds"][2]
    rescored = [
        fmean(rollout.reward or 0.0 for rollout in group.rollouts)
        for group in read_groups(out / "round2" / "guard_before" / "scored")
    ]
    assert second["change"]["reward"]["mean"] == pytest.approx(second["reward"]["mean"] - fmean(rescored))
    assert again["prm"] == "round3/prm"
    sources = manifest_of(out / "round3" / "prm")["sources"]
    assert sources["model"][1] == str(out / "round2" / "prm")
    assert [sources[f"earlier[{place}]"][1] for place in (0, 1)] == [
        str(run / "prm_labelled"),
        str(out / "round2" / "labelled"),
    ]


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({}, ["--refresh_budget", "1"], "refresh_budget=1 has no room for one step: expected at least label_steps."),
        ({}, ["--prm_labels", "{run}/prm_labelled"], "prm_labels are for the refresh of the PRM: give refresh_budget"),
        ({"score": {"base_url": ["http://h/v1"], "model": "m"}}, [], "a PRM behind a server cannot continue its train"),
        ({"label_steps": {"responses": 1}}, [], "label_steps.responses: expected at least 2 with refresh_budget"),
        ({"label_steps": {"choose": "uncertain", "choose_fraction": 0.5}}, [], "so none has a spread"),
        ({"label_steps": {"budget": "bisect"}, "refresh_prm": {"soft_labels": True}}, [], "got mc:bisect:2"),
        ({"refresh_prm": {"prm_format": "visualprm"}}, [], "a PRM of the format 'step_end'"),
        ({"refresh_prm": {"earlier": ["x"]}}, [], "refresh_prm.earlier is set by the loop; remove it"),
        ({"refresh_prm": {"epochs": 1}}, [], "max_steps=3 and epochs=1 both say how long to train"),
    ],
)
def test_a_refresh_that_cannot_work_is_refused_before_anything_runs(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, dict[str, Any]],
    flags: list[str],
    message: str,
) -> None:
    settings = write_settings(tmp_path / "settings.yaml", changes)
    flags = [flag.format(run=run) for flag in flags] or ["--refresh_budget", str(BUDGET)]
    given = command(run, tmp_path / "out", *flags)
    given[given.index("--settings") + 1] = str(settings)
    assert main(given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_length_of_its_own_replaces_the_one_of_train_prm(tmp_path: Path) -> None:
    paths = dict.fromkeys(("groups", "model", "out"), tmp_path)
    settings = Settings(write_settings(tmp_path / "a.yaml", {"train_prm": {"max_steps": 0, "epochs": 2}}))
    refreshing = settings.build("refresh_prm", **paths)
    assert (refreshing.max_steps, refreshing.epochs) == (3, 0.0)
    assert (refreshing.until_first_error, refreshing.learning_rate) == (True, 0.001)  # as of train_prm
    assert refreshing.save_steps == 0


ANSWERS = """
import os, sys, time
from tests.model_server import ModelServer


def reply(body):
    texts = [f"It is so.\\n\\nFinal answer: {i}" for i in range(body["n"])]  # one of them is right now and then
    choices = [{"index": i, "message": {"content": text}, "finish_reason": "stop"} for i, text in enumerate(texts)]
    return {"id": "x", "object": "chat.completion", "choices": choices}


with open(sys.argv[2], "a") as log:
    log.write(os.environ["POLICY"] + "\\n")
with ModelServer(reply=reply, models=["tiny"], port=int(sys.argv[1])):
    time.sleep(1000)
"""


def test_each_round_samples_its_own_policy_from_a_server(run: Path, tmp_path: Path) -> None:
    """A server is started with the first policy, then with the one that the first round trained."""
    (tmp_path / "answers.py").write_text(ANSWERS)
    root, log = Path(__file__).parents[3], tmp_path / "policies"
    words = ["env", f"PYTHONPATH={root}", "POLICY={model}", sys.executable, str(tmp_path / "answers.py"), "{port}"]
    serving = shlex.join([*words, str(log)])
    changes = {"preference_sample": {"serve": True, "serve_command": serving}, "pairs": {"rule": "correctness"}}
    asked = command(run, tmp_path / "rounds", "--rounds", "2")
    asked[asked.index("--settings") + 1] = str(write_settings(tmp_path / "settings.yaml", changes))
    assert main(asked) == 0
    assert log.read_text().splitlines() == [str(run / "policy"), str(tmp_path / "rounds" / "round1" / "policy")]
    made = manifest_of(tmp_path / "rounds" / "round2" / "samples")
    assert made["sources"]["policy"][1] == str(tmp_path / "rounds" / "round1" / "policy")
