"""Rows of VisualProcessBench and ProcessBench, the split, the threshold, the table; and the scores of given steps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpo.multimodal.errors import ConfigError, DataError, StageError
from rewards.errors import StepAlignmentError
from rewards.interchange.processbench import parse_processbench, read_processbench, write_processbench
from rewards.interchange.visualprocessbench import (
    parse_visualprocessbench,
    read_visualprocessbench,
    write_visualprocessbench,
)
from rewards.prm.evaluating.benchmark import BenchmarkResponse, ScoredResponse, choose_threshold, in_development
from rewards.prm.evaluating.benchmark_metrics import evaluate, image_drop
from rewards.prm.evaluating.given_steps import score_given_steps
from rewards.prm.evaluating.metrics import class_counts, f1_scores, first_error_f1
from rewards.prm.formats import STEP_TAG, VISUALPRM
from rewards.prm.model_prm import ModelPRM
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.statistics import statistic_with_interval, wilson_interval
from rewards.steps import merge_to_at_most, merged_size, steps_of
from rewards.types import Problem, StepScores

T, F, N = True, False, None
VALUES = [i / 8 for i in range(9)]


def scored(
    labels: Sequence[bool | None], scores: Sequence[float], *, problem: str = "p", source: str = "s", id: str = "r"
) -> ScoredResponse:
    steps = tuple(f"step {i}" for i in range(len(labels)))
    return ScoredResponse(BenchmarkResponse(id, Problem(problem, "?"), steps, tuple(labels), source), tuple(scores))


RESPONSES = st.lists(
    st.lists(st.tuples(st.sampled_from([T, F, N]), st.sampled_from(VALUES)), min_size=1, max_size=6).filter(
        lambda row: any(label is not None for label, _ in row)
    ),
    min_size=1,
    max_size=8,
).map(lambda rows: [scored(*zip(*row, strict=True), problem=f"p{i // 2}") for i, row in enumerate(rows)])


# ---- VisualProcessBench rows ----


def vpb_row(**changes: Any) -> dict[str, Any]:
    return {
        "image": ["images/a.png", "images/b.png"],
        "question": "<image>\nWhich is <image 1> larger?",
        "answer": "B",
        "response": {"steps": ["A is 3", "B is\n\n9", "So B"], "process_correctness": [1, -1, 0]},
        "policy_model": "toy",
        "data_source": "MMMU",
        **changes,
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "damaged.png").write_text("no image")
    return tmp_path


def test_a_visualprocessbench_row(data: Path) -> None:
    response = parse_visualprocessbench(vpb_row(), id="row 1", image_root=data)
    assert response.problem.question == "Which is <image 1> larger?"  # only the placeholder leaves
    assert [Path(str(image)).name for image in response.problem.images] == ["a.png", "b.png"]
    assert response.labels == (True, False, None)
    assert (response.first_error, response.source, response.generator) == (1, "MMMU", "toy")
    as_text = vpb_row(response=json.dumps(vpb_row()["response"]))  # what the dataset card calls it
    assert parse_visualprocessbench(as_text, id="row 1", image_root=data) == response


def test_responses_to_one_problem_share_its_id(data: Path) -> None:
    one, other = (parse_visualprocessbench(vpb_row(policy_model=m), id=m, image_root=data) for m in "ab")
    third = parse_visualprocessbench(vpb_row(image=["images/a.png"]), id="c", image_root=data)
    assert one.problem.id == other.problem.id != third.problem.id


BAD_ROWS = {
    "row: Input should be a valid dictionary or instance of _Row": [],
    "question: Field required": {"response": {}, "data_source": "x"},
    "steps and process_correctness differ in number": vpb_row(response={"steps": ["a"], "process_correctness": [1, 1]}),
    "no step has a label": vpb_row(response={"steps": ["a"], "process_correctness": [0]}),
    "a step is empty": vpb_row(response={"steps": ["a", " "], "process_correctness": [1, 1]}),
    "a step is not valid Unicode": vpb_row(response={"steps": ["\ud800"], "process_correctness": [1]}),
    "response.process_correctness: Input should be 1, 0 or -1": vpb_row(
        response={"steps": ["a"], "process_correctness": [2]}
    ),
    "response.steps: List should have at least 1 item after validation, not 0": vpb_row(
        response={"steps": [], "process_correctness": []}
    ),
    "response: Value error, a string that is not JSON": vpb_row(response="a\n\nb"),
    "question is empty": vpb_row(question="<image>"),
    "an image path is not valid Unicode": vpb_row(image=["images/\ud800.png"]),
    "an image is missing": vpb_row(image=["images/c.png"]),
    "an image cannot be decoded": vpb_row(image=["images/damaged.png"]),
    "an image is not a local path inside the folder": vpb_row(image=["../outside.png"]),
}


def test_every_bad_row_is_counted_by_its_reason(data: Path) -> None:
    Image.new("RGB", (8, 8)).save(data.parent / "outside.png")
    lines = [json.dumps(row) for row in [vpb_row(), *BAD_ROWS.values(), vpb_row(image="https://x.org/a.png")]]
    (data / "test.jsonl").write_text("\n".join([*lines, "", "{not json", "[" * 100_000]) + "\n")
    responses, rejected = read_visualprocessbench(data / "test.jsonl")
    assert [response.id for response in responses] == ["row 1"]
    # a half surrogate is no JSON text: the decoder refuses the line before its fields are looked at
    surrogates = {"a step is not valid Unicode", "an image path is not valid Unicode"}
    expected = Counter(dict.fromkeys(BAD_ROWS.keys() - surrogates, 1)) + Counter({"not JSON": 4})
    expected["an image is not a local path inside the folder"] += 1
    assert rejected == expected


def test_a_link_out_of_the_folder_is_no_image(data: Path) -> None:
    Image.new("RGB", (8, 8)).save(data.parent / "outside.png")
    (data / "images" / "link.png").symlink_to(data.parent / "outside.png")
    with pytest.raises(DataError, match="inside the folder"):
        parse_visualprocessbench(vpb_row(image=["images/link.png"]), id="r", image_root=data)


def test_visualprocessbench_round_trip(data: Path) -> None:
    given = [
        parse_visualprocessbench(vpb_row(), id="row 1", image_root=data),
        parse_visualprocessbench(vpb_row(image=None, answer=7), id="row 2", image_root=data),
    ]
    assert given[1].problem.answer == "7"
    assert write_visualprocessbench(data / "again.jsonl", given) == 2
    assert read_visualprocessbench(data / "again.jsonl") == (given, Counter())
    row = json.loads((data / "again.jsonl").read_text().splitlines()[0])
    assert row["image"] == ["images/a.png", "images/b.png"]
    assert row["response"] == vpb_row()["response"]
    with pytest.raises(DataError, match="save it there"):
        write_visualprocessbench(
            data / "images" / "x.jsonl", [replace(given[0], problem=Problem("p", "?", ("/etc/x",)))]
        )


def test_the_images_may_stand_in_another_folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("rows")
    (other / "test.jsonl").write_text(json.dumps(vpb_row()) + "\n")
    with pytest.raises(DataError, match=r"no row that can be used.*an image is missing"):
        read_visualprocessbench(other / "test.jsonl")
    responses, _ = read_visualprocessbench(other / "test.jsonl", image_root=data)
    assert len(responses[0].problem.images) == 2
    with pytest.raises(StageError, match="no rows at"):
        read_visualprocessbench(other / "nothing.jsonl")


# ---- ProcessBench rows ----


def pb_row(**changes: Any) -> dict[str, Any]:
    row = {"id": "omni-math-7", "generator": "toy", "problem": "1+1+1?", "steps": ["1+1=2", "2+1=4", "4"]}
    return {**row, "final_answer_correct": False, "label": 1, **changes}


def test_processbench_labels() -> None:
    labels = {label: parse_processbench(pb_row(label=label)).labels for label in (-1, 0, 1, 2)}
    assert labels == {-1: (T, T, T), 0: (F, N, N), 1: (T, F, N), 2: (T, T, F)}
    response = parse_processbench(pb_row())
    assert (response.id, response.source, response.final_correct) == ("omni-math-7", "omni-math", False)
    for bad in (
        {"label": 3},
        {"label": -2},
        {"label": True},
        {"label": "1"},
        {"steps": []},
        {"problem": ""},
        {"id": ""},
    ):
        with pytest.raises(DataError):
            parse_processbench(pb_row(**bad))


@pytest.mark.parametrize("indent", [None, 1], ids=["lines", "array"])
def test_processbench_round_trip_from_lines_and_from_an_array(tmp_path: Path, indent: int | None) -> None:
    rows = [pb_row(), pb_row(id="omni-math-8", label=-1, final_answer_correct=True), pb_row(label=9), "no row"]
    text = "".join(json.dumps(row) + "\n" for row in rows) if indent is None else "\n" + json.dumps(rows, indent=indent)
    (tmp_path / "gsm8k.json").write_text(text)
    responses, rejected = read_processbench(tmp_path / "gsm8k.json")
    assert [response.first_error for response in responses] == [1, -1]
    assert rejected["label is not the index of a step"] == 1
    assert rejected.total() == 2
    assert write_processbench(tmp_path / "again.jsonl", responses) == 2
    assert read_processbench(tmp_path / "again.jsonl") == (responses, Counter())
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(DataError, match="JSON array"):
        read_processbench(tmp_path / "broken.json")
    with pytest.raises(DataError, match="no images"):
        write_processbench(tmp_path / "x.jsonl", [replace(responses[0], problem=Problem("p", "?", ("a.png",)))])


# ---- labels and first errors ----


def test_first_errors_by_hand() -> None:
    one = scored([T, N, F, T], [0.9, 0.1, 0.4, 0.2])
    assert one.response.first_error == 2
    assert one.response.until_first_error() == (T, N, F, N)
    assert [one.predicted_first_error(t) for t in (0.15, 0.3, 0.4, 0.5, 0.95)] == [-1, 3, 3, 2, 0]  # 1 has no label
    right = scored([T, T], [0.9, 0.8])
    assert (right.response.first_error, right.predicted_first_error(0.5)) == (-1, -1)
    assert right.response.until_first_error() == (T, T)
    with pytest.raises(StepAlignmentError, match="2 steps but 1 scores"):
        scored([T, T], [0.5])
    with pytest.raises(StepAlignmentError, match="1 steps but 2 labels"):
        BenchmarkResponse("r", Problem("p", "?"), ("a",), (T, F), "s")


# ---- the split ----


def test_the_split_depends_on_seed_and_id_alone() -> None:
    ids = [f"p{i}" for i in range(2000)]
    sides = {i: in_development(i, share=0.2, seed=0) for i in ids}
    assert 0.17 < sum(sides.values()) / 2000 < 0.23
    assert sides != {i: in_development(i, share=0.2, seed=1) for i in ids}
    larger = {i: in_development(i, share=0.5, seed=0) for i in ids}
    assert all(larger[i] for i in ids if sides[i])  # a larger share only adds problems
    for share in (0.0, 1.0):
        with pytest.raises(ConfigError, match="share"):
            in_development("p", share=share, seed=0)


# ---- the threshold ----


def test_the_threshold_by_hand() -> None:
    """Right .9 .8 .3, wrong .6 .1. Between .6 and .8: TP 2, FN 1, TN 2: F1+ .8, F1- .8. Nothing else is as good."""
    rows = [scored([T, F], [0.9, 0.6]), scored([T, T, F], [0.8, 0.3, 0.1])]
    chosen, value = choose_threshold(rows, objective="macro_f1")
    assert chosen == pytest.approx(0.7)
    assert value == pytest.approx(0.8)


def test_of_equally_good_thresholds_the_nearest_to_a_half() -> None:
    rows = [scored([T, F], [0.9, 0.05])]
    assert choose_threshold(rows, objective="macro_f1") == (pytest.approx(0.475), 1.0)


@settings(deadline=None)
@given(RESPONSES)
def test_no_threshold_is_better(rows: list[ScoredResponse]) -> None:
    """Against every threshold tried one by one, through the table that the report uses."""

    def by_hand(objective: str, threshold: float) -> float:
        if objective == "macro_f1":
            pairs = [pair for row in rows for pair in row.labelled()]
            return float(f1_scores(class_counts(*zip(*pairs, strict=True), threshold=threshold))[2])
        counts = [0.0] * 4
        for row in rows:
            missed = row.predicted_first_error(threshold) != row.response.first_error
            counts[(0 if row.response.first_error >= 0 else 2) + missed] += 1
        return float(first_error_f1(np.array(counts)))

    tried = [0.0, *(value + 1 / 16 for value in VALUES if value < 1)]  # a threshold above 1 is none
    for objective in ("macro_f1", "first_error_f1"):
        values = [by_hand(objective, threshold) for threshold in tried]
        labels = {label for row in rows for _, label in row.labelled()}
        if np.isnan(values).all() or len(labels) < 2:
            with pytest.raises(DataError, match=r"undefined|both right and wrong"):
                choose_threshold(rows, objective=objective)
            continue
        chosen, value = choose_threshold(rows, objective=objective)
        assert value == pytest.approx(by_hand(objective, chosen))
        assert value >= np.nanmax(values) - 1e-9


def test_a_threshold_needs_responses_and_a_known_objective() -> None:
    for one_sided in ([], [scored([T, T], [0.5, 0.9])], [scored([F], [0.5])]):
        with pytest.raises(DataError, match="do not hold both right and wrong steps"):
            choose_threshold(one_sided, objective="macro_f1")
    with pytest.raises(ConfigError, match=r"'f1'.*macro_f1"):
        choose_threshold([scored([T], [0.5])], objective="f1")
    with pytest.raises(DataError, match="with an error and without"):
        choose_threshold([scored([T, F], [0.5, 0.4])], objective="first_error_f1")


# ---- the table ----


def test_the_table_by_hand() -> None:
    """Two sources at threshold .5.

    A, problem a, two responses: labels T F | T T, scores .9 .2 | .4 .8: TP 2, FN 1, TN 1, FP 0:
      F1+ 4/5, F1- 2/3, macro 11/15; first errors: found 1 of 1; left alone 0 of 1.
    B, problem b, one response: F N, scores .7 .1: FP 1; F1+ 0, F1- 0; not found.
    pooled: TP 2, FP 1, FN 1, TN 1: 4/6, 2/4: 7/12. mean of sources: 11/30. weighted 2:1: 22/45.
    First errors pooled: found 1 of 2, alone 0 of 1: F1 0.
    """
    rows = [
        scored([T, F], [0.9, 0.2], problem="a", source="A"),
        scored([T, T], [0.4, 0.8], problem="a", source="A"),
        scored([F, N], [0.7, 0.1], problem="b", source="B"),
    ]
    found = evaluate(rows, threshold=0.5)
    macro = {how: estimate["mean"] for how, estimate in found["macro_f1"].items()}
    assert macro == pytest.approx({"pooled": 7 / 12, "mean_of_sources": 11 / 30, "weighted": 22 / 45})
    assert found["f1_right"]["mean"] == pytest.approx(4 / 6)
    assert found["f1_wrong"]["mean"] == pytest.approx(2 / 4)
    assert found["step_accuracy"]["mean"] == pytest.approx(3 / 5)
    assert found["first_error"]["f1"]["pooled"]["mean"] == 0.0
    assert found["first_error"]["f1"]["mean_of_sources"] is None  # B has no response without an error
    assert found["first_error"]["accuracy_with_error"]["mean"] == 0.5
    assert found["first_error"]["accuracy"]["mean"] == pytest.approx(1 / 3)
    assert (found["responses"], found["problems"]) == (3, 2)
    assert (found["right_steps"], found["wrong_steps"], found["unlabelled_steps"]) == (3, 2, 1)
    assert found["auc"]["mean"] == pytest.approx((2 + 1 + 2) / 6)
    within = found["within_problem_auc"]
    assert (within["mean"], within["high"], within["n"]) == (1.0, 1.0, 1)
    assert within["low"] == pytest.approx(wilson_interval(1.0, 1)[0], abs=1e-6)  # one problem says little
    sources = {name: (row["responses"], row["macro_f1"]["mean"]) for name, row in found["per_source"].items()}
    assert sources == {"A": (2, pytest.approx(11 / 15)), "B": (1, 0.0)}
    json.dumps(found, allow_nan=False)


def test_perfect_and_inverted_scores() -> None:
    rows = [scored([T, F], [0.9, 0.1], problem=f"p{i}", source="AB"[i % 2]) for i in range(20)]
    rows += [scored([T, T], [0.9, 0.8], problem=f"q{i}", source="AB"[i % 2]) for i in range(20)]
    found = evaluate(rows, threshold=0.5)
    every = [*found["macro_f1"].values(), *found["first_error"]["f1"].values(), found["auc"]]
    assert all((e["mean"], e["low"], e["high"]) == (1.0, wilson_interval(1.0, 40)[0], 1.0) for e in every)
    inverted = [replace(row, scores=tuple(1 - s for s in row.scores)) for row in rows]
    assert evaluate(inverted, threshold=0.5)["macro_f1"]["pooled"]["mean"] == 0.0


def test_the_intervals_cover_and_keep_a_problem_together() -> None:
    """One problem repeated 50 times is one observation: the interval must not shrink."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        labels = rng.random(4) < 0.7
        rows.append(
            scored(labels.tolist(), np.clip(0.5 * labels + rng.random(4) * 0.6, 0, 1).tolist(), problem=f"p{i}")
        )
    one = evaluate(rows, threshold=0.5)["macro_f1"]["pooled"]
    many = evaluate(rows * 5, threshold=0.5)["macro_f1"]["pooled"]
    assert one["low"] < one["mean"] < one["high"]
    assert (many["mean"], many["low"], many["high"]) == pytest.approx((one["mean"], one["low"], one["high"]))
    alone = [
        replace(row, response=replace(row.response, problem=Problem(f"x{i}", "?"))) for i, row in enumerate(rows * 5)
    ]
    apart = evaluate(alone, threshold=0.5)["macro_f1"]["pooled"]
    assert apart["high"] - apart["low"] < 0.7 * (one["high"] - one["low"])


