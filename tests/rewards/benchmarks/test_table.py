"""Every row of the table is usable, and reads a row of its file as it is published."""

import re

import pytest

from mpo.multimodal.errors import DataError
from rewards.benchmarks.metrics import METRICS
from rewards.benchmarks.table import BENCHMARKS, REASONING, prepared
from rewards.interchange.problems import problem_of, with_options
from rewards.sampling.prompts import PROMPTS
from rewards.types import Verdict
from rewards.verifying.verification import VERIFIERS

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
# ruff: noqa: E501
# name → (a row in the form of its file, what a right response says, what a wrong one says, question as it is asked)
GOLDEN = {
    "MMMU": (
        {"index": 1, "split": "validation", "category": "Art", "question": "<image 1> Who?", "A": "Ann", "B": "Bob",
         "answer": "B", "image": PIXEL},
        "Final answer: B", "Final answer: Ann", "Who?\nA. Ann\nB. Bob",
    ),
    "MathVista": (
        {"pid": "1", "question": "bare", "query": "Hint: answer with a letter.\nQuestion: How many?\nChoices:\n(A) 3\n(B) 4",
         "choices": ["3", "4"], "answer": "4", "metadata": {"task": "figure question answering"}, "image": PIXEL},
        "Final answer: (B)", "Final answer: 3", "Hint: answer with a letter.\nQuestion: How many?\nChoices:\n(A) 3\n(B) 4",
    ),
    "MathVision": (
        {"id": "1", "question": "How many? <image1>", "options": [], "answer": "7", "subject": "counting", "image": PIXEL},
        "Final answer: 7", "Final answer: 8", "How many? <image>",
    ),
    "MathVerse-VO": (
        {"sample_index": "5", "problem_version": "Vision Only", "question": "", "answer": "D", "image": PIXEL,
         "query_cot": "Please provide the correct option letter.", "metadata": {"subject": "Plane Geometry"}},
        "Final answer: D", "Final answer: A", "Please provide the correct option letter.",
    ),
    "DynaMath": (
        {"index": 3, "question": "What is the period?", "answer": "2.094", "answer_type": "float", "qid": 1, "varid": 3,
         "subject": "analytic geometry", "image": PIXEL},
        "Final answer: 2.094", "Final answer: 3.14", "What is the period?",
    ),
    "WeMath": (
        {"ID": "2steps_1", "key": "2steps_multi", "question": "OA = ( ) m", "answer": "B", "image_path": PIXEL,
         "option": "A. 300, 400;B. 400, 300; C. No correct answer", "knowledge concept": "Units"},
        "Final answer: B", "Final answer: C", "OA = ( ) m\nA. 300, 400\nB. 400, 300\nC. No correct answer",
    ),
    "LogicVista": (
        {"index": 2, "question": "Which belong to the green category?", "answer": "A, C", "skill": "inductive",
         "image": PIXEL},
        "Final answer: A and C", "Final answer: A", "Which belong to the green category?",
    ),
    "M3CoT": (
        {"id": "x-1", "question": "What for?", "context": "A bridge.", "choices": ["to scare", "to honour"], "answer": "B",
         "domain": "commonsense", "image": PIXEL},
        "Final answer: to honour", "Final answer: A", "Hint: A bridge.\nWhat for?\nA. to scare\nB. to honour",
    ),
    "AI2D": (
        {"question": "What eats grass?", "options": ["fox", "hare"], "answer": "1", "image": PIXEL},
        "Final answer: B", "Final answer: fox", "What eats grass?\nA. fox\nB. hare",
    ),
    "ChartQA": (
        {"type": "human_test", "question": "Which share?", "answer": "20", "image": PIXEL},
        "Final answer: 20.5", "Final answer: 22", "Which share?",
    ),
    "ScienceQA": (
        {"question": "Which is a solid?", "hint": "", "choices": ["milk", "rock"], "answer": 1, "subject": "natural science",
         "image": PIXEL},
        "Final answer: rock", "Final answer: A", "Which is a solid?\nA. milk\nB. rock",
    ),
}  # fmt: skip


def test_every_benchmark_has_a_golden_row():
    assert set(GOLDEN) == set(BENCHMARKS)
    assert set(REASONING) < set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_published_row_is_read_and_checked(name):
    row, right, wrong, question = GOLDEN[name]
    bench = BENCHMARKS[name]
    ask = (lambda question, choices, hint: question) if bench.shows_options else with_options
    problem = problem_of(prepared(bench)(row), {}, where="file:1", root=None, ask=ask)
    assert problem.question.strip() == question  # an image that the text names has its place there
    assert len(problem.images) == 1
    verifier = VERIFIERS[bench.verifier]
    assert verifier(problem, right) is Verdict.CORRECT
    assert verifier(problem, wrong) is Verdict.WRONG
    assert list(METRICS[bench.metric]([problem], [1.0]).scores.values()) in ([1.0], [])
    if bench.by:
        assert any(key in problem.meta for key in bench.by)


@pytest.mark.parametrize("bench", BENCHMARKS.values(), ids=BENCHMARKS)
def test_a_row_names_what_exists(bench):
    assert bench.metric in METRICS
    assert bench.prompt in PROMPTS
    assert bench.verifier in VERIFIERS
    assert re.fullmatch(r"\d{4}\.\d{5}", bench.paper)
    assert bench.tsv or bench.hub
    assert bench.tsv is None or re.fullmatch(r"https://opencompass\.openxlab\.space/utils/[\w/]+\.tsv", bench.tsv)
    assert bench.hub is None or re.fullmatch(r"hub:[\w.-]+/[\w.-]+(:[\w.-]+){1,2}", bench.hub)
    assert bench.rows is None or bench.rows > 0


def test_rows_of_another_split_are_named():
    row = {**GOLDEN["MMMU"][0], "split": "dev"}
    with pytest.raises(DataError, match="MMMU is made of 'validation'") as error:
        prepared(BENCHMARKS["MMMU"])(row)
    assert error.value.reason == "not split validation"
