"""Responses made elsewhere: which problem, which sample, which text.

The forms are those of `response_forms.py`, in any table (`tables.py`), and the logs of inspect_ai: a zip archive of one
JSON file per sample (`.eval`), or one JSON file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError, DataError, ImageError
from rewards.interchange.archives import ZipImages
from rewards.interchange.json_rows import decoded_row, usable_text
from rewards.interchange.problems import Rejected
from rewards.interchange.response_forms import FORMS, Form
from rewards.interchange.tables import Located, Row, files_of, read_table
from rewards.types import Completion, FinishReason

LOG = ".eval"
CUT = ("length", "max_tokens", "model_length")  # how servers say that a response was cut


@dataclass(frozen=True)
class Response:
    """One response that a row holds.

    Attributes:
        where: file and number of its row.
        problem_ids: of the problem that it responds to, the most telling first.
        index: of the sample, if the row tells it.
        row: the columns that a problem can be made of, where the file holds its question.
    """

    where: str
    problem_ids: tuple[str, ...]
    index: int | None
    completion: Completion
    row: Row


def read_responses(source: str | Path) -> Iterator[Response | Rejected]:
    """The responses of a file in order: responses and rows without any = those with a text + rejected.

    Raises:
        StageError: there is no such file.
        ConfigError: it is of no known kind, or its rows are of no known form.
        DataError: the file as a whole cannot be read.
    """
    for where, row in _rows(source):
        if isinstance(row, DataError):
            yield Rejected(where, row.reason, str(row))
            continue
        form = form_of(row, where)
        try:
            sampled = form.read(row)
        except DataError as error:
            yield Rejected(where, error.reason, str(error))
            continue
        if not sampled.said:
            yield Rejected(where, "no response", "the row holds no text")
        for index, one in sampled.said:
            try:
                yield Response(where, sampled.ids, index, completion_of(one), sampled.problem)
            except DataError as error:
                yield Rejected(where, error.reason, str(error))


def response_files(source: str | Path) -> list[Path]:
    """The files behind a source; raises as `read_responses`."""
    return [Path(source)] if str(source).endswith(LOG) and Path(source).is_file() else files_of(source)


def form_of(row: Row, where: str) -> Form:
    """The first form whose columns the row has.

    Raises:
        ConfigError: none.
    """
    for form in FORMS.values():
        if form.columns <= row.keys():
            return form
    known = "; ".join(f"{name} ({', '.join(sorted(form.columns))})" for name, form in FORMS.items())
    raise ConfigError(f"{where}: the columns {', '.join(row)[:200]} are of no known form of responses: {known}")


def completion_of(said: Any) -> Completion:
    """A text, or an object with `text` and what else is known of it.

    Raises:
        DataError: no text, or an empty one.

    Example:
        >>> completion_of({"text": "7", "finish_reason": "length", "num_tokens": 9})
        Completion(text='7', finish_reason=<FinishReason.LENGTH: 'length'>, num_tokens=9, token_logprobs=None)
    """
    row = said if isinstance(said, dict) else {"text": said}
    text = row.get("text")
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)  # a table of numbers
    if not isinstance(text, str):
        raise DataError(f"a response is {type(text).__name__}; expected a text", reason="no text")
    if not text.strip():
        raise DataError("a response is empty", reason="empty response")
    tokens = row.get("num_tokens")
    return Completion(
        usable_text(text, "response"),
        FinishReason.LENGTH if row.get("finish_reason") in CUT else FinishReason.STOP,
        tokens if isinstance(tokens, int) and tokens >= 0 else 0,
    )


def _rows(source: str | Path) -> Iterator[Located]:
    """The rows of a table, or the samples of a log."""
    if str(source).endswith(LOG) and Path(source).is_file():
        yield from _log(Path(source))
        return
    for where, row in read_table(source):
        samples = row.get("samples") if isinstance(row, dict) and "eval" in row else None
        if isinstance(samples, list):
            yield from ((f"{where}:{place}", _object(sample)) for place, sample in enumerate(samples))
        else:
            yield where, row


def _log(path: Path) -> Iterator[Located]:
    """The samples of an archive, by epoch and place."""
    try:
        with ZipImages(path) as archive:
            names = [name for name in archive.names() if name.startswith("samples/") and name.endswith(".json")]
            for name in names:
                where = f"{path.name}:{name.removeprefix('samples/')}"
                try:
                    yield where, _object(decoded_row(archive.read(name)))
                except DataError as error:
                    yield where, DataError(str(error), reason="unreadable sample")
    except ImageError as error:
        raise DataError(f"{path} is no log of inspect_ai: {error}") from error


def _object(row: Any) -> Row | DataError:
    return (
        row if isinstance(row, dict) else DataError(f"a sample is {row!r:.60}; expected an object", reason="no object")
    )
