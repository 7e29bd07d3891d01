"""VisualPRM400K rows: nothing is lost on the way out and back, and a damaged row is named by its field."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.multimodal.errors import DataError
from rewards.interchange.visualprm import (
    from_visualprm_row,
    to_visualprm_row,
    write_visualprm400k,
)
from rewards.interchange.visualprm_release import read_release
from rewards.prm.labelling.source import counts_estimate_mc
from rewards.steps import split_on_blank_lines
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, RolloutGroup, Verdict

ROOT = Path("/data/images").resolve()


def published(**changes: Any) -> dict[str, Any]:
    """A row with the fields of InternVL's released pipeline, and none of ours."""
    return {
        "image": "geo/1.png",
        "question": "<image>\nWhat is x?\nAnswer step by step.",
        "question_orig": "What is x?",
        "answer": "4",
        "response": "First, x = 2 + 2.\n\nSo x = 4.\n\n**Final answer: 4**",
        "steps_with_score": [
            {"step": "First, x = 2 + 2.", "score": 0.6875, "num_mc_correct": 11, "num_mc_total": 16},
            {"step": "So x = 4.", "score": 1.0, "num_mc_correct": 16, "num_mc_total": 16},
            {"step": "**Final answer: 4**", "score": 0.9375, "num_mc_correct": 15, "num_mc_total": 16},
        ],
        "num_mc_sequences": 16,
    } | changes


def step(**changes: Any) -> list[dict[str, Any]]:
    first, *others = published()["steps_with_score"]
    return [first | changes, *others]


def test_a_published_row_is_read() -> None:
    problem, rollout = from_visualprm_row(published(), image_root=ROOT)
    assert problem.question == "What is x?\nAnswer step by step."  # the PRM reads the whole prompt, as in VisualPRM
    assert problem.images == (ROOT / "geo" / "1.png",)
    assert problem.answer == "4"
    assert rollout.completion.text == published()["response"]
    assert rollout.mc == (MonteCarloCount(11, 16), MonteCarloCount(16, 16), MonteCarloCount(15, 16))
    assert rollout.label_source == "mc:full:16"
    assert rollout.verdict is None  # the file does not say, and the last step's continuations are not it


def test_rows_of_one_problem_agree_on_its_id() -> None:
    first, _ = from_visualprm_row(published(), image_root=ROOT)
    text = "x = 4."
    steps = [{"step": text, "score": 0.5, "num_mc_correct": 8, "num_mc_total": 16}]
    other, _ = from_visualprm_row(published(response=text, steps_with_score=steps), image_root=ROOT)
    assert first == other
    for change in ({"answer": "5"}, {"question": "<image>\nWhat is y?"}, {"image": "geo/2.png"}):
        different, _ = from_visualprm_row(published(**change), image_root=ROOT)
        assert different.id != first.id


def test_unequal_totals_are_not_taken_for_estimates() -> None:
    """Without a `label_source`, 1 of 2 beside 16 of 16 looks like drawing that stopped at a success."""
    _, rollout = from_visualprm_row(
        published(steps_with_score=step(score=0.5, num_mc_correct=1, num_mc_total=2)), image_root=ROOT
    )
    assert rollout.label_source == "mc:unknown:16"
    assert not counts_estimate_mc(rollout.label_source)
    _, rounded = from_visualprm_row(published(steps_with_score=step(score=0.69)), image_root=ROOT)
    assert rounded.mc == from_visualprm_row(published(), image_root=ROOT)[1].mc


