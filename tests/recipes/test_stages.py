"""Faults in a user's data are counted by the stage that meets them, and the rest goes on."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError, DataError
from recipes.config import LabelConfig, SampleConfig, ScoreConfig, VerifyConfig
from recipes.groups import read_groups
from recipes.label_steps import choose_responses, label
from recipes.run import manifest_of
from recipes.sample import sample, swapped
from recipes.score import score
from recipes.verify import verify
from rewards.types import Problem, Verdict


@pytest.fixture
def samples(tmp_path, policy_folder) -> Path:
    """Two good problems, one of them without an answer, and one whose picture is text."""
    Image.new("RGB", (64, 32), "white").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    rows = [
        {"id": "a", "question": "How many digits are even?", "images": ["good.png"], "answer": "1"},
        {"id": "b", "question": "How many digits are even?", "images": ["good.png"]},
        {"id": "c", "question": "How many digits are even?", "images": ["bad.png"], "answer": "1"},
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sample(
        SampleConfig(policy_folder, tmp_path / "questions.jsonl", tmp_path / "samples", num_samples=2, max_new_tokens=4)
    )


def test_a_bad_picture_costs_its_own_problem_only(samples):
    counts = manifest_of(samples)["counts"]
    assert (counts["in"], counts["out"]) == (6, 4)
    ((reason, number),) = counts["rejected"].items()
    assert number == 2
    assert "problem c" in reason
    assert "bad.png" in reason
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
        label(LabelConfig(samples, policy_folder, tmp_path / "labelled", mixed_only=False))
    with pytest.raises(ConfigError, match="at least 2"):
        choose_responses([], None, LabelConfig(samples, policy_folder, tmp_path / "x", responses=1))


def test_an_unknown_aggregation_is_refused_before_the_model_loads(samples, tmp_path, policy_folder):
    with pytest.raises(ConfigError, match=r"'avg'.*mean"):
        score(ScoreConfig(samples, policy_folder, tmp_path / "scored", aggregation="avg"))


def test_the_canary_swaps_only_pictures_of_one_size():
    def problem(name: str, width: int) -> Problem:
        return Problem(name, "q", (Image.new("RGB", (width, 32)),))

    given = [problem("a", 64), problem("b", 96), problem("c", 64), problem("d", 128)]
    asked = swapped(given)
    assert [p.id for p in asked] == ["a", "b", "c", "d"]
    assert asked[0].images is given[2].images
    assert asked[2].images is given[0].images
    assert asked[1].images is given[1].images  # no partner: its own
