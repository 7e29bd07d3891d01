"""One process works in a stage's folder at a time. The lock is the operating system's, so it dies with its holder."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mpo.multimodal.errors import StageError

LOCK = ".lock"
PATIENCE = 100  # tries of 0.05 seconds with a lock whose holder does not name itself

_held: dict[str, FileLock] = {}  # of this process, by folder


def lock(out: Path, *, stage: str) -> None:
    """Keep other processes out of a folder until `unlock` or the end of this one; clear what a killed one has left.

    Args:
        out: of the stage; it exists. This process may hold its lock already.
        stage: its name, for the message.

    Raises:
        StageError: another process works there, which is named.
    """
    place = os.path.realpath(out)
    if place in _held:
        return
    held = FileLock(out / LOCK, thread_local=False)
    for _ in range(PATIENCE):
        try:
            held.acquire(blocking=False)
            break
        except Timeout:
            if holder := _named(out):
                raise _refusal(stage, out, holder) from None
            time.sleep(0.05)  # it names itself after it has taken the lock, and no longer before it gives it back
    else:
        raise _refusal(stage, out, "another process")
    (out / LOCK).write_text(f"process {os.getpid()}\n", encoding="utf-8")
    _held[place] = held
    for left in out.glob("*.tmp"):
        left.unlink(missing_ok=True)


def _named(out: Path) -> str:
    """The holder of the lock as it names itself; empty while it does not."""
    with suppress(FileNotFoundError):
        return (out / LOCK).read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _refusal(stage: str, out: Path, holder: str) -> StageError:
    return StageError(
        f"stage {stage}: {out} is being written by {holder:.100}; wait for it, end it, or choose another folder"
    )


def holds(out: Path) -> bool:
    """Whether this process keeps others out of the folder."""
    return os.path.realpath(out) in _held


def drop(out: Path) -> None:
    """Give up the lock of a folder that is gone."""
    if held := _held.pop(os.path.realpath(out), None):
        held.release()


def unlock(out: Path) -> None:
    """Let the next process in."""
    if held := _held.pop(os.path.realpath(out), None):
        (out / LOCK).write_text("", encoding="utf-8")  # so that a folder has the same bytes whoever wrote it
        held.release()