def test_an_interval_of_a_mean_is_the_bootstraps() -> None:
    """Binomial, n = 400, p = .3: standard error .0229, so the 95 % interval is about ± .045."""
    values = np.array([1.0] * 120 + [0.0] * 280)
    found = statistic_with_interval(lambda weights: weights @ values / weights.sum(1), 400)
    assert found.mean == pytest.approx(0.3)
    assert found.low == pytest.approx(0.3 - 1.96 * 0.0229, abs=0.006)
    assert found.high == pytest.approx(0.3 + 1.96 * 0.0229, abs=0.006)
    assert statistic_with_interval(lambda weights: weights.sum(1) * np.nan, 3) is None
    with pytest.raises(ConfigError):
        statistic_with_interval(lambda weights: weights.sum(1), 0)


def test_the_drop_without_pictures() -> None:
    """Right steps fall from .9 to .5, wrong ones stay: the score falls by .4; at threshold .6 F1 falls to that of "all
    wrong": F1+ 0, F1- 2/3."""
    seen = [scored([T, F], [0.9, 0.2], problem=f"p{i}") for i in range(10)]
    unseen = [replace(one, scores=(0.5, 0.2)) for one in seen]
    found = image_drop(seen, unseen, threshold=0.6)
    assert found["score"]["mean"] == pytest.approx(0.4)
    assert found["macro_f1"]["mean"] == pytest.approx(1 - 1 / 3)
    assert (found["auc"]["mean"], found["within_problem_auc"]["mean"]) == (0.0, 0.0)
    nothing = image_drop(seen, seen, threshold=0.6)
    assert {nothing[key]["mean"] for key in ("score", "macro_f1", "auc")} == {0.0}
    with pytest.raises(DataError, match="same responses"):
        image_drop(seen, unseen[:-1], threshold=0.6)
    with pytest.raises(DataError, match="at least one"):
        evaluate([], threshold=0.5)


