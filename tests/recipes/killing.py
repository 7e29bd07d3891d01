"""Commands of `mpo` in child processes that are killed with SIGKILL, for the kill scripts beside this file.

The parent imports what the commands need and forks a child an attempt, so that a kill costs no start. Nothing heavy is
imported here: the workers of a verifier, which are spawned, import the main script once more.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

KILLED = -signal.SIGKILL
STORES = {"samples.sqlite": "samples", "calls.sqlite": "calls"}  # file of a stage → the table of its work


def start(
    arguments: Sequence[str],
    *,
    failpoint: str = "",
    pause: float = 0.0,
    log: Path | None = None,
    ready: int | None = None,
) -> int:
    """Run `mpo ARGUMENTS` in a forked child; its pid.

    Args:
        arguments: the command and its flags.
        failpoint: value of MPO_FAILPOINT in the child.
        pause: seconds that the child rests after each commit, so that on a busy machine too the parent gets its turn.
        log: file for what the child prints.
        ready: file descriptor to which the child writes a byte when its command begins.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if log is not None:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
        os.environ["MPO_FAILPOINT"] = failpoint
        if pause:
            _rest_after_commits(pause)
        from recipes.cli import main

        if ready is not None:
            os.write(ready, b".")
        code = main(list(arguments))
    finally:  # the child must never return into the parent's loop
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child; its exit code, `KILLED` if it was killed."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def killed_until_done(
    arguments: Sequence[str], kills: int, progress: Callable[[], int], *, delay: float, pause: float = 0.0
) -> dict[str, object]:
    """Kill, resume, finish.

    A kill comes a random while after the attempt's first progress, so every attempt gets on. The last is not killed.

    Args:
        arguments: the command and its flags.
        kills: attempts that are killed.
        progress: how much work lies in the folder.
        delay: seconds after the progress, at most.
        pause: see `start`.

    Returns:
        `left`: progress after each kill; `status`: exit code of the last attempt.
    """
    rng = random.Random(0)
    left: list[int] = []
    for _ in range(kills):
        before = progress()
        child = start(arguments, pause=pause)
        deadline = time.monotonic() + 200
        while progress() <= before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.random() * delay)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == KILLED, "the run ended before it was killed"
        left.append(progress())
    return {"left": left, "status": ended(start(arguments))}


def stored(folder: Path) -> list[str]:
    """Keys of the work in a stage's store, sorted; none if there is no store yet."""
    for name, table in STORES.items():
        if (folder / name).exists():
            try:
                with closing(sqlite3.connect(f"file:{folder / name}?mode=ro", uri=True)) as connection:
                    return [key for (key,) in connection.execute(f"SELECT key FROM {table} ORDER BY key")]
            except sqlite3.OperationalError:  # its tables are not there yet
                return []
    return []


def _rest_after_commits(seconds: float) -> None:
    from rewards.kept.store import Store

    keep = Store._keep

    def slowly(store: Store, statement: str, rows: Sequence[Sequence[object]]) -> None:
        keep(store, statement, rows)
        time.sleep(seconds)

    Store._keep = slowly  # type: ignore[method-assign]
