"""JSON files of rows that anybody may have written: read row by row, every bad one counted by its reason."""

from __future__ import annotations

import hashlib
import json
import math
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
MAX_DEPTH = 64  # of lists and objects in a row
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
    for number, row in iter_rows(path):
        if isinstance(row, DataError):
            reasons["not JSON"] += 1  # one reason, whatever the place of the fault
            continue
        try:
            good.append(parse(number, row))
        except DataError as error:
            reasons[str(error)] += 1
    if not good:
        raise DataError(f"{path} has no row that can be used: {dict(reasons) or 'it is empty'}")
    return good, reasons


def iter_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and value of each row of JSON lines, of one JSON array, or of one object of rows by their ids.

    A row that cannot be decoded is a value, its `DataError`. Of an object of rows (`{"12": {…}, …}`, in a file named
    `.json`) each gets its key as `id`, unless it has one; any other object in such a file is one row.
    """
    for number, text in _texts(path):
        if not isinstance(text, bytes):
            yield number, text
            continue
        try:
            yield number, decoded_row(text)
        except DataError as error:
            yield number, error


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
        raise DataError(f"{what} is empty", reason=f"{what} is empty")
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
    """(number, line) of JSON lines; (number, decoded row) of an array or an object of rows."""
    with path.open("rb") as file:
        while (start := file.read(1)).isspace():
            pass
        file.seek(0)
        if start == b"[":
            try:
                rows = decoded_row(file.read())
            except DataError as error:
                raise DataError(f"{path}: {error}; expected a JSON array of rows") from error
            yield from enumerate(rows, start=1)
        elif path.suffix == ".json" and (rows := _rows_of_object(file.read())):
            yield from enumerate(rows, start=1)
        else:
            file.seek(0)
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _rows_of_object(text: bytes) -> list[Any]:
    """The rows of an object that holds nothing else, or the object itself; none if the file is JSON lines."""
    try:
        found = decoded_row(text)
    except DataError:
        return []
    if isinstance(found, dict) and len(found) > 1 and all(isinstance(row, dict) for row in found.values()):
        return [{"id": key, **row} for key, row in found.items()]
    return [found]


def decoded_row(text: bytes) -> Any:
    """The value of one JSON text, as strict as a row from anybody has to be.

    Raises:
        DataError: it is not UTF-8 (a BOM before it is no harm) or not JSON, holds NaN or a number that is infinite,
            half a surrogate pair, or lists and objects more than `MAX_DEPTH` deep. Whether it is accepted does not
            depend on the caller's stack.

    Example:
        >>> decoded_row(b'{"a": [1, "x"]}')
        {'a': [1, 'x']}
        >>> decoded_row(b'{"a": 1e999}')
        Traceback (most recent call last):
        ...
        mpo.multimodal.errors.DataError: not JSON (1e999 is not a number of JSON)
    """
    try:
        row = json.loads(text.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({' '.join(str(error).split())[:200]})") from error
    inside: list[tuple[Any, int]] = [(row, 0)]
    while inside:
        value, depth = inside.pop()
        if depth > MAX_DEPTH:
            raise DataError(f"not JSON (more than {MAX_DEPTH} lists and objects inside each other)")
        if isinstance(value, str):
            if _SURROGATE.search(value):
                raise DataError("not JSON (surrogates without their other half are no text)")
        elif isinstance(value, dict):
            inside += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            inside += [(part, depth + 1) for part in value]
    return row


def _no_number(name: str) -> float:
    raise ValueError(f"{name[:40]} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)
