"""Step labels as stages: what a budget costs, where its labels may go, and VisualPRM400K rows out and in again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError, DataError, StageError
from recipes.cli import main
from recipes.config import ConvertDataConfig, LabelConfig, TrainPRMConfig, VerifyConfig
from recipes.data.convert_data import convert_data
from recipes.data.label_steps import label
from recipes.stage.folder import manifest_of, open_stage
from recipes.stage.groups import read_groups, write_groups, write_problems
from recipes.training.train_prm import labelled_groups
from rewards.prm.formats import find_format
from rewards.steps import scored_steps
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict

RIGHT = "See Red 3\nAnswer: 4\n\nNow 3 to 3\n\nSee Blue 9\n\nNow 3 to 9\n\nFinal answer: 6"
WRONG = "See Red 3\nAnswer: 4\n\nNow 3 to 3\n\nSee Blue 8\n\nNow 3 to 8\n\nFinal answer: 5"


@pytest.fixture
def verified(tmp_path: Path) -> Path:
    """Two problems with one right and one wrong response each."""
    data = tmp_path / "data"
    (data / "pictures").mkdir(parents=True)
    problems = []
    for name in "ab":
        Image.new("RGB", (64, 32), "white").save(data / "pictures" / f"{name}.png")
        problems.append(Problem(name, "Largest minus smallest?", (data / "pictures" / f"{name}.png",), "6"))
    write_problems(data / "problems.jsonl", problems)
    rollouts = (Rollout(Completion(RIGHT), Verdict.CORRECT), Rollout(Completion(WRONG), Verdict.WRONG))
    stage = open_stage("verify", VerifyConfig(tmp_path, tmp_path / "verified"), inputs=[])
    write_groups(stage.out, [RolloutGroup(problem, rollouts) for problem in problems])
    return stage.finish({"in": 4, "out": 4, "rejected": {}, "problems": str(data / "problems.jsonl")})


def settings(verified: Path, policy_folder: Path, **changes: Any) -> LabelConfig:
    given = LabelConfig(
        verified, verified.parent / "labelled", policy=policy_folder, num_continuations=4, max_new_tokens=4
    )
    return replace(given, **changes)


@pytest.mark.parametrize(
    ("budget", "drawn", "expected"), [("full", 64, 64), ("sequential", 64, 64), ("bisect", 24, 24)]
)
def test_a_budget_is_estimated_drawn_and_named(
    verified: Path, policy_folder: Path, capsys: pytest.CaptureFixture[str], budget: str, drawn: int, expected: int
) -> None:
    """A random policy changes no early guess: 4 responses × 4 steps × K = 4; `bisect` asks 3 steps of wrong ones."""
    out = label(settings(verified, policy_folder, budget=budget))
    counts = manifest_of(out)["counts"]
    assert counts["drawn"]["continuations"] == drawn
    assert counts["estimate"]["at_most"] == drawn
    assert counts["estimate"]["expected"] == expected
    said = capsys.readouterr().err
    assert f"label-steps, budget {budget}: 16 steps to continue; at most {drawn} continuations" in said
    decided, confidence = {"bisect": (0, "none of 16 continued steps has a posterior")}.get(
        budget, (16, "16 of 16 continued steps decided at 95% (0 above mc 0.5, 16 below)")
    )
    assert confidence in said
    assert (counts["confidence"]["below"], counts["confidence"]["not_drawn"]) == (decided, 16 - decided)
    rollouts = [rollout for group in read_groups(out) for rollout in group.rollouts]
    assert {rollout.label_source for rollout in rollouts} == {f"mc:{budget}:4"}
    right = next(rollout for rollout in rollouts if rollout.verdict is Verdict.CORRECT)
    assert [(c.correct, c.total) for c in right.mc or ()] == [(1, 1) if budget == "bisect" else (0, 4)] * 4 + [(4, 4)]


def test_long_responses_are_merged_before_a_continuation_is_paid_for(
    verified: Path, policy_folder: Path, tmp_path: Path
) -> None:
    """30 steps become 10 in threes for VisualPRM (at most 12), 6 in fives for a format of 7; scoring merges alike."""
    long = "\n\n".join(f"See Red {i}\nAnswer: 4" for i in range(29)) + "\n\nFinal answer: "
    rollouts = (Rollout(Completion(f"{long}6"), Verdict.CORRECT), Rollout(Completion(f"{long}5"), Verdict.WRONG))
    groups = [replace(group, rollouts=rollouts) for group in read_groups(verified)]
    stage = open_stage("verify", VerifyConfig(tmp_path, tmp_path / "long"), inputs=[])
    write_groups(stage.out, groups)
    stage.finish({"in": 4, "out": 4, "rejected": {}, "problems": str(tmp_path / "data" / "problems.jsonl")})
    (tmp_path / "seven.yaml").write_text("name: seven\nlayout: turns\nmax_steps: 7\n")
    for name, steps in (("visualprm", 10), (str(tmp_path / "seven.yaml"), 6), ("orm", 1), ("step_end", 30)):
        out = tmp_path / f"labelled {steps}"
        given = settings(stage.out, policy_folder, out=out, prm_format=name, num_continuations=2, max_new_tokens=1)
        counts = manifest_of(label(given))["counts"]
        assert counts["drawn"]["continuations"] == 4 * 2 * (steps - 1)
        found = read_groups(out)
        assert {len(rollout.mc or ()) for group in found for rollout in group.rollouts} == {steps}
        limit = find_format(name).max_steps
        for row in labelled_groups(found, TrainPRMConfig("g", "m", "o"), limit):  # type: ignore[arg-type]
            for solution, rollout in zip(row.solutions, rollouts, strict=True):
                assert solution.steps == scored_steps(rollout.completion.text, max_steps=limit)
        assert labelled_groups(found, TrainPRMConfig("g", "m", "o"), 4)  # type: ignore[arg-type]  # another format


def test_rows_that_stopped_early_train(tmp_path: Path, policy_folder: Path) -> None:
    """As InternVL's pipeline writes them by default: with an error in the first half, and with its option."""
    Image.new("RGB", (64, 32), "white").save(tmp_path / "a.png")
    row = published("a.png")
    for index, step in enumerate(row["steps_with_score"]):
        if index:
            step |= {"score": 0.0, "num_mc_correct": 0, "num_mc_total": 16 if index == 1 else 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    for after_error, labels in (("unlabelled", (1.0, 0.0, None, None, None)), ("wrong", (1.0, 0.0, 0.0, 0.0, 0.0))):
        given = ConvertDataConfig("visualprm", "groups", tmp_path / "rows.jsonl", tmp_path / after_error)
        groups = read_groups(convert_data(replace(given, after_error=after_error)))
        (found,) = labelled_groups(groups, TrainPRMConfig("g", "m", "o"), 12)  # type: ignore[arg-type]
        assert found.solutions[0].labels == labels


def test_an_unknown_budget_is_refused_before_the_model_loads(verified: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="unknown budget 'half'"):
        label(settings(verified, tmp_path / "model", budget="half"))
    with pytest.raises(ConfigError, match="at least 1 continuation per step, got num_continuations=0"):
        label(settings(verified, tmp_path / "model", num_continuations=0))


def test_rows_go_out_and_come_back(verified: Path, policy_folder: Path, tmp_path: Path) -> None:
    """Everything that a PRM is trained on survives: texts, verdicts, counts, their source, questions, images."""
    labelled = label(settings(verified, policy_folder, budget="sequential"))
    given = ConvertDataConfig("visualprm", "groups", labelled, tmp_path / "imported", image_root=tmp_path / "data")
    imported = convert_data(given)
    before, after = read_groups(labelled), read_groups(imported)
    assert [g.rollouts for g in after] == [g.rollouts for g in before]
    assert [(g.problem.id, g.problem.question, g.problem.answer) for g in after] == [
        (g.problem.id, g.problem.question, g.problem.answer) for g in before
    ]
    for group, old in zip(after, before, strict=True):
        (picture,), (old_picture,) = group.problem.images, old.problem.images
        assert Path(str(picture)).read_bytes() == Path(str(old_picture)).read_bytes()
        assert Path(str(picture)).is_relative_to(imported.resolve())
    assert manifest_of(imported)["counts"]["rejected"] == {}


def test_a_prm_trains_on_imported_rows(tmp_path: Path, policy_folder: Path) -> None:
    """Rows as InternVL's pipeline writes them, through the command line."""
    Image.new("RGB", (64, 32), "white").save(tmp_path / "a.png")
    row = published("a.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    paths = ["--source", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "in")]
    assert main(["convert-data", "visualprm", "groups", *paths]) == 0
    flags = ["--groups", str(tmp_path / "in"), "--model", str(policy_folder), "--out", str(tmp_path / "prm")]
    assert main(["train-prm", *flags, "--max_steps", "1", "--soft_labels", "true"]) == 0
    assert manifest_of(tmp_path / "prm")["counts"]["out"] == 1


def published(image: str) -> dict[str, Any]:
    steps = [{"step": text, "score": 0.25, "num_mc_correct": 4, "num_mc_total": 16} for text in RIGHT.split("\n\n")]
    question = "<image>\nLargest minus smallest?"
    return {"image": image, "question": question, "answer": "6", "response": RIGHT, "steps_with_score": steps}


def test_damaged_rows_and_pictures_are_counted_by_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 32), "white").save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no image")
    rows = [
        published("a.png"),
        published("bad.png"),
        published("bad.png"),
        published("../a.png"),
        published("a.png") | {"response": 3},
        published("a.png") | {"problem_id": "p"},
        published("a.png") | {"problem_id": "p", "answer": "7"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    given = ConvertDataConfig("visualprm", "groups", tmp_path / "rows.jsonl", tmp_path / "in")
    counts = manifest_of(convert_data(given))["counts"]
    assert (counts["in"], counts["out"]) == (8, 2)
    assert counts["rejected"] == {"image": 3, "response": 1, "problem_id": 1, "row": 1}
    told = capsys.readouterr().err
    assert "convert-data: rows.jsonl:2: image: image 'bad.png' cannot be decoded" in told
    assert "convert-data: rows.jsonl:8: row: not JSON" in told
    lines = (tmp_path / "in" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"rows.jsonl:{number}" for number in (2, 3, 4, 5, 7, 8)]


def test_an_import_that_gives_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    given = ConvertDataConfig("visualprm", "groups", tmp_path / "rows.jsonl", tmp_path / "in")
    with pytest.raises(DataError, match=r"no row of .*rows\.jsonl could be converted: .*question: Field required"):
        convert_data(given)
    with pytest.raises(StageError, match=r"image_root .*gone is not a folder"):
        convert_data(replace(given, image_root=tmp_path / "gone"))


@pytest.mark.parametrize("budget", ["sequential", "bisect"])
@pytest.mark.parametrize(
    ("changes", "use"),
    [({"soft_labels": True}, r"soft labels \(--soft_labels\)"), ({"threshold": 0.2}, r"--threshold 0\.2")],
)
def test_counts_that_stopped_early_are_refused_as_estimates(
    verified: Path, policy_folder: Path, budget: str, changes: dict[str, Any], use: str
) -> None:
    groups = read_groups(label(settings(verified, policy_folder, budget=budget)))
    config = TrainPRMConfig("g", "m", "o", **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"{use} need counts that estimate mc .*mc:{budget}:4 \(4 rollouts\)"):
        labelled_groups(groups, config, 12)
    rows = labelled_groups(groups, TrainPRMConfig("g", "m", "o"), 12)  # type: ignore[arg-type]
    found = [solution.labels for row in rows for solution in row.solutions]
    assert found == [(*[float(budget == "bisect")] * 4, 1.0), (0.0,) * 5] * 2


def test_groups_from_before_label_source_still_read_and_train_soft(verified: Path, policy_folder: Path) -> None:
    """The full budget and exact labels were all there was."""
    out = label(settings(verified, policy_folder))
    path = out / "groups.jsonl"
    text = path.read_text().replace(', "label_source": "mc:full:4"', "")
    assert text != path.read_text()
    path.write_text(text)
    groups = read_groups(out)
    assert {rollout.label_source for group in groups for rollout in group.rollouts} == {None}
    rows = labelled_groups(groups, TrainPRMConfig("g", "m", "o", soft_labels=True), 12)  # type: ignore[arg-type]
    assert len(rows) == 2


def test_some_problems_are_chosen_and_the_others_counted(
    verified: Path, policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two problems one is right in half of its samples, one in a third; the responses of `all` are labelled."""
    groups = read_groups(verified)
    third = Rollout(Completion(WRONG.replace("Final answer: 5", "Final answer: 4")), Verdict.WRONG)
    groups[0] = replace(groups[0], rollouts=(*groups[0].rollouts, third))
    stage = open_stage("verify", VerifyConfig(tmp_path, tmp_path / "uneven"), inputs=[])
    write_groups(stage.out, groups)
    stage.finish({"in": 5, "out": 5, "rejected": {}, "problems": str(tmp_path / "data" / "problems.jsonl")})
    whole = label(settings(stage.out, policy_folder, out=tmp_path / "all"))
    capsys.readouterr()
    out = label(settings(stage.out, policy_folder, out=tmp_path / "some", choose="middle", choose_fraction=0.5))
    assert "; 1 of 2 problems chosen, rule middle; " in capsys.readouterr().err
    counts = manifest_of(out)["counts"]
    assert counts["chosen"] == {"rule": "middle", "chosen": 1, "of": 2, "usable": 2, "steps_without_spread": 0}
    assert counts["rejected"]["problem not chosen"] == 3
    assert "chosen" not in manifest_of(whole)["counts"]
    (found,) = read_groups(out)
    assert found.problem.id == "b"
    assert found.rollouts == next(group for group in read_groups(whole) if group.problem.id == "b").rollouts
    with pytest.raises(DataError, match="0 of them have a step with a spread"):
        label(settings(stage.out, policy_folder, out=tmp_path / "no", choose="uncertain", choose_fraction=0.5))
    with pytest.raises(ConfigError, match="choose=middle and choose_fraction=None"):
        label(settings(stage.out, policy_folder, out=tmp_path / "no", choose="middle"))
    assert not (tmp_path / "no" / "groups.jsonl").exists()


@pytest.mark.parametrize(("budget", "drawn"), [("full", 32), ("sequential", 32), ("bisect", 12)])
def test_continuations_are_limited_before_any_is_drawn(
    verified: Path, policy_folder: Path, capsys: pytest.CaptureFixture[str], budget: str, drawn: int
) -> None:
    """One of two problems fits; a random policy has no success, so it costs the most that it can."""
    limits = {"budget": budget, "max_continuations": 2 * drawn - 1, "price_per_million_tokens": 1.0}
    counts = manifest_of(label(settings(verified, policy_folder, **limits)))["counts"]
    assert counts["drawn"]["continuations"] == counts["estimate"]["at_most"] == drawn
    assert (counts["estimate"]["sample"], counts["estimate"]["sample_tokens"]) == (0, 0)
    assert counts["rejected"]["over the number of continuations"] == 2
    assert counts["out"] == 2
    said = capsys.readouterr().err
    assert f"label-steps, budget {budget}: 8 steps to continue; at most {drawn} continuations\n" in said
    limits["max_continuations"] = drawn - 1
    with pytest.raises(DataError, match=f"max_continuations={drawn - 1}: .* the cheapest of 2 can take {drawn}"):
        label(settings(verified, policy_folder, out=verified.parent / "no", **limits))
