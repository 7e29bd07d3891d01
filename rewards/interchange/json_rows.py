"""JSON files of rows that anybody may have written: read row by row, every bad one counted by its reason."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mpo.multimodal.errors import DataError, StageError
from mpo.multimodal.files import opened_atomically

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_rows(path: str | Path, parse: Callable[[int, Any], T]) -> tuple[list[T], Counter[str]]:
    """The rows of a file of JSON lines, or of one JSON array.

    Args:
        path: the file.
        parse: row number (from 1; in JSON lines the line number) and the decoded row → what it means; raises
            `DataError` with a short reason if it means nothing.

    Returns:
        What was read, in order; and reason → number of the other rows. Blank lines are no rows.

    Raises:
        StageError: no such file.
        DataError: there is no good row at all; the message gives the reasons.
    """
    path = Path(path)
    if not path.is_file():
        raise StageError(f"no rows at {path}: expected a file with one JSON object per line, or one JSON array")
    good: list[T] = []
    reasons: Counter[str] = Counter()
    for number, text in _texts(path):
        try:
            good.append(parse(number, _decoded(text) if isinstance(text, bytes) else text))
        except DataError as error:
            reasons[str(error)] += 1
    if not good:
        raise DataError(f"{path} has no row that can be used: {dict(reasons) or 'it is empty'}")
    return good, reasons


def validated(model: type[Model], row: Any) -> Model:
    """The row as a pydantic model.

    Raises:
        DataError: it is not one; the reason names the field, never its value.
    """
    try:
        return model.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str)) or "row"
        raise DataError(f"{where}: {first['msg']}") from error


def usable_text(text: str, what: str) -> str:
    """The text, if it can be given to a tokenizer.

    Raises:
        DataError: it is empty, or holds a lone surrogate, which is no character.
    """
    if not text.strip():
        raise DataError(f"{what} is empty")
    if _SURROGATE.search(text):
        raise DataError(f"{what} is not valid Unicode")
    return text


def problem_id(source: str, question: str, images: Sequence[str] = ()) -> str:
    """An id made of what is asked, where a benchmark has none: every response to one problem gets the same."""
    digest = hashlib.sha256("\x00".join([question, *images]).encode("utf-8", "backslashreplace"))
    return f"{source}-{digest.hexdigest()[:16]}"


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write JSON lines, one in memory at a time, the file whole or not at all; returns the number of rows."""
    written = 0
    with opened_atomically(Path(path), "w") as file:
        for written, row in enumerate(rows, start=1):  # noqa: B007
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return written


def _texts(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, line) of JSON lines; (number, decoded row) of an array."""
    with path.open("rb") as file:
        while (start := file.read(1)).isspace():
            pass
        file.seek(0)
        if start != b"[":
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            return
        try:
            rows = _decoded(file.read())
        except DataError as error:
            raise DataError(f"{path}: {error}; expected a JSON array of rows") from error
        yield from enumerate(rows, start=1)


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8
        raise DataError("not JSON") from error
