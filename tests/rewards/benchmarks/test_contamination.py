"""Planted duplicates are found, resized, compressed and reworded; what only looks alike is not."""

import io
import random

import pytest
from PIL import Image, ImageDraw

from rewards.benchmarks.contamination import (
    MAX_DISTANCE,
    difference_hash,
    distance,
    near_duplicates,
    ngrams,
    with_like_questions,
)
from rewards.types import Problem

QUESTION = "As shown in the figure, angle {a} is {d} degrees. How large is angle {b}?"


def drawing(seed, *, size=(420, 300)):
    """Lines and letters on white paper, as most geometry problems are."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(4, 8)):
        ends = [(rng.randrange(size[0]), rng.randrange(size[1])) for _ in range(2)]
        draw.line(ends, fill="black", width=2)
    return image


def again(image, *, scale=0.6, quality=75):
    """Resized and compressed, as another data set keeps it."""
    buffer = io.BytesIO()
    image.resize((int(image.width * scale), int(image.height * scale))).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def asked(seed):
    return QUESTION.format(a="ABC"[seed % 3], b="XYZ"[seed % 3], d=20 + seed)


@pytest.fixture(scope="module")
def training():
    return [Problem(f"t{seed}", asked(seed), (drawing(seed),)) for seed in range(40)]


def test_hashes_survive_resizing_and_jpeg_and_tell_drawings_apart():
    hashes = [difference_hash(drawing(seed)) for seed in range(60)]
    same = [distance(hashes[seed], difference_hash(again(drawing(seed)))) for seed in range(60)]
    others = [distance(a, b) for place, a in enumerate(hashes) for b in hashes[:place]]
    assert max(same) <= MAX_DISTANCE < min(others)


def test_planted_duplicates_are_found_and_nothing_else(training):
    """Seven copies among twenty test problems: each with its training problem, whatever its image's size and file."""
    planted = [
        Problem(f"copy{seed}", f"Read carefully!  {asked(seed).upper()}", (again(drawing(seed)),))
        for seed in range(0, 35, 5)
    ]
    fresh = [Problem(f"new{seed}", asked(seed), (drawing(1000 + seed),)) for seed in range(13)]
    found = list(near_duplicates([*fresh, *planted], training))
    assert [(one.test, one.training) for one in found] == [(f"copy{seed}", f"t{seed}") for seed in range(0, 35, 5)]
    assert all(one.same_question and one.distance <= MAX_DISTANCE for one in found)


def test_an_exact_duplicate_is_told_by_its_numbers(training):
    (found,) = near_duplicates([Problem("x", asked(3), (drawing(3),))], training)
    assert (found.training, found.overlap, found.distance) == ("t3", 1.0, 0)


def test_a_close_image_with_another_question_is_counted_apart(training):
    (found,) = near_duplicates([Problem("x", "Which city has the most rain?", (again(drawing(7)),))], training)
    assert (found.training, found.same_question) == ("t7", False)


def test_an_instruction_around_the_training_question_hides_nothing():
    prompt = f"{asked(1)}\n\nSolve the problem step by step. Write the answer alone on the last line."
    (found,) = near_duplicates([Problem("x", asked(1), (drawing(1),))], [Problem("t", prompt, (drawing(1),))])
    assert found.same_question
    assert found.overlap == 1.0


def test_questions_without_images_are_compared_by_their_words():
    training = [Problem("t", "What is the smallest prime that is larger than one hundred?")]
    tests = [
        Problem("near", "what is the SMALLEST prime that is larger than one hundred"),
        Problem("far", "What is the largest prime that is smaller than one thousand?"),
        Problem("seen", "What is the smallest prime that is larger than one hundred?", (drawing(0),)),
    ]
    assert [one.test for one in near_duplicates(tests, training)] == ["near"]


def test_problems_of_several_images_need_all_of_them(training):
    both = Problem("t", asked(1), (drawing(1), drawing(2)))
    found = near_duplicates(
        [Problem("same", asked(1), (again(drawing(1)), again(drawing(2)))),
         Problem("other", asked(1), (drawing(1), drawing(3))), Problem("one", asked(1), (drawing(1),))],
        [both],
    )  # fmt: skip
    assert [one.test for one in found] == ["same"]


def test_an_unreadable_image_is_compared_with_nothing(tmp_path, training):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert list(near_duplicates([Problem("x", asked(1), (broken,))], training)) == []
    assert list(near_duplicates([Problem("x", asked(1), (drawing(1),))], [Problem("t", asked(1), (broken,))])) == []


def test_only_like_questions_need_their_images(training):
    tests = [Problem("near", asked(4), (drawing(4),)), Problem("far", "Which bar is red?", (drawing(5),))]
    ours, theirs = with_like_questions(tests, training)
    assert [problem.id for problem in ours] == ["near"]
    assert "t4" in {problem.id for problem in theirs}


def test_ngrams_ignore_case_signs_and_forms_of_letters():
    assert ngrams("Find ∠ABC, in DEGREES!") == ngrams("find abc in ｄegrees")
    assert ngrams("") == frozenset()
