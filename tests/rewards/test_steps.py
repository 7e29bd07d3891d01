import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError, DataError
from rewards.steps import merge_to_at_most, split_on_blank_lines

WHITESPACE_HEAVY = st.text(alphabet=st.sampled_from("ab\n\n\n \t\r\x0b\x0c\x85\u00a0\u2028"), min_size=1, max_size=60)
TEXTS = (WHITESPACE_HEAVY | st.text(min_size=1)).filter(lambda text: text.strip() != "")


def assert_tiles(steps, text):
    assert [step.index for step in steps] == list(range(len(steps)))
    assert steps[0].start == 0
    assert steps[-1].end == len(text)
    assert all(a.end == b.start for a, b in pairwise(steps))
    assert "".join(text[step.start : step.end] for step in steps) == text
    assert all(step.text.strip() for step in steps)


@given(TEXTS)
def test_spans_tile_the_text_and_no_step_is_empty(text):
    steps = split_on_blank_lines(text)
    assert_tiles(steps, text)
    assert all(step.text == text[step.start : step.end].strip() for step in steps)
    assert not any("\n\n" in step.text for step in steps)


@given(TEXTS, st.integers(min_value=1, max_value=14))
def test_merged_spans_tile_the_text_within_the_limit(text, limit):
    steps = split_on_blank_lines(text)
    merged = merge_to_at_most(steps, max_steps=limit)
    assert_tiles(merged, text)
    assert len(merged) <= limit
    assert "\n\n".join(step.text for step in merged) == "\n\n".join(step.text for step in steps)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one", ["one"]),
        ("one\ntwo", ["one\ntwo"]),
        ("one\n\ntwo", ["one", "two"]),
        ("one\n\n\n\ntwo\n\n", ["one", "two"]),
        ("\n\n  one\r\n\r\ntwo  ", ["one", "two"]),
        ("one\n \t \ntwo", ["one", "two"]),
    ],
)
def test_examples(text, expected):
    assert [step.text for step in split_on_blank_lines(text)] == expected


@pytest.mark.parametrize(("count", "groups"), [(1, 1), (12, 12), (13, 7), (24, 12), (25, 9), (36, 12), (37, 10)])
def test_merge_is_visualprms_ceil_rule(count, groups):
    """ceil(13/12) = 2 neighbours a group -> ceil(13/2) = 7 groups; ceil(25/12) = 3 -> 9; ceil(37/12) = 4 -> 10."""
    steps = split_on_blank_lines("\n\n".join(f"s{i}" for i in range(count)))
    assert len(merge_to_at_most(steps)) == groups


def test_group_of_two_is_joined_by_a_blank_line():
    steps = split_on_blank_lines("a\n\n\nb\n\nc")
    assert [(s.start, s.end, s.text) for s in merge_to_at_most(steps, max_steps=2)] == [(0, 7, "a\n\nb"), (7, 8, "c")]


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\t\r\n\x0b"])
def test_blank_text_is_refused(text):
    with pytest.raises(DataError, match="drop empty completions"):
        split_on_blank_lines(text)


def test_bad_limits_are_refused():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        merge_to_at_most(split_on_blank_lines("a"), max_steps=0)
    with pytest.raises(DataError, match="zero steps"):
        merge_to_at_most([])


@pytest.mark.parametrize(
    "text", ["\n" * 200_000 + "a", "a" + " \n" * 100_000, "\n" + " " * 200_000 + "a", "a\n\n" * 60_000]
)
def test_hostile_whitespace_takes_linear_time(text):
    start = time.perf_counter()
    split_on_blank_lines(text)
    assert time.perf_counter() - start < 2.0
