"""`mpo train-prm` on a tiny model: counts by their likelihood, two thresholds, a second source; all that is lost."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.cli import main
from recipes.stage.folder import manifest_of
from recipes.training.step_labels import DISAGREEMENTS
from rewards.prm.concentration import FILE, WEIGHT
from rewards.prm.formats import CONTRACT
from rewards.prm.labelling.consensus import DISAGREE, NO_RESPONSE
from rewards.prm.labelling.labels import BETWEEN
from rewards.types import MonteCarloCount, RolloutGroup
from tests.recipes.run_folders import make_groups, make_problems, with_counts, write_stage


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Path, list[RolloutGroup], Path]:
    """Three problems with three responses each, four draws per step."""
    rng = random.Random(1)
    problems = make_problems(tmp_path / "data", "questions", 3, rng)
    groups = with_counts(make_groups(problems, 3, 0.5, rng), rng)
    return write_stage(tmp_path / "labelled", groups, problems), groups, problems


def counts_of(groups: list[RolloutGroup]) -> list[MonteCarloCount]:
    return [count for group in groups for one in group.rollouts for count in one.mc or () if count]


def train(labelled: Path, policy: Path, out: Path, *more: str) -> int:
    paths = ["--groups", str(labelled), "--model", str(policy), "--out", str(out), "--prm_format", "step_end"]
    return main(["train-prm", *paths, "--max_steps", "1", "--batch_groups", "3", *more])


def test_counts_and_two_thresholds(
    labelled: tuple[Path, list[RolloutGroup], Path],
    policy_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, groups, problems = labelled
    counts = counts_of(groups)
    assert train(folder, policy_folder, tmp_path / "binomial", "--loss", "binomial", "--concentration", "8") == 0
    assert f"{len(counts)} of {len(counts)} steps have a label; {4 * len(counts)} draws" in capsys.readouterr().err
    counted = ["--loss", "binomial", "--concentration_head", "--learning_rate", "0.01"]
    assert train(folder, policy_folder, tmp_path / "head", *counted) == 0
    head = load_file(tmp_path / "head" / FILE)
    assert head[WEIGHT].abs().max() > 0.001
    card = (tmp_path / "head" / "README.md").read_text()
    assert json.loads((tmp_path / "head" / CONTRACT).read_text())["concentration_head"] == FILE
    assert f'"concentration_head": "{FILE}"' in card
    capsys.readouterr()
    middle = sum(count.correct in (2, 3) for count in counts)
    assert 0 < middle < len(counts)
    assert train(folder, policy_folder, tmp_path / "middle", "--good_above", "0.8", "--bad_below", "0.4") == 0
    steps = manifest_of(tmp_path / "middle")["counts"]["steps"]
    assert steps == {"in": len(counts), "out": len(counts) - middle, "rejected": {BETWEEN: middle}}
    assert f"steps have a label (without: between the thresholds {middle})" in capsys.readouterr().err
    inferred = [
        replace(group, rollouts=tuple(one.with_(label_source="mc:bisect:4") for one in group.rollouts))
        for group in groups
    ]
    bisect = write_stage(tmp_path / "bisect", inferred, problems)
    assert train(bisect, policy_folder, tmp_path / "no", "--loss", "binomial") == 2
    assert "--loss binomial needs counts of draws from each step" in capsys.readouterr().err
    even = [
        replace(
            group, rollouts=tuple(one.with_(mc=(MonteCarloCount(2, 4),) * len(one.mc or ())) for one in group.rollouts)
        )
        for group in groups
    ]
    undecided = write_stage(tmp_path / "even", even, problems)
    assert train(undecided, policy_folder, tmp_path / "none", "--good_above", "0.8", "--bad_below", "0.4") == 2
    assert f"has a label; without one: {{'between the thresholds': {len(counts)}}}" in capsys.readouterr().err


def test_a_second_source(
    labelled: tuple[Path, list[RolloutGroup], Path],
    policy_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One step of the first response of each problem is called otherwise; the last response is missing."""
    folder, groups, problems = labelled
    second = []
    for group in groups:
        first, *others = group.rollouts
        (count, *rest) = first.mc or ()
        assert count is not None
        turned = MonteCarloCount(0 if count.correct else 4, 4)
        rollouts = (*others[:-1], first.with_(mc=(turned, *rest), label_source="someone's"))
        second.append(RolloutGroup(replace(group.problem, id=f"other {group.problem.id}"), rollouts))
    other_data = problems.parent / "other.jsonl"
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    other_data.write_text("".join(json.dumps(row | {"id": f"other {row['id']}"}) + "\n" for row in rows))
    judge = write_stage(tmp_path / "judge", second, other_data)
    out = tmp_path / "prm"
    assert train(folder, policy_folder, out, "--consensus", str(judge)) == 0
    total, missing = len(counts_of(groups)), sum(len(group.rollouts[-1].mc or ()) for group in groups)
    counts = manifest_of(out)["counts"]
    assert counts["steps"] == {
        "in": total, "out": total - missing - 3, "rejected": {NO_RESPONSE: missing, DISAGREE: 3}
    }  # fmt: skip
    assert (counts["in"], counts["out"], counts["rejected"]) == (9, 6, {"no step has a label": 3})
    listed = [json.loads(line) for line in (out / DISAGREEMENTS).read_text().splitlines()]
    assert [row["problem_id"] for row in listed] == [group.problem.id for group in groups]
    assert all(row["first"]["label"] != row["second"]["label"] for row in listed)
    assert {row["second"]["label_source"] for row in listed} == {"someone's"}
    said = capsys.readouterr().err
    assert "9 in, 6 out, 3 rejected (no step has a label 3)" in said
    assert f"response not in the second source {missing}, sources disagree 3" in said
    assert train(folder, policy_folder, out, "--consensus", str(folder)) == 4  # made with another one
    assert "consensus" in capsys.readouterr().err


