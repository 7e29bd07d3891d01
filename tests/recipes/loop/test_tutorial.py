"""The tutorial, typed as it stands, from an empty folder to a page; a tiny model takes the large one's place."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.cli import main
from recipes.config import WarmStartConfig
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_problems
from recipes.training.warm_start import warm_start
from recipes.worlds.digits.policy import PolicySize, build_policy
from rewards.types import Completion, Problem, Rollout, RolloutGroup
from tests.recipes.run_folders import write_stage

ROOT = Path(__file__).resolve().parents[3]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
# What a model of a hundred thousand weights needs instead of what one of a billion does.
TINY: dict[str, dict[str, Any]] = {
    "prm_sample": {"prompt": "direct", "max_new_tokens": 40, "temperature": 1.0},
    "label_steps": {"num_continuations": 2, "responses": 2, "max_new_tokens": 40},
    "train_prm": {"per_device_batch": 0, "dtype": "auto", "gradient_checkpointing": False, "min_steps": 10},
    "preference_sample": {"prompt": "direct", "num_samples": 8, "max_new_tokens": 40, "temperature": 1.0},
    "pairs": {"min_step_score": 0.0},  # a PRM of ten steps approves of nothing
    "train_mpo": {"per_device_batch": 0, "dtype": "auto", "gradient_checkpointing": False, "min_steps": 10},
    "test_sample": {"prompt": "direct", "num_samples": 4, "max_new_tokens": 40, "temperature": 1.0},
    "best_of_n": {"ks": [1, 2, 4]},
}
WRONG = {"yes": "no", "no": "yes", "A": "B", "B": "A", "1": "2", "42": "41"}


def typed() -> list[str]:
    """The commands of the tutorial, in order."""
    return re.findall(r"^    \$ (.+)$", TUTORIAL, re.MULTILINE)


def test_the_tutorial_is_what_a_reader_types() -> None:
    names = [command.split()[:2] for command in typed()]
    assert names == [["python", "examples/forty_questions.py"], *(["mpo", name] for name in
        ("split", "settings", "pipeline", "check", "view"))]  # fmt: skip


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after all that was typed, in which a tiny model stands in the place of the tutorial's."""
    folder = tmp_path_factory.mktemp("student")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for command in typed():
            _type(command)
    finally:
        os.chdir(before)
    return folder


def _type(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "python":
        sys.argv = words[1:]
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    elif words[1] == "settings":
        shutil.copyfile(ROOT / "recipes" / "configs" / f"{words[2]}.yaml", words[4])
        _teach(Path("models/tiny"), Path("student/questions.jsonl"))
        _change(Path(words[4]))
    elif words[1] != "view":  # which serves until Ctrl-C
        assert main(words[1:]) == 0


def _change(settings: Path) -> None:
    """The tutorial's own change, then what the tiny model needs."""
    (change,) = re.findall(r"```yaml\n(.*?)```", TUTORIAL, re.DOTALL)
    told = yaml.safe_load(settings.read_text())
    for section, values in (*yaml.safe_load(change).items(), *TINY.items(), ("own", {"policy": "models/tiny"})):
        told[section] = {**(told.get(section) or {}), **values}
    settings.write_text(yaml.safe_dump(told))


def _teach(out: Path, questions: Path) -> None:
    """A model that answers in steps, right about every second time."""
    problems = list(read_problems(questions).values())
    groups = [RolloutGroup(problem, tuple(_said(problem, right) for right in (True, False))) for problem in problems]
    texts = [rollout.completion.text for group in groups for rollout in group.rollouts]
    size = PolicySize(vision_hidden=32, vision_layers=1, text_hidden=64, text_layers=2, heads=2)
    build_policy("models/new", seed=0, size=size, corpus=[*texts, *(problem.question for problem in problems)])
    taught = write_stage(Path("models/taught"), groups, questions)
    warm_start(WarmStartConfig(Path("models/new"), taught, out, max_steps=100, batch_size=16, learning_rate=0.003))


def _said(problem: Problem, right: bool) -> Rollout:
    answer = str(problem.answer) if right else WRONG[str(problem.answer)]
    return Rollout(Completion(f"I look at the image.\n\nThe answer must be {answer}.\n\nFinal answer: {answer}"))


def test_a_table_and_a_page(student: Path) -> None:
    summary = json.loads((student / "runs" / "own" / "summary.json").read_text())
    assert [arm["label"] for arm in summary["arms"]] == ["policy", "MPO"]
    assert any(claim["name"] == "MPO > policy (sampled)" for claim in summary["claims"])
    page = (student / "runs" / "own" / "report.html").read_text()
    assert "warm start" not in json.dumps(summary) + page
    assert manifest_of(student / "runs" / "own" / "pairs")["counts"]["pairs"] > 0
    assert summary["problems"] == len((student / "data" / "test.jsonl").read_text().splitlines())


def test_a_run_that_was_moved_and_renamed_is_complete(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage of the loop, by another path, from another folder: nothing is done again, nothing refused."""
    moved = shutil.copytree(student, tmp_path / "elsewhere", symlinks=True)
    (moved / "runs" / "own").rename(moved / "runs" / "renamed")
    settings = moved / "my.yaml"
    told = yaml.safe_load(settings.read_text())
    told["own"] = {name: str(moved / path) for name, path in told["own"].items()}
    settings.write_text(yaml.safe_dump(told))
    manifests = {path: path.read_bytes() for path in moved.rglob("manifest.json")}
    monkeypatch.chdir(tmp_path)
    assert main(["pipeline", "elsewhere/my.yaml", "--run_dir", str(moved / "runs" / "renamed")]) == 0
    lines = capsys.readouterr().err.splitlines()
    stages = [line for line in lines if line.startswith("stage ")]
    assert len([line for line in lines if "complete already, nothing to do" in line]) == len(stages)
    assert {path: path.read_bytes() for path in moved.rglob("manifest.json")} == manifests
    numbers = [re.match(r"stage (\d+) of (\d+): ([a-z-]+), .{10}", line) for line in stages]
    assert [found.groups()[:2] for found in numbers if found] == [
        (str(number), str(len(stages))) for number in range(1, len(stages) + 1)
    ]
