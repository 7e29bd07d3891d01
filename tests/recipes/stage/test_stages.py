"""Faults in a user's data are counted by the stage that meets them, and the rest goes on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError, DataError
from recipes.config import ExactLabelConfig, LabelConfig, SampleConfig, ScoreConfig, VerifyConfig
from recipes.data.label_steps import label
from recipes.data.sample import sample
from recipes.data.score import score
from recipes.data.verify import verify
from recipes.stage.folder import manifest_of, open_stage
from recipes.stage.groups import read_groups, write_groups, write_problems
from recipes.worlds.digits.exact_labels import label_exactly
from rewards.prm.labelling.responses import choose_responses
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict


@pytest.fixture
def samples(tmp_path, policy_folder) -> Path:
    """Two good problems, one of them without an answer, and one whose image is text."""
    Image.new("RGB", (64, 32), "white").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    rows = [
        {"id": "a", "question": "How many digits are even?", "images": ["good.png"], "answer": "1"},
        {"id": "b", "question": "How many digits are even?", "images": ["good.png"]},
        {"id": "c", "question": "How many digits are even?", "images": ["bad.png"], "answer": "1"},
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sample(
        SampleConfig(
            policy=policy_folder,
            problems=tmp_path / "questions.jsonl",
            out=tmp_path / "samples",
            num_samples=2,
            max_new_tokens=4,
        )
    )


def test_a_bad_picture_costs_its_own_problem_only(samples):
    counts = manifest_of(samples)["counts"]
    assert (counts["in"], counts["out"]) == (6, 4)
    assert counts["rejected"] == {"unreadable image": 2}
    (row,) = [json.loads(line) for line in (samples / "quarantine.jsonl").read_text().splitlines()]
    assert (row["id"], row["reason"]) == ("c", "unreadable image")
    assert "bad.png" in row["detail"]
    assert [group.problem.id for group in read_groups(samples)] == ["a", "b"]


def test_a_problem_without_answer_keeps_its_rollouts_without_verdict(samples, tmp_path):
    verified = verify(VerifyConfig(samples, tmp_path / "verified"))
    first, second = read_groups(verified)
    assert all(isinstance(rollout.verdict, Verdict) for rollout in first.rollouts)
    assert [rollout.verdict for rollout in second.rollouts] == [None, None]
    assert manifest_of(verified)["counts"]["verdicts"]["none"] == 2


def test_a_changed_answer_is_a_changed_input(samples, tmp_path):
    verify(VerifyConfig(samples, tmp_path / "verified"))
    questions = tmp_path / "questions.jsonl"
    questions.write_text(questions.read_text().replace('"answer": "1"', '"answer": "2"'))
    with pytest.raises(ConfigError, match="was made with other"):
        verify(VerifyConfig(samples, tmp_path / "verified"))


def test_labels_of_unverified_groups_are_refused_before_anything_is_drawn(samples, tmp_path, policy_folder):
    with pytest.raises(DataError, match="no response of 2 problems could be labelled"):
        label(LabelConfig(samples, tmp_path / "labelled", policy=policy_folder, mixed_only=False))
    with pytest.raises(ConfigError, match="at least 2"):
        choose_responses([], None, responses=1, mixed_only=True, seed=0)


def test_an_unknown_aggregation_is_refused_before_the_model_loads(samples, tmp_path, policy_folder):
    with pytest.raises(ConfigError, match=r"'avg'.*mean"):
        score(ScoreConfig(samples, policy_folder, tmp_path / "scored", aggregation="avg"))


def test_the_canary_never_shows_a_problem_its_own_image(tmp_path, policy_folder):
    """Two files with the same pixels: the partner is another one, resized; what has none is counted and not asked."""
    for name, color, size in (("a", "red", (64, 32)), ("b", "red", (64, 32)), ("c", "blue", (96, 64))):
        Image.new("RGB", size, color).save(tmp_path / f"{name}.png")
    rows = [{"id": id, "question": "How many?", "images": [f"{id}.png"]} for id in "abc"]
    rows.append({"id": "text", "question": "How many?"})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SampleConfig(
        policy=policy_folder,
        problems=tmp_path / "questions.jsonl",
        out=tmp_path / "samples",
        num_samples=1,
        max_new_tokens=2,
        swap_images=True,
    )
    out = sample(config)
    assert [group.problem.id for group in read_groups(out)] == ["a", "b", "c"]
    assert manifest_of(out)["counts"]["rejected"] == {"no other image": 1}
    shown = sorted(path.name for path in (out / "other_images").iterdir())
    colors = {Image.open(out / "other_images" / name).getpixel((0, 0)): name for name in shown}
    assert set(colors) == {(0, 0, 255), (255, 0, 0)}  # a and b under c's blue, c under a's red
    assert {Image.open(out / "other_images" / name).size for name in shown} == {(64, 32), (96, 64)}
    (tmp_path / "one.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1]) + "\n")
    with pytest.raises(DataError, match="no other image"):
        sample(replace(config, problems=tmp_path / "one.jsonl", out=tmp_path / "none"))


def test_exact_labels_are_the_worlds_truth(tmp_path, policy_folder):
    """Three answers to Red 3, Blue 9: right, right by luck after a misreading, wrong; counts 1 or 0 of 1 a step."""
    Image.new("RGB", (64, 32), "white").save(tmp_path / "a.png")
    problem = Problem(
        "a", "q", (tmp_path / "a.png",), "6", {"kind": "range", "digits": {"Red": 3, "Blue": 9}, "scans": [0, 1]}
    )
    write_problems(tmp_path / "problems.jsonl", [problem])
    answers = {
        "See Red 3\n\nNow 3 to 3\n\nSee Blue 9\n\nNow 3 to 9\n\nFinal answer: 6": (Verdict.CORRECT, [1, 1, 1, 1, 1]),
        "See Red 2\n\nNow 2 to 2\n\nSee Blue 8\n\nNow 2 to 8\n\nFinal answer: 6": (Verdict.CORRECT, [0, 0, 0, 0, 0]),
        "See Red 3\n\nNow 3 to 3\n\nSee Blue 8\n\nNow 3 to 8\n\nFinal answer: 5": (Verdict.WRONG, [1, 1, 0, 0, 0]),
    }
    rollouts = tuple(Rollout(Completion(text), verdict=verdict) for text, (verdict, _) in answers.items())
    stage = open_stage("sample", VerifyConfig(tmp_path, tmp_path / "given"), inputs=[])
    write_groups(stage.out, [RolloutGroup(problem, rollouts)])
    stage.finish({"problems": str(tmp_path / "problems.jsonl")})

    out = label_exactly(ExactLabelConfig(tmp_path / "given", policy_folder, tmp_path / "exact", responses=4))
    (group,) = read_groups(out)
    found = {rollout.completion.text: [(c.correct, c.total) for c in rollout.mc] for rollout in group.rollouts}
    assert found == {text: [(label, 1) for label in labels] for text, (_, labels) in answers.items()}
    assert {rollout.label_source for rollout in group.rollouts} == {"exact"}
    counts = manifest_of(out)["counts"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (3, 3, {"over the number of responses": 0})