def test_earlier_labels_are_repeated_and_the_concentration_head_continues(
    labelled: tuple[Path, list[RolloutGroup], Path],
    policy_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three new problems and, at a share of 0.4, two of the five earlier ones, from two folders of one name."""
    new, groups, _ = labelled
    rng = random.Random(2)
    folders = []
    for place, count in (("first", 2), ("second", 3)):
        others = make_problems(tmp_path / place, "questions", count, rng)
        made = with_counts(make_groups(others, 2, 0.5, rng), rng)
        folders.append(str(write_stage(tmp_path / place / "labelled", made, others)))
    counted = ["--loss", "binomial", "--concentration_head", "--earlier", *folders, "--learning_rate", "1e-9"]
    out = tmp_path / "prm"
    assert train(new, policy_folder, out, *counted, "--concentration", "3", "--earlier_share", "0.4") == 0
    manifest = manifest_of(out)
    assert manifest["counts"]["earlier problems"] == 2
    assert manifest["counts"]["in"] == sum(len(group.rollouts) for group in groups) + 4
    assert [manifest["sources"][f"earlier[{place}]"][1] for place in (0, 1)] == folders
    assert train(new, policy_folder, tmp_path / "all", *counted, "--earlier_share", "0.9") == 0
    assert manifest_of(tmp_path / "all")["counts"]["earlier problems"] == 5  # there are no more
    before = load_file(out / FILE)
    assert train(new, out, tmp_path / "next", *counted, "--concentration", "50") == 0
    after = load_file(tmp_path / "next" / FILE)
    assert all(torch.allclose(after[name], value, atol=1e-6) for name, value in before.items())
    capsys.readouterr()
    assert train(new, policy_folder, tmp_path / "no", "--earlier", folders[0], "--consensus", str(new)) == 2
    assert "consensus has a second label of the responses in groups alone: leave earlier out" in capsys.readouterr().err
    assert train(new, policy_folder, tmp_path / "no", "--earlier", str(tmp_path / "none")) == 2
    assert f"{tmp_path / 'none'}" in capsys.readouterr().err
