"""`mpo convert-data` between labelled groups, VisualPRM400K and TRL's stepwise rows: there and back, nothing lost."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from mpo.multimodal.errors import StageError
from mpo.multimodal.images import load_image
from recipes.cli import main
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups, read_problems
from rewards.interchange.stepwise_rows import from_stepwise_row, read_stepwise_parquet, to_stepwise_row
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, RolloutGroup
from tests.recipes.run_folders import C, W, make_problems, write_stage

FORMATS = ("groups", "visualprm", "stepwise")


def convert(source: str, target: str, given: Path, out: Path) -> Path:
    assert main(["convert-data", source, target, "--source", str(given), "--out", str(out)]) == 0
    return out


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Three problems, of which the second has two images and the third none; one rollout has no counts."""
    problems = make_problems(tmp_path / "world", "p", 3, random.Random(0))
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    load_image(problems.parent / rows[1]["images"][0]).save(problems.parent / "images" / "second.jpg")
    rows[1]["images"] = [rows[0]["images"][0], "images/second.jpg"]
    rows[2]["images"], rows[2]["answer"] = [], None
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    some = (MonteCarloCount(3, 4), MonteCarloCount(1, 4), MonteCarloCount(0, 4))
    right = Rollout(Completion("See 3\n\n\nNow\n3 \n\nFinal answer: 1"), C, mc=some, label_source="mc:full:4")
    wrong = Rollout(Completion("a\n\nb\n\nc\n\nd\n\ne"), W, mc=some, label_source="mc:bisect:4")  # merged in twos
    groups = [RolloutGroup(problem, (right, wrong)) for problem in read_problems(problems).values()]
    groups[0] = RolloutGroup(groups[0].problem, (right, Rollout(Completion("x"), W), wrong))
    return write_stage(tmp_path / "labelled", groups, problems, name="label-steps")


@pytest.mark.parametrize(("via", "back"), itertools.permutations(FORMATS[1:]))
def test_there_and_back(labelled: Path, tmp_path: Path, via: str, back: str) -> None:
    """groups → one → other → groups: texts, verdicts, counts, sources, questions, answers and pixels stay."""
    there = convert("groups", via, labelled, tmp_path / "1")
    other = convert(via, back, there, tmp_path / "2")
    again = convert(back, "groups", other, tmp_path / "3")
    counts = [manifest_of(folder)["counts"] for folder in (there, other, again)]
    assert [(c["in"], c["out"], c["rejected"]) for c in counts] == [(7, 6, {"labels": 1}), (6, 6, {}), (6, 6, {})]
    before, after = read_groups(labelled), read_groups(again)
    for old, new in zip(before, after, strict=True):
        assert new.rollouts == tuple(rollout for rollout in old.rollouts if rollout.mc)
        assert (new.problem.id, new.problem.question, new.problem.answer) == (
            old.problem.id, old.problem.question, old.problem.answer,
        )  # fmt: skip
        pixels = [[load_image(image).tobytes() for image in group.problem.images] for group in (old, new)]
        assert pixels[0] == pixels[1]
    for folder, name in ((there, via), (other, back)):
        _, head, body = (folder / "README.md").read_text().split("---\n", maxsplit=2)
        assert "process-reward-model" in yaml.safe_load(head)["tags"]
        assert "6 responses to questions" in body
        if name == "visualprm":
            stored = [picture.read_bytes()[:4] for picture in (folder / "images").iterdir()]
            assert stored == [b"\x89PNG"] * 2
    assert "| labels | 1 |" in (there / "README.md").read_text()


def test_a_prm_trains_on_rows_of_trl_alone(tmp_path: Path, policy_folder: Path) -> None:
    """TRL's three columns and nothing else: hard labels, refused as soft ones."""
    rows = [
        {"prompt": f"{i} + 2?", "completions": ["Add.", "Final answer: 4"], "labels": [True, i == 2]} for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "stepwise.parquet")
    groups = convert("stepwise", "groups", tmp_path, tmp_path / "groups")
    found = read_groups(groups)
    assert [[(c.correct, c.total) for c in g.rollouts[0].mc or ()] for g in found][1:3] == [
        [(1, 1), (0, 1)], [(1, 1), (1, 1)],
    ]  # fmt: skip
    flags = ["--groups", str(groups), "--model", str(policy_folder), "--max_steps", "1"]
    assert main(["train-prm", *flags, "--out", str(tmp_path / "prm")]) == 0
    assert main(["train-prm", *flags, "--out", str(tmp_path / "soft"), "--soft_labels", "true"]) == 2


def test_stepwise_rows_that_are_wrong_are_named_by_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (1, 1)).save(secret)
    good: dict[str, Any] = {"prompt": "?", "completions": ["a", "b"], "labels": [True, False], "problem_id": "p"}
    counted = {"mc_correct": [2, 0], "mc_total": [4, 4]}
    bad = [
        (good | {"labels": [True]}, "labels"),
        (good | {"completions": ["a", ""]}, "response"),
        (good | {"completions": [], "labels": []}, "completions"),
        (good | {"prompt": None}, "prompt"),
        (good | {"response": "a\n\nc"}, "completions.1"),
        (good | counted | {"mc_total": [4, 0]}, "mc_correct"),
        (good | counted | {"mc_correct": [2, 1]}, "labels.1"),
        (good | {"images": [{"bytes": None, "path": str(secret)}]}, "images"),
        (good | {"images": [{"bytes": b"no image", "path": None}]}, "images"),
        (good | {"prompt": "another"}, "problem_id"),
    ]
    columns = {name: None for row in (good | counted, *(row for row, _ in bad)) for name in row}
    table = pa.Table.from_pylist([columns | row for row in (good, good | counted, *(row for row, _ in bad))])
    pq.write_table(table, tmp_path / "rows.parquet")
    out = convert("stepwise", "groups", tmp_path / "rows.parquet", tmp_path / "out")
    counts = manifest_of(out)["counts"]
    assert (counts["in"], counts["out"]) == (12, 2)
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["id"], line["reason"]) for line in lines] == [
        (f"rows.parquet:{number}", field) for number, (_, field) in enumerate(bad, start=2)
    ]
    assert "rows.parquet:2: labels: expected one label" in capsys.readouterr().err


def test_a_number_is_no_label() -> None:
    """TRL once cast -100, which means "no label", to true (trl#2127)."""
    row = to_stepwise_row(Problem("p", "?"), Rollout(Completion("a"), mc=(MonteCarloCount(1, 1),)))
    assert from_stepwise_row(row)[1].completion.text == "a"
    for label in (-100, 1, 0.5, "true", None):
        with pytest.raises(ValueError, match=r"labels\.0"):
            from_stepwise_row(row | {"labels": [label]})


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("text")
    for name in ("x.parquet", "gone.parquet"):
        with pytest.raises(StageError, match="not a Parquet file"):
            list(read_stepwise_parquet(tmp_path / name))
