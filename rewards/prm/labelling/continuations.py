"""Continuations of steps, kept with their verdicts: right ones are what `step_prefix` chooses against a bad step.

They are in an SQLite file, one row per continuation, and are stored as soon as their call was checked. Neither writing
nor reading holds more than one call, or one problem, in memory.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rewards.errors import StoreError
from rewards.kept.calls import Run
from rewards.prm.labelling.monte_carlo import without_texts
from rewards.sampling.generator import Task
from rewards.types import Completion, FinishReason, Rollout, RolloutGroup, Verdict

CONTINUATIONS = "continuations.sqlite"
_TABLES = (
    "CREATE TABLE IF NOT EXISTS made_by (fingerprint TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS continuations (problem_id TEXT, prefix TEXT, seed INTEGER, sample_index INTEGER, "
    "text TEXT NOT NULL, finish_reason TEXT NOT NULL, num_tokens INTEGER NOT NULL, verdict TEXT NOT NULL, "
    "PRIMARY KEY (problem_id, prefix, seed, sample_index)) WITHOUT ROWID",
)


class KeptContinuations:
    """A `Run` that keeps what the calls of another one have drawn, with its verdicts.

    A call that a killed run makes again replaces its rows, for it draws the same.

    Args:
        path: of the file.
        fingerprint: all that the continuations depend on, as JSON values; rows of another one are deleted.
        run: makes the calls, each with its texts (`Continuer(with_texts=True)`).
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any], run: Run) -> None:
        self.path, self._run = path, run
        make_continuations(path, fingerprint)

    def __call__(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """The results without their texts; all of a call's continuations are on the disk then, or none is.

        Raises:
            StoreError: the file cannot grow.
        """
        for place, result in self._run(tasks):
            self._keep(tasks[place], result)
            yield place, without_texts(result)

    def _keep(self, task: Task, result: Mapping[str, Any]) -> None:
        places = [
            (problem.id, prefix, task.seed, index)
            for problem, prefix in zip(task.problems, task.prefixes, strict=True)
            for index in range(task.n)
        ]
        keep_continuations(self.path, places, result)


def make_continuations(path: Path, fingerprint: Mapping[str, Any]) -> None:
    """Make the file, or take rows of another fingerprint out of it; see `KeptContinuations`."""
    made_by = json.dumps(fingerprint, sort_keys=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in _TABLES:
            connection.execute(statement)
        if connection.execute("SELECT fingerprint FROM made_by").fetchall() != [(made_by,)]:
            connection.execute("DELETE FROM continuations")
            connection.execute("DELETE FROM made_by")
            connection.execute("INSERT INTO made_by VALUES (?)", (made_by,))


def keep_continuations(path: Path, places: Sequence[tuple[str, str, int, int]], result: Mapping[str, Any]) -> None:
    """Keep the texts that were drawn; a continuation that was refused has none.

    Args:
        path: of the file, from `make_continuations`.
        places: problem id, prefix, seed and index of each.
        result: `verdicts` and `drawn` of the call, in that order.

    Raises:
        StoreError: the file cannot grow.
    """
    rows = [
        (*place, *made, Verdict(verdict).value)
        for place, made, verdict in zip(places, result["drawn"], result["verdicts"], strict=True)
        if made is not None
    ]
    try:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO continuations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    except sqlite3.Error as error:
        raise StoreError(f"{path} could not keep {len(rows)} continuations ({error}); check the disk") from error


def with_right_continuations(groups: Iterable[RolloutGroup], path: Path) -> Iterator[RolloutGroup]:
    """Each group with its problem's verified-right continuations as further rollouts, prefix ⊕ continuation.

    They follow the sampled ones, so an index of a pair that is not below the number of samples names one of them.

    Raises:
        StoreError: the file is no such file.
    """
    query = (
        "SELECT prefix, text, finish_reason FROM continuations WHERE problem_id = ? AND verdict = ? "
        "ORDER BY sample_index, prefix, seed"
    )
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            for group in groups:
                answers: dict[str, FinishReason] = {}
                for prefix, text, reason in connection.execute(query, (group.problem.id, Verdict.CORRECT.value)):
                    answers.setdefault(prefix + text, FinishReason(reason))
                right = [Rollout(Completion(text, reason), Verdict.CORRECT) for text, reason in answers.items()]
                yield replace(group, rollouts=(*group.rollouts, *right))
    except sqlite3.Error as error:
        message = f"{path} cannot be read as kept continuations ({error}); run `mpo label-steps` into another folder"
        raise StoreError(message) from error
