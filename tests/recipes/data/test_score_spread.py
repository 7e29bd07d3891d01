"""`mpo score` with a PRM that tells how sure it is: spreads beside the scores, and none where it tells nothing."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from recipes.cli import main
from recipes.stage.folder import MANIFEST, manifest_of
from recipes.stage.groups import GROUPS, read_groups
from rewards.errors import StepAlignmentError
from rewards.types import RolloutGroup, StepScores
from tests.recipes.run_folders import make_groups, make_problems, with_counts, write_stage


def spreads_of(groups: list[RolloutGroup]) -> list[tuple[float, ...] | None]:
    return [one.step_scores.spreads if one.step_scores else None for group in groups for one in group.rollouts]


def test_spreads_are_stored_where_the_prm_has_them(
    policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(1)
    problems = make_problems(tmp_path / "data", "questions", 2, rng)
    groups = with_counts(make_groups(problems, 3, 0.5, rng), rng)
    labelled = write_stage(tmp_path / "labelled", groups, problems)
    for name, more in (("prm", ["--concentration_head"]), ("plain", [])):
        paths = ["--groups", str(labelled), "--model", str(policy_folder), "--out", str(tmp_path / name)]
        settings = ["--prm_format", "step_end", "--max_steps", "1", "--loss", "binomial"]
        assert main(["train-prm", *paths, *settings, *more]) == 0

    def score(prm: str, out: str) -> Path:
        folder = tmp_path / out
        assert main(["score", "--groups", str(labelled), "--prm", str(tmp_path / prm), "--out", str(folder)]) == 0
        return folder

    capsys.readouterr()
    scored = score("prm", "scored")
    assert "mean spread of a step 0." in capsys.readouterr().err
    found = read_groups(scored)
    steps = [one.step_scores for group in found for one in group.rollouts]
    assert all(some and some.spreads and len(some.spreads) == len(some.values) for some in steps)
    counts = manifest_of(scored)["counts"]
    number = sum(len(some.values) for some in steps if some)
    assert (counts["steps_with_spread"], counts["steps_without_spread"]) == (number, 0)
    shutil.copytree(scored, tmp_path / "again")
    (tmp_path / "again" / GROUPS).unlink()
    (tmp_path / "again" / MANIFEST).unlink()
    assert (score("prm", "again") / GROUPS).read_bytes() == (scored / GROUPS).read_bytes()  # from the kept calls

    capsys.readouterr()
    plain = score("plain", "unsure")
    assert "mean spread" not in capsys.readouterr().err
    assert set(spreads_of(read_groups(plain))) == {None}
    assert "steps_with_spread" not in manifest_of(plain)["counts"]
    assert "spread" not in (plain / GROUPS).read_text()


def test_a_row_with_another_number_of_spreads_is_refused(tmp_path: Path) -> None:
    rng = random.Random(1)
    problems = make_problems(tmp_path / "data", "questions", 1, rng)
    group = make_groups(problems, 1, 0.5, rng)[0]
    one = group.rollouts[0].with_(step_scores=StepScores((0.5, 0.25), spreads=(0.125, 0.25)), reward=0.375)
    folder = write_stage(tmp_path / "scored", [RolloutGroup(group.problem, (one,))], problems)
    assert spreads_of(read_groups(folder)) == [(0.125, 0.25)]
    row = json.loads((folder / GROUPS).read_text())
    row["rollouts"][0]["step_score_spreads"] = [0.125]
    (folder / GROUPS).write_text(json.dumps(row) + "\n")
    with pytest.raises(StepAlignmentError, match=r"groups.jsonl:1: expected one spread per step, got 1 for 2"):
        read_groups(folder)
