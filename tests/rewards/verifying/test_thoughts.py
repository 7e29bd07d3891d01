"""Where a thought ends: in splitting, scoring and checks of degeneration."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError
from rewards.steps import merge_to_at_most, scored_steps, split_into, split_on_blank_lines
from rewards.types import Completion
from rewards.verifying.degeneration import degeneration_faults
from rewards.verifying.thoughts import PARTS, scored_spans, solution_of, solution_start, with_thought

THOUGHT = "First.\n\nSecond.\n\nThird."
SOLUTION = "One.\n\nTwo.\n\nFinal answer: 4"
PIECES = st.sampled_from(["<think>", "</think>", "\n\n", "a", " b ", "\n", "◁/think▷"])


@given(st.lists(PIECES, max_size=14).map("".join), st.sampled_from(PARTS))
def test_spans_tile_whatever_the_tags(text: str, part: str) -> None:
    if not text.strip():
        return
    steps = split_on_blank_lines(text, part=part)
    assert "".join(text[step.start : step.end] for step in steps) == text
    assert all(step.text and step.text == step.text.strip() for step in steps)
    assert [step.index for step in steps] == list(range(len(steps)))
    assert 0 <= solution_start(text) <= len(text)
    for start, end in scored_spans(text, part):
        assert text[start:end].strip()


@given(st.lists(PIECES, min_size=1, max_size=14).map("".join), st.sampled_from(PARTS), st.integers(1, 6))
@settings(max_examples=200)
def test_merged_steps_are_at_most_so_many_and_found_again(text: str, part: str, most: int) -> None:
    if not text.strip():
        return
    steps = scored_steps(text, max_steps=most, part=part)
    assert len(steps) <= most
    assert "".join(text[step.start : step.end] for step in steps) == text
    assert len(split_into(text, len(steps), part=part)) == len(steps)


@pytest.mark.parametrize("text", [with_thought(THOUGHT, SOLUTION), f"{THOUGHT}</think>{SOLUTION}"])
def test_a_thought_and_its_solution(text: str) -> None:
    """Also where the template opened the thought, so that the text holds its end alone."""
    words = {part: [step.text for step in split_on_blank_lines(text, part=part)] for part in PARTS}
    assert words["solution"] == SOLUTION.split("\n\n")
    assert words["thought"] == THOUGHT.split("\n\n")
    assert words["both"] == words["thought"] + words["solution"]
    assert solution_of(text) == SOLUTION
    first = split_on_blank_lines(text)[0]
    assert (first.start, text[: first.end].endswith("One.\n\n")) == (
        0,
        True,
    )  # a continuation begins behind the thought


def test_without_a_thought_all_is_as_before() -> None:
    assert split_on_blank_lines(SOLUTION) == split_on_blank_lines(SOLUTION, part="both")
    assert scored_steps(SOLUTION, max_steps=2) == merge_to_at_most(split_on_blank_lines(SOLUTION), max_steps=2)
    assert scored_spans(SOLUTION, "thought") == []


def test_merging_never_mixes_thought_and_solution() -> None:
    long = "\n\n".join(f"t{index}" for index in range(40))
    text = with_thought(long, SOLUTION)
    steps = scored_steps(text, max_steps=12, part="both")
    assert [("t" in step.text, "One" in step.text or "answer" in step.text) for step in steps].count((True, True)) == 0
    assert [step.text for step in steps[-3:]] == SOLUTION.split("\n\n")
    assert len(steps) <= 12


def test_a_cut_thought_has_nothing_to_score() -> None:
    assert scored_spans("<think>so\n\nit") == []
    assert scored_spans(with_thought("3", "")) == []
    with pytest.raises(ConfigError, match="unknown part 'all'"):
        scored_spans("x", "all")


def test_degeneration_knows_thoughts() -> None:
    assert degeneration_faults(Completion("<think>so it is\n\nFinal answer: 4")) == ("truncated", "no_final_answer")
    again = with_thought("Red is 3.\n\nRed is 3.\n\nFinal answer: 3", "Red is 3.\n\nFinal answer: 3")
    assert degeneration_faults(Completion(again)) == ()  # a solution repeats what was thought
    loop = with_thought("wait\n\nwait\n\nwait", "Red is 3.\n\nFinal answer: 3")
    assert degeneration_faults(Completion(loop)) == ("repetition",)