# ---- scores of given steps ----


def test_given_steps_are_scored_as_they_are(policy: Any, processor: Any) -> None:
    """A blank line inside a step is not a cut; without one the scores are those of the text."""
    prm = ModelPRM(policy, processor, STEP_TAG, batch_rows=2)
    problem = Problem("p", "What is 5 + 7?")
    (text,) = prm.score(problem, ["Red is 3\n\nBlue is 9\n\nSo 12"])
    given = prm.score_steps(
        [(problem, ["Red is 3", "Blue is 9", "So 12"]), (problem, ["Red is 3\n\nBlue is 9", "So 12"])]
    )
    assert given[0].values == pytest.approx(text.values, abs=1e-5)
    assert len(given[1].values) == 2
    (blank,) = prm.score_steps([(problem, ["a", " "])])
    assert isinstance(blank, DataError)
    assert blank.reason == "empty"


def test_a_merged_steps_score_goes_to_all_its_members(policy: Any, processor: Any) -> None:
    prm = ModelPRM(policy, processor, VISUALPRM)  # at most 12: 13 steps are 7 groups
    problem, steps = Problem("p", "What is 5 + 7?"), list("abcdefghijklm")
    (merged,) = prm.score(problem, ["\n\n".join(steps)])
    (given,) = prm.score_steps([(problem, steps)])
    assert len(merged.values) == 7
    assert given.values == pytest.approx([merged.values[i // 2] for i in range(13)], abs=1e-6)


@given(st.lists(st.text("ab \n", min_size=1).filter(str.strip), min_size=1, max_size=40), st.integers(1, 15))
def test_steps_tile_their_text_and_merge_by_index(texts: list[str], limit: int) -> None:
    steps = steps_of(texts)
    joined = "\n\n".join(texts)
    assert "".join(joined[step.start : step.end] for step in steps) == joined
    assert [step.text for step in steps] == [text.strip() for text in texts]
    size = merged_size(len(texts), max_steps=limit)
    merged = merge_to_at_most(steps, max_steps=limit)
    assert all(
        merged[i // size].start <= step.start < step.end <= merged[i // size].end for i, step in enumerate(steps)
    )


class TextPRM(ProcessRewardModel):
    """The least that a PRM must have: 0.9 for a block of text that names no 4, else 0.1."""

    def outcomes(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores | DataError]:
        return [
            StepScores(tuple(0.1 if "4" in block else 0.9 for block in text.split("\n\n") if block != "skip"))
            for _, text in items
        ]


def test_any_prm_can_be_asked() -> None:
    responses = [
        parse_processbench(pb_row()),
        parse_processbench(pb_row(id="gsm8k-1", steps=["one\n\ntwo", "4"], label=1)),
        parse_processbench(pb_row(id="gsm8k-2", steps=["skip", "2"], label=-1)),
    ]
    found, rejected = score_given_steps(responses, TextPRM())
    assert [one.scores for one in found] == [(0.9, 0.1, 0.1), (0.9, 0.1)]
    assert rejected == Counter({"the PRM gave another number of scores": 1})
    assert evaluate(found, threshold=0.5)["first_error"]["accuracy_with_error"]["mean"] == 1.0


def test_a_response_with_a_control_token_is_counted(policy: Any, processor: Any) -> None:
    responses = [parse_processbench(pb_row(steps=[step, "2"], label=0)) for step in ("fine", "bad<|im_end|>")]
    found, rejected = score_given_steps(responses, ModelPRM(policy, processor, VISUALPRM))
    assert [one.response for one in found] == responses[:1]
    assert rejected == Counter({"control token": 1})
