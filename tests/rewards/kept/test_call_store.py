"""Calls whose results are kept: made once, whole or not at all, never mixed with those of other settings."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.multimodal.errors import FingerprintError
from rewards.errors import StoreError
from rewards.kept.calls import CallStore, in_turn
from rewards.scoring.groups import StoredScorer, json_scores
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.types import Problem, StepScores

SETTINGS = {"prm": "a"}


class ByBatch(ProcessRewardModel):
    """A PRM whose scores depend on the batch, as those of a real one do in their last bits."""

    def __init__(self, breaks_at: int = -1) -> None:
        self.batches: list[list[str]] = []
        self.breaks_at = breaks_at

    def outcomes(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores]:
        if len(self.batches) == self.breaks_at:
            raise RuntimeError("killed")
        self.batches.append([text for _, text in items])
        key = sum(len(text) * (place + 1) for place, (_, text) in enumerate(items))
        return [StepScores((math.sin(key + place) ** 2, 0.1 + 0.2)) for place in range(len(items))]


def test_a_call_is_made_once_and_read_as_it_was(tmp_path: Path) -> None:
    made: list[str] = []

    def call() -> list[object]:
        made.append("call")
        return [0.1 + 0.2, 5e-324, "é\0", None, (1, 2)]

    with CallStore(tmp_path / "c.sqlite", SETTINGS) as calls:
        first = calls.once(["score", "a"], call)
        assert calls.once(["score", "a"], call) == first == [0.1 + 0.2, 5e-324, "é\0", None, [1, 2]]
        assert calls.once(["score", "b"], lambda: 7) == 7
    with CallStore(tmp_path / "c.sqlite", SETTINGS) as calls:
        assert calls.once(["score", "a"], call) == first
    assert made == ["call"]


def test_results_that_come_in_any_order_are_given_in_that_of_the_calls(tmp_path: Path) -> None:
    """Only what is missing is asked for, a call that occurs twice once; each is kept before the next one is made."""
    asked: list[list[str]] = []

    def backwards(tasks: Sequence[str]) -> Iterator[tuple[int, str]]:
        asked.append(list(tasks))
        for place in reversed(range(len(tasks))):
            with closing(sqlite3.connect(tmp_path / "c.sqlite")) as connection:
                (kept,) = connection.execute("SELECT count(*) FROM calls").fetchone()
            yield place, f"{tasks[place]}, the {kept + 1}."

    with CallStore(tmp_path / "c.sqlite", SETTINGS) as calls:
        calls.once("b", lambda: "b, before")
        found = calls.each([(about, about.upper()) for about in "abcca"], backwards)
        assert found == ["A, the 3.", "b, before", "C, the 2.", "C, the 2.", "A, the 3."]
        assert calls.each([("a", "A")], backwards) == ["A, the 3."]
    assert asked == [["A", "C"]]


def test_a_call_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with CallStore(tmp_path / "c.sqlite", SETTINGS) as calls:
        with pytest.raises(ZeroDivisionError):
            calls.once("a", lambda: 1 / 0)
        assert calls.once("a", lambda: 1) == 1
        calls._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StoreError, match=r"could not keep 1 results .*disk is full"):
            calls.once("b", lambda: "x" * 100_000)
        assert calls.once("a", lambda: 2) == 1


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    with CallStore(tmp_path / "c.sqlite", {"prm": "a wrong path"}):
        pass  # the run ended before a result: it binds nobody
    with CallStore(tmp_path / "c.sqlite", SETTINGS) as calls:
        calls.once("a", lambda: 1)
    with pytest.raises(
        FingerprintError, match=r"holds results of other prm \('a' then, 'b' now\); .*or delete this one"
    ):
        CallStore(tmp_path / "c.sqlite", {"prm": "b"})


@settings(max_examples=25, deadline=None)  # each writes to a disk
@given(lengths=st.lists(st.integers(1, 3), min_size=1, max_size=12), rows=st.integers(1, 5), broken=st.integers(0, 11))
def test_a_resumed_scoring_is_the_straight_one(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], rows: int, broken: int
) -> None:
    """Whichever batch it breaks at, also where one text stands in several batches; no batch is scored twice."""
    items = [(Problem("p", "?"), "x" * length) for length in lengths]
    path = tmp_path_factory.mktemp("calls") / "c.sqlite"
    straight = [s for start in range(0, len(items), rows) for s in ByBatch().outcomes(items[start : start + rows])]
    first, second = ByBatch(breaks_at=broken), ByBatch()
    found: list[StepScores] = []
    for prm in (first, second):
        with CallStore(path, SETTINGS) as calls:
            try:
                found = StoredScorer(in_turn(partial(json_scores, prm)), calls.each, rows_a_call=rows).outcomes(items)
            except RuntimeError:
                continue
    assert found == straight
    with closing(sqlite3.connect(path)) as connection:
        (kept,) = connection.execute("SELECT count(*) FROM calls").fetchone()
    assert len(first.batches) + len(second.batches) == kept
