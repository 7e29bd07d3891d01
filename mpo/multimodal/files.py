"""Files that are either complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from mpo.multimodal.errors import StageError
from mpo.multimodal.failpoints import reach


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that it is either complete or absent."""
    with opened_atomically(path, "w") as file:
        file.write(text)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits; a second a gigabyte or so."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """What a JSON file that we wrote holds.

    Raises:
        StageError: it is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path} is damaged ({error}): expected JSON; run the command that writes it again") from error


@contextmanager
def opened_atomically(path: Path, mode: str) -> Iterator[IO[Any]]:
    """A new file that takes its name if the block succeeds; otherwise it leaves nothing, and the old file stays.

    Args:
        path: its folder must exist.
        mode: "w" for UTF-8 text with plain newlines, "wb" for bytes.
    """
    partial = path.with_name(f"{path.name}.{token_hex(8)}.tmp")  # two processes never write the same one
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with partial.open(mode.replace("w", "x"), **text) as file:  # type: ignore[call-overload]
            yield file
            reach("mid_export")
            file.flush()
            os.fsync(file.fileno())
        reach("before_rename")
        partial.replace(path)
        reach("after_rename")
    finally:
        partial.unlink(missing_ok=True)
