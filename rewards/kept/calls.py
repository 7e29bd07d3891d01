"""Results of calls that cost: one that was made is not made again, whatever killed the run in between.

A call takes a batch and gives a value of JSON: scores, verdicts. It is the unit of work, not its single rows, because
a row's last bits depend on the shape of its batch. A stage cuts the same calls from its whole list in every attempt,
and each is kept whole or made again whole; so a resumed run gives the bytes of a straight one. The key of a call
covers all that its rows hold, and the store's fingerprint everything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rewards.kept.keys import SCHEMA, digest
from rewards.kept.store import Store, sealed

Run = Callable[[Sequence[Any]], Iterable[tuple[int, Any]]]  # tasks → (place of a task, its result), in any order
Calls = Sequence[tuple[Any, Any]]  # of each call: what it is about, as a JSON value, and its task
Each = Callable[[Calls, Run], list[Any]]  # the results of the calls, in their order


class CallStore(Store):
    """The calls of one fingerprint in one file; arguments and errors are those of `Store`.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/calls.sqlite"
        >>> with CallStore(path, {"prm": "a"}) as calls:
        ...     calls.once(["score", "4"], lambda: [0.9])
        [0.9]
        >>> with CallStore(path, {"prm": "a"}) as calls:
        ...     calls.once(["score", "4"], lambda: [0.1])
        [0.9]
    """

    holds = "results"
    table = "calls"
    tables = (
        "CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, segment TEXT NOT NULL, result TEXT NOT NULL, "
        "seal TEXT NOT NULL)",
    )

    def once(self, about: Any, call: Callable[[], Any]) -> Any:
        """The result of a call, which is made if it is not here; it is on the disk when this returns.

        Args:
            about: JSON value that tells this call from every other of the fingerprint.
            call: gives a JSON value.

        Raises:
            StoreError: the file cannot grow.
        """
        return self.each([(about, None)], lambda _: [(0, call())])[0]

    def each(self, calls: Calls, run: Run) -> list[Any]:
        """The results of many calls, in order; each is on the disk before the next one is waited for.

        Args:
            calls: what tells a call from every other of the fingerprint, and the task that `run` gets.
            run: makes those that are not here, in any order, one after the other or several at a time; gives JSON.

        Raises:
            StoreError: the file cannot grow.
        """
        keys = [digest(SCHEMA, self.segment, about) for about, _ in calls]
        results = {key: self._result(key) for key in keys}
        missing = {key: task for key, (_, task) in zip(keys, calls, strict=True) if results[key] is None}
        wanted = list(missing)
        for place, result in run(list(missing.values())) if wanted else ():
            results[wanted[place]] = text = json.dumps(result)
            self._keep("INSERT INTO calls VALUES (?, ?, ?, ?)", [sealed(wanted[place], self.segment, text)])
        return [json.loads(results[key] or "") for key in keys]  # as a later run reads it

    def found(self, about: Any) -> Any:
        """The result of a call that was made, or None."""
        text = self._result(digest(SCHEMA, self.segment, about))
        return None if text is None else json.loads(text)

    def keep(self, about: Any, result: Any) -> None:
        """Keep the result of a call that was not made before; it is on the disk when this returns.

        Raises:
            StoreError: the file cannot grow.
        """
        key = digest(SCHEMA, self.segment, about)
        self._keep("INSERT INTO calls VALUES (?, ?, ?, ?)", [sealed(key, self.segment, json.dumps(result))])

    def results(self) -> Iterator[Any]:
        """All results of this segment, in no order."""
        for (text,) in self._connection.execute("SELECT result FROM calls WHERE segment = ?", (self.segment,)):
            yield json.loads(text)

    def _result(self, key: str) -> str | None:
        row = self._whole_row(key)
        return None if row is None else row[-1]


def each_time(calls: Calls, run: Run) -> list[Any]:
    """`Each` without a store: makes all calls."""
    results = dict(run([task for _, task in calls]))
    return [results[place] for place in range(len(calls))]


def watched(run: Run, total: int, size: Callable[[Any], int], tell: Callable[[int], object]) -> Run:
    """A `Run` that tells its progress: of what was kept before, at once; then of each call that is made.

    Args:
        run: makes the calls.
        total: of all calls, the kept ones included.
        size: of a task, in the same unit.
        tell: is given each number.
    """

    def watching(missing: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        if kept := total - sum(map(size, missing)):
            tell(kept)
        for place, result in run(missing):
            yield place, result
            tell(size(missing[place]))

    return watching


def in_turn(work: Callable[[Any], Any]) -> Run:
    """`Run` in this process: one task after the other, each when its result is asked for.

    Example:
        >>> each_time([("a", 2), ("b", 3)], in_turn(lambda task: task**2))
        [4, 9]
    """
    return lambda tasks: ((place, work(task)) for place, task in enumerate(tasks))
