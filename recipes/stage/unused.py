"""A command that is refused leaves nothing behind: folders that it made go again, if no work lies in them.

Work is a finished stage, a whole checkpoint, or a row in a store. A folder that was there before is never touched, nor
one in which another process works by now: two commands that start together both find no folder, and one is refused.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from recipes.stage.lock import drop, holds

FINISHED = ("manifest.json", "complete.json")  # of a stage, and of a checkpoint
WORK = ("samples", "failures", "calls", "continuations")  # tables of the stores

_made: list[tuple[Path, Path]] = []  # by this command: a stage's folder, and the highest folder that was made for it


def make_folder(out: Path) -> None:
    """Make a stage's folder, and remember what was not there before."""
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    if new:
        _made.append((out, new[-1]))


def forget_folders() -> None:
    """Another command begins: what is there now stays."""
    _made.clear()


def remove_unused() -> None:
    """Remove the folders that were made since `forget_folders` and are locked by us, if no work lies in any of them."""
    for out, highest in reversed(_made):
        if holds(out) and out.exists() and not any(map(_is_work, out.rglob("*"))):
            shutil.rmtree(out)  # under the lock, so that nobody begins to work in it meanwhile
            drop(out)
            for folder in out.parents:
                if not folder.is_relative_to(highest) or any(folder.iterdir()):
                    break
                folder.rmdir()
    _made.clear()


def _is_work(file: Path) -> bool:
    if file.name in FINISHED:
        return True
    return file.suffix == ".sqlite" and _has_rows(file)


def _has_rows(store: Path) -> bool:
    """Whether there is a row, or it cannot be told."""
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            return any(connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in tables & {*WORK})
    except sqlite3.Error:
        return True
