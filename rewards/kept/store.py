"""Crash-safe store of work: one row per unit, found by its content key (SQLite, WAL); `SampleStore` holds samples.

What a store was given is on the disk when that returns, all of it or nothing, so a kill at any instant loses only what
was being made and leaves nothing twice. Work of one fingerprint (policy, template, settings, seed) forms a segment.
Another fingerprint is refused, with the keys that differ, or gets a segment of its own; segments never mix. One process
writes at a time. It holds a lock of the operating system, which dies with it: a stale lock cannot stay behind.
SQLite's WAL and such locks need a local disk, not a network file system.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from filelock import FileLock, Timeout

from mpo.multimodal.errors import FingerprintError
from mpo.multimodal.failpoints import reach
from rewards.errors import StoreError
from rewards.kept.keys import SCHEMA, digest
from rewards.types import Completion, FinishReason

OnChange = Literal["refuse", "segment"]
_TABLES = (
    "CREATE TABLE IF NOT EXISTS writer (pid INTEGER NOT NULL, host TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS segments (segment TEXT PRIMARY KEY, fingerprint TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS notes (segment TEXT, name TEXT, value TEXT NOT NULL, PRIMARY KEY (segment, name))",
    "CREATE TABLE IF NOT EXISTS failures (key TEXT PRIMARY KEY, runs INTEGER NOT NULL)",
)


class Store:
    """The work of one fingerprint in one file, open for writing until `close`; a context manager.

    What is kept, `holds` in words and `tables` in SQL, is a subclass's business.

    Args:
        path: of the SQLite file; it and its folder are made if they are missing.
        fingerprint: all that the work depends on besides its keys, as JSON values.
        on_change: what to do when the file holds work of another fingerprint: "refuse", or begin a "segment".

    Raises:
        StoreError: another process writes the file (its pid and host are named), or it is no such file.
        FingerprintError: the file holds work of another fingerprint; the differing keys are named.
    """

    holds = "work"
    table: str  # of the kept rows, with a column `segment`
    tables: tuple[str, ...] = ()
    way_out = "choose another folder, or delete this one"  # besides going back to the settings of before

    def __init__(self, path: str | Path, fingerprint: Mapping[str, Any], *, on_change: OnChange = "refuse") -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fingerprint = json.loads(json.dumps({**fingerprint, "schema": SCHEMA}))  # as it will be read back
        self.segment = digest(fingerprint)
        self._lock = FileLock(f"{self.path}.lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise StoreError(f"{self.path} is being written by {_writer(self.path)}; wait for it or end it") from error
        try:
            self._connection = sqlite3.connect(self.path, timeout=60)
            self._open(fingerprint, on_change)
        except sqlite3.Error as error:
            self.close()
            raise StoreError(
                f"{self.path} cannot be used as a store of {self.holds} ({error}); move it away"
            ) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let the next writer in."""
        if hasattr(self, "_connection"):
            self._connection.close()
        self._lock.release()

    def note(self, name: str, value: int) -> int:
        """Keep a number that the first run of this segment chose; gives the number that was kept first."""
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO notes VALUES (?, ?, ?)", (self.segment, name, str(value)))
        query = "SELECT value FROM notes WHERE segment = ? AND name = ?"
        (kept,) = self._connection.execute(query, (self.segment, name)).fetchone()
        return int(kept)

    def failed(self, key: str) -> int:
        """Count one more run in which a unit could not be drawn; returns how many there are now."""
        self._keep("INSERT INTO failures VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET runs = runs + 1", [(key,)])
        (runs,) = self._connection.execute("SELECT runs FROM failures WHERE key = ?", (key,)).fetchone()
        return int(runs)

    def _keep(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows; all of them are on the disk when this returns, or none is."""
        try:
            with self._connection:
                self._connection.executemany(statement, rows)
                reach("before_commit")
            reach("after_commit")
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path} could not keep {len(rows)} {self.holds} ({error}); what it held before is intact: "
                "check the disk, then run the same command again"
            ) from error

    def _whole_row(self, key: str) -> tuple[Any, ...] | None:
        """A kept row, without its seal, or None if there is none.

        Raises:
            StoreError: it is not as it was kept; it is removed, so that it is made again.
        """
        try:
            row = self._connection.execute(f"SELECT * FROM {self.table} WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:  # a page that is damaged, or text that is not UTF-8
            raise StoreError(
                f"{self.path} cannot be read ({error}); move it away, and its work is done again"
            ) from error
        if row is None or row == sealed(*row[:-1]):
            return None if row is None else row[:-1]
        with self._connection:
            self._connection.execute(f"DELETE FROM {self.table} WHERE key = ?", (key,))
        raise StoreError(
            f"{self.path} held a row of {self.holds} that is not as it was kept ({key:.12}…); it was removed: run the "
            "same command again, which makes it anew, and look after the disk"
        )

    def _open(self, fingerprint: Mapping[str, Any], on_change: OnChange) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        with self._connection:
            for statement in (*_TABLES, *self.tables):
                self._connection.execute(statement)
            self._connection.execute("DELETE FROM writer")
            self._connection.execute("INSERT INTO writer VALUES (?, ?)", (os.getpid(), socket.gethostname()))
            # Settings under which nothing was kept, since the run ended before, bind nobody.
            kept = f"SELECT 1 FROM {self.table} AS row WHERE row.segment = segments.segment"
            self._connection.execute(f"DELETE FROM segments WHERE NOT EXISTS ({kept})")
        before = [json.loads(text) for (text,) in self._connection.execute("SELECT fingerprint FROM segments")]
        if before and fingerprint not in before and on_change == "refuse":
            differing = min((differences(other, fingerprint) for other in before), key=len)
            raise FingerprintError(
                f"{self.path} holds {self.holds} of other {', '.join(differing)}; go back to those settings, "
                f"{self.way_out}"
            )
        with self._connection:
            row = (self.segment, json.dumps(fingerprint, sort_keys=True))
            self._connection.execute("INSERT OR IGNORE INTO segments VALUES (?, ?)", row)


@dataclass(frozen=True)
class StoredSample:
    """One drawn unit: `key` from `rewards.kept.keys.unit_key`, and the seed of its draw."""

    key: str
    problem_id: str
    index: int
    seed: int
    completion: Completion


class SampleStore(Store):
    """The samples of one fingerprint, one row per (problem, sample index); arguments and errors are those of `Store`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "samples.sqlite"
        >>> with SampleStore(path, {"temperature": 1.0}) as store:
        ...     store.add([StoredSample("k", "p", 0, 7, Completion("4"))])
        >>> with SampleStore(path, {"temperature": 1.0}) as store:
        ...     store.completions(["k"])["k"].text
        '4'
    """

    holds = table = "samples"
    tables = (
        "CREATE TABLE IF NOT EXISTS samples (key TEXT PRIMARY KEY, segment TEXT NOT NULL, problem_id TEXT NOT NULL, "
        "sample_index INTEGER NOT NULL, seed INTEGER NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL, "
        "num_tokens INTEGER NOT NULL, token_logprobs TEXT, seal TEXT NOT NULL)",
    )
    way_out = "choose another folder, or keep both with on_change=segment"

    def keys(self) -> set[str]:
        """Keys of all stored units of this segment."""
        found = self._connection.execute("SELECT key FROM samples WHERE segment = ?", (self.segment,))
        return {key for (key,) in found}

    def holds_any(self) -> bool:
        """Whether a unit of this segment is stored."""
        query = "SELECT EXISTS (SELECT 1 FROM samples WHERE segment = ?)"
        return bool(self._connection.execute(query, (self.segment,)).fetchone()[0])

    def has(self, keys: Iterable[str]) -> list[bool]:
        """Which of these units are stored, in order."""
        query = "SELECT EXISTS (SELECT 1 FROM samples WHERE key = ? AND segment = ?)"
        return [bool(self._connection.execute(query, (key, self.segment)).fetchone()[0]) for key in keys]

    def add(self, samples: Iterable[StoredSample]) -> None:
        """Keep samples; all of them are on the disk when this returns, or none is.

        Raises:
            StoreError: a unit is there already, or the file cannot grow.
        """
        rows = [
            sealed(
                sample.key,
                self.segment,
                sample.problem_id,
                sample.index,
                sample.seed,
                sample.completion.text,
                sample.completion.finish_reason.value,
                sample.completion.num_tokens,
                _to_json(sample.completion.token_logprobs),
            )
            for sample in samples
        ]
        self._keep("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def completions(self, keys: Iterable[str]) -> dict[str, Completion]:
        """Key → completion, of those keys that are stored.

        Raises:
            StoreError: one is not as it was stored; it is removed, so that it is drawn again.
        """
        found: dict[str, Completion] = {}
        for key in keys:
            row = self._whole_row(key)
            if row is not None:
                *_, text, reason, num_tokens, logprobs = row
                found[key] = Completion(text, FinishReason(reason), num_tokens, _from_json(logprobs))
        return found


def sealed(*values: Any) -> tuple[Any, ...]:
    """The values of a row and, last, the digest by which a change of one of them shows.

    Example:
        >>> sealed("k", 1)[:2], len(sealed("k", 1)[2])
        (('k', 1), 16)
    """
    return (*values, digest(*values)[:16])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, each with both values.

    Example:
        >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
        ['b (2 then, 3 now)']
    """
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return [f"{key} ({before.get(key)!r} then, {now.get(key)!r} now)" for key in changed]


def _writer(path: Path) -> str:
    """Who holds the lock, for a message."""
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) as connection:
            row = connection.execute("SELECT pid, host FROM writer").fetchone()
    except sqlite3.Error:
        row = None
    return f"process {row[0]} on {row[1]}" if row else "another process"


def _to_json(logprobs: tuple[float, ...] | None) -> str | None:
    return None if logprobs is None else json.dumps(logprobs)


def _from_json(text: str | None) -> tuple[float, ...] | None:
    return None if text is None else tuple(json.loads(text))