def test_merged_steps_are_those_of_the_response() -> None:
    """VisualPRM joins ceil(n/12) neighbours: 13 steps are 7 labelled ones, and the response's text is kept."""
    texts = [f"step {i}" for i in range(13)]
    merged = ["\n\n".join(texts[i : i + 2]) for i in range(0, 13, 2)]
    rows = [{"step": text, "score": 0.0, "num_mc_correct": 0, "num_mc_total": 16} for text in merged]
    row = published(response="\n\n".join(texts), steps_with_score=rows)
    problem, rollout = from_visualprm_row(row, image_root=ROOT)
    assert rollout.completion.text == "\n\n".join(texts)
    assert len(rollout.mc or ()) == 7
    assert to_visualprm_row(problem, rollout, image_root=ROOT)["steps_with_score"] == rows


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], r"row: Input should be a valid dictionary.*got '\[\]'"),
        ({}, r"question: Field required"),
        (published(response=None), r"response: Input should be a valid string \(got 'None'\)"),
        (published(response="  \n"), r"response: cannot split"),
        (published(image=7), r"image"),
        (published(image="../secret.png"), r"image: image path '\.\./secret\.png' leaves the image root"),
        (published(image="/etc/passwd"), r"image: image path '/etc/passwd' leaves the image root"),
        (published(image="https://host/1.png"), r"image: .*not a local path"),
        (published(question="Look at <image> and <image>."), r"question: 2 <image> for 1 images; expected as many"),
        (published(question="<image>\n<image>\nWhat?"), r"question: 2 <image> for 1 images"),
        (published(steps_with_score=[]), r"steps_with_score: expected at least one step"),
        (published(steps_with_score=step(num_mc_total=None)), r"steps_with_score\.0\.num_mc_total: Input should be"),
        (published(steps_with_score=step(num_mc_correct=17)), r"steps_with_score\.0\.num_mc_correct: .*got 17/16"),
        (published(steps_with_score=step(num_mc_correct=0, num_mc_total=0)), r"steps_with_score\.0\.num_mc_correct"),
        (published(steps_with_score=step(score=0.9)), r"steps_with_score\.0\.score: expected .* = 11/16, got 0\.9"),
        (published(steps_with_score=step(score=float("nan"))), r"steps_with_score\.0\.score: expected .*got nan"),
        (published(steps_with_score=step(step="Second")), r"steps_with_score\.0\.step: expected the response's own"),
        (published(steps_with_score=step()[:1]), r"steps_with_score\.0\.step: expected the response's own"),
        (published(steps_with_score=step() * 2), r"response: a response of 3 steps cannot be merged into 6"),
        (published(verdict="maybe"), r"verdict: "),
        (published(question="What \ud800?"), r"question: "),
    ],
)
def test_a_damaged_row_is_named_by_its_field(row: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"^{said}"):
        from_visualprm_row(row, image_root=ROOT)


def test_a_damaged_row_costs_only_itself(tmp_path: Path) -> None:
    lines = [
        json.dumps(published()),
        "",
        "{",
        '{"question": ' + "9" * 5000 + "}",
        json.dumps([]),
        json.dumps(published()),
    ]
    (tmp_path / "rows.jsonl").write_bytes("\n".join(lines).encode() + b'\n"\xff"\n')
    (tmp_path / "geo").mkdir()
    (tmp_path / "geo" / "1.png").write_bytes(b"")  # not opened
    found = list(read_release(tmp_path / "rows.jsonl"))
    assert [where for where, _ in found] == [f"rows.jsonl:{number}" for number in (1, 3, 4, 5, 6, 7)]
    assert [isinstance(row, DataError) for _, row in found] == [False, True, True, True, False, True]


STEP = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1).filter(str.strip)
TEXTS = st.lists(STEP, min_size=1, max_size=15).map("\n\n".join)
QUESTIONS = st.text(st.characters(codec="utf-8")).filter(lambda text: "<image>" not in text)


@st.composite
def labelled(draw: st.DrawFn) -> Rollout:
    text = draw(TEXTS)
    totals = draw(st.integers(1, 16))
    number = len(split_on_blank_lines(text))
    mc = tuple(MonteCarloCount(draw(st.integers(0, totals)), totals) for _ in range(number))
    source = draw(st.sampled_from(["mc:full:16", "mc:sequential:16", "mc:bisect:4", "exact"]))
    return Rollout(Completion(text), draw(st.none() | st.sampled_from(Verdict)), mc=mc, label_source=source)


@settings(max_examples=100, deadline=None)
@given(
    QUESTIONS, st.integers(0, 3), st.none() | st.text(st.characters(codec="utf-8")), st.lists(labelled(), max_size=3)
)
def test_round_trip(question: str, images: int, answer: str | None, rollouts: list[Rollout]) -> None:
    problem = Problem("p", question, tuple(ROOT / f"{i}.png" for i in range(images)), answer)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.jsonl"
        assert write_visualprm400k(path, [RolloutGroup(problem, tuple(rollouts))], image_root=ROOT) == len(rollouts)
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]
        assert [from_visualprm_row(row, image_root=ROOT) for row in rows] == [(problem, r) for r in rollouts]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'p' has a rollout without step counts"):
        to_visualprm_row(Problem("p", "q"), Rollout(Completion("a")), image_root=ROOT)
    counted = Rollout(Completion("a"), mc=(MonteCarloCount(1, 2),))
    with pytest.raises(DataError, match=r"'p': image .* is not a file inside"):
        to_visualprm_row(Problem("p", "q", ("/etc/x.png",)), counted, image_root=ROOT)
