"""Files that are either complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mpo.multimodal.failpoints import reach


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that it is either complete or absent."""
    with opened_atomically(path, "w") as file:
        file.write(text)


@contextmanager
def opened_atomically(path: Path, mode: str) -> Iterator[IO[Any]]:
    """A new file that takes its name if the block succeeds; otherwise it leaves nothing, and the old file stays.

    Args:
        path: its folder must exist.
        mode: "w" for UTF-8 text with plain newlines, "wb" for bytes.
    """
    partial = path.with_name(path.name + ".tmp")  # the same name each time: what a killed run left is overwritten
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with partial.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
            reach("mid_export")
            file.flush()
            os.fsync(file.fileno())
        reach("before_rename")
        partial.replace(path)
        reach("after_rename")
    finally:
        partial.unlink(missing_ok=True)
