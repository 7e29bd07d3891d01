"""Results of calls that cost: one that was made is not made again, whatever killed the run in between.

A call takes a batch and gives a value of JSON: scores, verdicts. It is the unit of work, not its single rows, because
a row's last bits depend on the shape of its batch. A stage cuts the same calls from its whole list in every attempt,
and each is kept whole or made again whole; so a resumed run gives the bytes of a straight one. The key of a call
covers all that its rows say, and the store's fingerprint everything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rewards.store import Store
from rewards.units import SCHEMA, digest

Once = Callable[[Any, Callable[[], Any]], Any]  # (what a call is about, the call) → its result


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
    tables = ("CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, segment TEXT NOT NULL, result TEXT NOT NULL)",)

    def once(self, about: Any, call: Callable[[], Any]) -> Any:
        """The result of a call, which is made if it is not here; it is on the disk when this returns.

        Args:
            about: JSON value that tells this call from every other of the fingerprint.
            call: gives a JSON value.

        Raises:
            StoreError: the file cannot grow.
        """
        key = digest(SCHEMA, self.segment, about)
        row = self._connection.execute("SELECT result FROM calls WHERE key = ?", (key,)).fetchone()
        if row is None:
            row = (json.dumps(call()),)
            self._keep("INSERT INTO calls VALUES (?, ?, ?)", [(key, self.segment, *row)])
        return json.loads(row[0])  # as a later run reads it


def every_time(about: Any, call: Callable[[], Any]) -> Any:
    """`Once` without a store: makes the call."""
    return call()
