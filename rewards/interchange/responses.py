"""Responses made elsewhere, in the forms that other tools write them: which problem, which sample, which text.

Each form is a row of `FORMS`: the columns that give it away, and how its rows are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mpo.multimodal.errors import ConfigError, DataError
from rewards.interchange.json_rows import usable_text
from rewards.interchange.problems import COLUMNS, Rejected
from rewards.interchange.tables import Row, read_table
from rewards.types import Completion, FinishReason

Said = list[tuple[int | None, Any]]  # (sample index, text or the row of one response)


@dataclass(frozen=True)
class Response:
    """One response that a row holds.

    Attributes:
        where: file and number of its row.
        problem_id: of the problem that it responds to.
        index: of the sample, if the row tells it.
        row: the whole row, of which a problem can be made where the file holds its question.
    """

    where: str
    problem_id: str
    index: int | None
    completion: Completion
    row: Row


class Form(NamedTuple):
    """One form of rows.

    Attributes:
        columns: that a row of this form has.
        read: row → id of its problem, its responses, and the columns of its problem.
    """

    columns: frozenset[str]
    read: Callable[[Row], tuple[str, Said, Row]]


def read_responses(source: str | Path) -> Iterator[Response | Rejected]:
    """The responses of a file in order: responses = those with a text + rejected.

    Raises:
        StageError: there is no such file.
        ConfigError: it is of no known kind, or its rows are of no known form.
        DataError: the file as a whole cannot be read.
    """
    for where, row in read_table(source):
        if isinstance(row, DataError):
            yield Rejected(where, row.reason, str(row))
            continue
        try:
            id, said, of_problem = form_of(row, where).read(row)
        except DataError as error:
            yield Rejected(where, error.reason, str(error))
            continue
        for index, one in said:
            try:
                yield Response(where, id, index, completion_of(one), of_problem)
            except DataError as error:
                yield Rejected(where, error.reason, str(error))


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
    if not isinstance(text, str):
        raise DataError(f"a response is {type(text).__name__}; expected a text", reason="no text")
    if not text.strip():
        raise DataError("a response is empty", reason="empty response")
    ended = row.get("finish_reason")
    tokens = row.get("num_tokens")
    return Completion(
        usable_text(text, "response"),
        FinishReason.LENGTH if ended in ("length", "max_tokens") else FinishReason.STOP,
        tokens if isinstance(tokens, int) and tokens >= 0 else 0,
    )


def id_of(row: Row, where: str = "the row") -> str:
    """The id of a row's problem.

    Raises:
        DataError: there is none.
    """
    found = next((row[name] for name in COLUMNS["id"] if row.get(name) not in (None, "")), None)
    if found is None:
        message = f"{where} names no problem; expected one of {', '.join(COLUMNS['id'])}"
        raise DataError(message, reason="no problem id")
    return str(found)


def _own_one(row: Row) -> tuple[str, Said, Row]:
    index = row.get("sample_index")
    said = [(index if isinstance(index, int) else None, {**row, "text": row["response"]})]
    return id_of(row), said, _without(row, "response", "sample_index", "finish_reason", "num_tokens")


def _own_several(row: Row) -> tuple[str, Said, Row]:
    several = row["responses"]
    if not isinstance(several, list):
        raise DataError(f"responses is {type(several).__name__}; expected a list", reason="no list of responses")
    return id_of(row), list(enumerate(several)), _without(row, "responses")


def _without(row: Row, *columns: str) -> Row:
    """What is left of a row for its problem."""
    return {name: value for name, value in row.items() if name not in columns}


FORMS: dict[str, Form] = {
    "responses": Form(frozenset({"responses"}), _own_several),
    "response": Form(frozenset({"response"}), _own_one),
}
