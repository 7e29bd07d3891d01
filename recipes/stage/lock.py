"""One process works in a stage's folder at a time. The lock is the operating system's, so it dies with its holder."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mpo.multimodal.errors import StageError

LOCK = ".lock"

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
    try:
        held.acquire(blocking=False)
    except Timeout as error:
        holder = _holder(out)
        raise StageError(
            f"stage {stage}: {out} is being written by {holder:.100}; wait for it, end it, or choose another folder"
        ) from error
    (out / LOCK).write_text(f"process {os.getpid()}\n", encoding="utf-8")
    _held[place] = held
    for left in out.glob("*.tmp"):
        left.unlink(missing_ok=True)


def _holder(out: Path) -> str:
    """Who holds the lock; it says so a moment after it has taken it."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            if said := (out / LOCK).read_text(encoding="utf-8", errors="replace").strip():
                return said
        time.sleep(0.05)
    return "another process"


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
