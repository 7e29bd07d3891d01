"""The embedded world: splits that never meet, exact truth, a tokenizer that loses nothing."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.messages import prompt_text, user_message
from recipes.worlds.digits.policy import IMAGE_TOKENS_A_TILE, build_processor, digits_text
from recipes.worlds.digits.truth import step_truth
from recipes.worlds.digits.world import (
    INKS,
    KINDS,
    QUESTIONS,
    REASONING_KINDS,
    SPLITS,
    Scene,
    answer_of,
    scenes,
    solution,
    split_indices,
    to_problem,
)
from rewards.steps import split_on_blank_lines
from rewards.types import Problem

ANY_KIND = st.sampled_from(sorted(QUESTIONS))
DIGITS = st.dictionaries(st.sampled_from(sorted(INKS)), st.integers(0, 9), min_size=2, max_size=5)
TOKENIZER = build_processor().tokenizer


def problem_of(kind: str, digits: dict[str, int]) -> Problem:
    return Problem("p", QUESTIONS[kind], meta={"kind": kind, "digits": digits})


def steps_of(kind: str, digits: dict[str, int], seed: int) -> list[str]:
    return [step.text for step in split_on_blank_lines(solution(kind, digits, random.Random(seed)))]


# ---- kinds ----


@given(st.sampled_from(REASONING_KINDS), st.lists(st.integers(0, 9), min_size=2, max_size=5), st.integers(1, 9))
def test_where_every_digit_counts_one_misread_digit_makes_the_answer_wrong(
    kind: str, digits: list[int], off: int
) -> None:
    misread = [(digits[0] + off) % 10, *digits[1:]]
    assert answer_of(kind, misread) != answer_of(kind, digits)


def test_range_forgives_a_third_of_the_misread_digits() -> None:
    rng = random.Random(0)
    lucky = 0
    for _ in range(4000):
        digits = [rng.randrange(10) for _ in range(rng.randint(2, 5))]
        misread = [(digits[0] + rng.randint(1, 9)) % 10, *digits[1:]]
        lucky += answer_of("range", misread) == answer_of("range", digits)
    assert 0.2 < lucky / 4000 < 0.4


def test_other_kinds_are_a_setting() -> None:
    drawn = scenes("test", 60, seed=0, kinds=REASONING_KINDS)
    assert {scene.kind for scene in drawn} == set(REASONING_KINDS)
    tokenizer = build_processor(digits_text(REASONING_KINDS)).tokenizer
    assert len(tokenizer.tokenize(QUESTIONS["triple"])) < len(TOKENIZER.tokenize(QUESTIONS["triple"]))
    assert build_processor(digits_text(KINDS)).tokenizer.get_vocab() == TOKENIZER.get_vocab()


# ---- splits and scenes ----


def test_splits_are_disjoint_and_cover_every_scan() -> None:
    parts = [split_indices(split) for split in SPLITS]
    assert sorted(index for part in parts for index in part) == list(range(1797))
    assert [len(part) for part in parts] == [90, 755, 449, 180, 323]
    with pytest.raises(ConfigError, match="unknown split 'train'"):
        split_indices("train")


def test_every_split_has_every_digit() -> None:
    for split in SPLITS:
        assert {Scene("sum", (scan,), ("Red",)).digits[0] for scan in split_indices(split)} == set(range(10))


def test_scenes_are_deterministic_and_stay_in_their_split() -> None:
    for split in SPLITS:
        drawn = scenes(split, 60, seed=3)
        assert drawn == scenes(split, 60, seed=3)
        assert drawn[:20] == scenes(split, 20, seed=3)
        assert drawn != scenes(split, 60, seed=4)
        assert {scan for scene in drawn for scan in scene.scans} <= set(split_indices(split))
        for scene in drawn:
            assert len(set(scene.scans)) == len(set(scene.inks)) == len(scene.scans) == len(scene.inks)
    assert {scene.kind for scene in drawn} == set(KINDS)
    assert {len(scene.scans) for scene in drawn} == {2, 3, 4, 5}


def test_pictures_have_a_tile_a_digit() -> None:
    for scene in scenes("test", 12, seed=0):
        picture = scene.picture()
        assert (picture.mode, picture.size) == ("RGB", (32 * len(scene.scans), 32))
        assert picture.tobytes() == scene.picture().tobytes()


def test_each_tile_is_drawn_in_its_ink() -> None:
    """The darkest pixel of a tile lies on the line from white to its ink, near the ink."""
    scene = scenes("test", 1, seed=0, lengths=[5])[0]
    pixels = np.asarray(scene.picture(), dtype=float)
    for place, ink in enumerate(scene.inks):
        tile = pixels[4:28, 32 * place + 4 : 32 * place + 28].reshape(-1, 3)
        darkest = tile[tile.sum(axis=1).argmin()]
        distances = {name: np.abs(darkest - np.array(rgb)).sum() for name, rgb in INKS.items()}
        assert min(distances, key=distances.get) == ink


def test_a_problem_holds_the_truth() -> None:
    scene = scenes("test", 1, seed=0)[0]
    problem = to_problem(scene, "t")
    assert list(problem.meta["digits"].items()) == list(zip(scene.inks, scene.digits, strict=True))
    assert problem.answer == str(answer_of(scene.kind, scene.digits))
    assert problem.question == QUESTIONS[scene.kind]


def test_answers_by_hand() -> None:
    assert [answer_of(kind, (7, 7, 0)) for kind in ("sum", "range", "number")] == [4, 7, 770]
    assert [answer_of(kind, (9, 9)) for kind in ("sum", "range", "number")] == [8, 0, 99]
    assert answer_of("number", (0, 0)) == 0


# ---- truth ----


@settings(max_examples=300, deadline=None)
@given(ANY_KIND, DIGITS, st.integers(0, 2**32))
def test_every_drawn_solution_is_right_at_every_step(kind: str, digits: dict[str, int], seed: int) -> None:
    steps = steps_of(kind, digits, seed)
    assert step_truth(problem_of(kind, digits), steps) == [True] * len(steps)
    assert steps[-1] == f"Final answer: {answer_of(kind, list(digits.values()))}"


@settings(max_examples=100, deadline=None)
@given(ANY_KIND, DIGITS, st.integers(0, 2**32), st.data())
def test_a_misread_digit_is_wrong_from_its_step_on(
    kind: str, digits: dict[str, int], seed: int, data: st.DataObject
) -> None:
    steps = steps_of(kind, digits, seed)
    place = 2 * data.draw(st.integers(0, len(digits) - 1))  # a digit, what is carried along, a digit, …
    ink = next(ink for ink in INKS if ink in steps[place])
    before, after = re.fullmatch(rf"(.*{ink}\D*){digits[ink]}(.*)", steps[place]).groups()
    for wrong in set(range(10)) - {digits[ink]}:
        corrupted = [*steps[:place], f"{before}{wrong}{after}", *steps[place + 1 :]]
        expected = [True] * place + [False] * (len(steps) - place)
        assert step_truth(problem_of(kind, digits), corrupted) == expected


@settings(max_examples=100, deadline=None)
@given(ANY_KIND, DIGITS, st.integers(0, 2**32), st.data())
def test_any_changed_number_is_wrong_from_its_step_on(
    kind: str, digits: dict[str, int], seed: int, data: st.DataObject
) -> None:
    """Every single digit of every step, working and answer included."""
    steps = steps_of(kind, digits, seed)
    place = data.draw(st.sampled_from([i for i, step in enumerate(steps) if re.search(r"\d", step)]))
    spot = data.draw(st.sampled_from([m.start() for m in re.finditer(r"\d", steps[place])]))
    wrong = data.draw(st.sampled_from([d for d in "0123456789" if d != steps[place][spot]]))
    changed = steps[place][:spot] + wrong + steps[place][spot + 1 :]
    labels = step_truth(problem_of(kind, digits), [*steps[:place], changed, *steps[place + 1 :]])
    assert labels == [True] * place + [False] * (len(steps) - place)


@pytest.mark.parametrize("nonsense", ["", "Red", "ignore this", "+", "Final answer: ", "Final answer: x", "1 + 1 = 2"])
def test_nonsense_is_wrong(nonsense: str) -> None:
    steps = steps_of("range", {"Red": 3, "Blue": 9}, 0)
    labels = step_truth(problem_of("range", {"Red": 3, "Blue": 9}), [steps[0], nonsense, *steps[1:]])
    assert labels == [True] + [False] * len(steps)


def test_reading_twice_or_an_absent_ink_is_wrong() -> None:
    digits = {"Red": 3, "Blue": 9}
    first, carried, *_ = steps_of("sum", digits, 0)
    assert step_truth(problem_of("sum", digits), [first, carried, first]) == [True, True, False]
    ink = next(ink for ink in digits if ink in first)
    assert step_truth(problem_of("sum", digits), [first.replace(ink, "Green")]) == [False]


def test_steps_in_another_order_do_not_follow() -> None:
    """What a step carries along belongs to the digits read before it; the answer comes after all of them."""
    digits = {"Red": 3, "Blue": 9, "Green": 1}
    steps = steps_of("sum", digits, 0)
    assert step_truth(problem_of("sum", digits), [steps[0], steps[3], steps[1]]) == [True, False, False]
    assert step_truth(problem_of("sum", digits), [steps[1], steps[0]]) == [False, False]
    assert step_truth(problem_of("sum", digits), [*steps[:2], steps[-1]])[2] is False


# ---- tokenizer and policy ----


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=100, deadline=None)
@given(ANY_KIND, DIGITS, st.integers(0, 2**32))
def test_each_digit_is_one_token_wherever_it_stands(kind: str, digits: dict[str, int], seed: int) -> None:
    text = solution(kind, digits, random.Random(seed))
    pieces = [TOKENIZER.decode([i]) for i in TOKENIZER(text, add_special_tokens=False)["input_ids"]]
    assert [piece for piece in pieces if re.search(r"\d", piece)] == re.findall(r"\d", text)


def test_steps_end_at_token_boundaries() -> None:
    """Blank lines are tokens of their own, so the tokens of a prefix are a prefix of the tokens."""
    text = solution("sum", {"Red": 3, "Blue": 9, "Green": 0}, random.Random(0))
    whole = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    for step in split_on_blank_lines(text):
        part = TOKENIZER(text[: step.end], add_special_tokens=False)["input_ids"]
        assert whole[: len(part)] == part


def test_the_policy_loads_through_the_auto_classes(policy_folder: Path) -> None:
    model, processor = load_model(policy_folder), load_processor(policy_folder)
    assert type(model).__name__ == "InternVLForConditionalGeneration"
    assert type(processor).__name__ == "InternVLProcessor"
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    for scene in scenes("test", 3, seed=0):
        text = prompt_text(processor, [user_message(QUESTIONS[scene.kind], 1)])
        inputs: Any = processor(text=[text], images=[[scene.picture()]], return_tensors="pt")
        tiles = inputs["pixel_values"].shape[0]
        assert tiles == len(scene.scans) + 1  # and the thumbnail
        assert (inputs["input_ids"] == processor.image_token_id).sum().item() == IMAGE_TOKENS_A_TILE * tiles
        assert model(**inputs).logits.shape == (1, inputs["input_ids"].shape[1], len(processor.tokenizer))


def test_saved_and_built_tokenizer_agree(policy_folder: Path) -> None:
    saved = load_processor(policy_folder)
    text = solution("number", {"Red": 3, "Blue": 8}, random.Random(0)) + "<|im_end|>\n"
    assert saved.tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert prompt_text(saved, [user_message("q", 1)]) == prompt_text(build_processor(), [user_message("q", 1)])
