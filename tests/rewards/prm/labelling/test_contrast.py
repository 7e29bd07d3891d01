"""Negatives under another problem's images: whose images, which steps, which labels."""

from __future__ import annotations

import random

from PIL import Image

from rewards.prm.labelling.contrast import visual_contrasts
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution
from rewards.steps import split_on_blank_lines
from rewards.types import Problem

RIGHT, WRONG = ("Red is 3\n\nFinal answer: 3", (1.0, 1.0)), ("Red is 4\n\nFinal answer: 4", (0.0, 0.0))


def group(name: str, answer: str | None, *, size: int = 32, question: str = "Red?", solutions=(RIGHT, WRONG)):
    images = (Image.new("RGB", (size, 32), (len(name), 0, 0)),)
    labelled = (LabelledSolution(split_on_blank_lines(text), labels) for text, labels in solutions)
    return LabelledGroup(Problem(name, question, images, answer), tuple(labelled))


def test_only_the_last_step_of_a_right_response_is_wrong_under_another_answer_s_pictures() -> None:
    first, second = group("a", "3"), group("bb", "5", solutions=(WRONG,))
    (made,) = visual_contrasts([first, second], 4, random.Random(0))
    assert made.problem.images == second.problem.images
    assert (made.problem.id, made.problem.question) == ("a with images of bb", "Red?")
    assert [(s.steps, s.labels) for s in made.solutions] == [(first.solutions[0].steps, (None, 0.0))]


def test_a_partner_has_the_same_question_and_sizes_and_another_answer() -> None:
    others = [
        group("same answer", " 3. "),
        group("no answer", None),
        group("wide", "5", size=64),
        group("other question", "5", question="Blue?"),
    ]
    assert visual_contrasts([group("a", "3"), *others], 1, random.Random(0)) == []


def test_as_many_as_asked_for() -> None:
    many = group("a", "3", solutions=[RIGHT] * 5)
    (made,) = visual_contrasts([many, group("b", "5", solutions=(WRONG,))], 3, random.Random(0))
    assert len(made.solutions) == 3
