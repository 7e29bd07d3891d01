"""Problems from any table: own JSON lines, VLMEvalKit's TSV, Parquet with embedded images, `datasets`, the Hub.

Columns are found by name. Those of VLMEvalKit (`index`, `image`, `image_path`, `hint`, `A` … `Z`, `category`;
https://github.com/open-compass/VLMEvalKit, docs/en/Development.md), of MMMU (`image_1` …, `options` as the text of a
list), of MathVista (`pid`, `decoded_image`, `choices`) and of our own files are known; `columns` names others. Images
stand where the text names them (`<image>`, MMMU's `<image 1>`), else they precede it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError, DataError, ImageError
from rewards.interchange.embedded import images_of, literal_list
from rewards.interchange.json_rows import usable_text
from rewards.interchange.placeholders import by_number, placed_question
from rewards.interchange.tables import Row, folder_of, read_table
from rewards.types import Problem

# What a problem is made of → the columns that may hold it, the first that a row has.
COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "index", "pid", "problem_id", "question_id", "qid"),
    "question": ("question", "problem", "query", "prompt"),
    "images": ("images", "decoded_image", "image"),  # MathVista's `image` is the path of its `decoded_image`
    "paths": ("image_path",),
    "answer": ("answer", "answer_gt", "gt_answer", "reference"),
    "choices": ("choices", "options"),
    "hint": ("hint",),
    "meta": ("meta",),
    "placed": ("placed",),  # of our own files: what the placeholders say anyway
}
SINGULAR = {"image": "images"}
_NUMBERED = re.compile(r"image_(\d+)")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST_META = 10_000  # characters of a text that is carried along
MAX_REFERENCE = 64  # characters of a field of VLMEvalKit that names the row whose image is meant


@dataclass(frozen=True)
class Rejected:
    """A row that gives no problem.

    Attributes:
        where: its file and number, or its id.
        reason: the kind of fault, the same for every row that has it.
        detail: what exactly was wrong.
    """

    where: str
    reason: str
    detail: str


Ask = Callable[[str, Sequence[str], str], str]  # (question, choices, hint) → the question as it is asked


def with_options(question: str, choices: Sequence[str], hint: str) -> str:
    """The question behind its hint, its options as lines of their own.

    Example:
        >>> print(with_options("Which?", ["red", "blue"], "Look."))
        Hint: Look.
        Which?
        A. red
        B. blue
    """
    options = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False)]
    return "\n".join([*([f"Hint: {hint}"] if hint else []), question, *options])


def read_problems(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    image_root: Path | None = None,
    prepare: Callable[[Row], Row] | None = None,
    ask: Ask = with_options,
) -> Iterator[Problem | Rejected]:
    """The problems of a source in order, one in memory at a time: rows = problems + rejected.

    Args:
        source: a file (`.jsonl`, `.json`, `.tsv`, `.csv`, `.parquet`), a folder of such files, a folder that `datasets`
            saved, or `hub:NAME[@REVISION][:CONFIG][:SPLIT]`.
        columns: what a problem is made of (a key of `COLUMNS`, or `image`) → the column that holds it.
        image_root: folder that paths start at; the source's own if not given.
        prepare: a raw row → one with the usual columns; raises `DataError` if there is none.
        ask: makes the question of a row with options or a hint.

    Yields:
        Problems, their images decoded or paths inside the folder; `meta` holds `choices`, `hint` and every other column
        that JSON can hold. A row without an id gets its number, from 0. A damaged row is a `Rejected`.

    Raises:
        StageError: there is no such file.
        ConfigError: the file is of no known kind, or `columns` names what no problem or no row has.
        DataError: the file as a whole cannot be read.
    """
    mapping = _checked(columns or {})
    root = image_root if image_root is not None else folder_of(source)
    shown: dict[str, Any] = {}  # id → images, of rows that others refer to
    seen: set[str] = set()
    for number, (where, row) in enumerate(read_table(source)):
        try:
            if isinstance(row, DataError):
                raise row
            row = prepare(row) if prepare else row
            problem = problem_of(row, mapping, where=where, number=number, root=root, shown=shown, ask=ask)
            if problem.id in seen:
                raise DataError(f"id {problem.id!r} occurs twice; ids must be unique", reason="id occurs twice")
        except ImageError as error:
            yield Rejected(where, "unreadable image", str(error))
        except DataError as error:
            yield Rejected(where, error.reason, str(error))
        else:
            seen.add(problem.id)
            yield problem


def problem_of(
    row: Row,
    columns: Mapping[str, str],
    *,
    where: str,
    root: Path | None,
    number: int = 0,
    shown: dict[str, Any] | None = None,
    ask: Ask = with_options,
) -> Problem:
    """One row as a problem.

    Args:
        row: column → value.
        columns: as `read_problems`, checked.
        where: file and number of the row, for messages.
        root: folder that paths start at; None where only embedded images are allowed.
        number: of the row, from 0, as `datasets` counts: the id of a row that has none.
        shown: id → value of the image column of the rows before it, to which VLMEvalKit's rows may refer; added to.
        ask: makes the question of a row with options or a hint.

    Raises:
        ConfigError: the row lacks a column that `columns` names, or has none that holds the question.
        DataError: the row gives no problem.

    Example:
        >>> row = {"index": "7", "question": "Which?", "A": "red", "B": "blue", "answer": "B", "category": "colour"}
        >>> problem = problem_of(row, {}, where="toy.tsv:2", root=None)
        >>> problem.id, problem.question, problem.answer
        ('7', 'Which?\\nA. red\\nB. blue', 'B')
        >>> dict(problem.meta)
        {'choices': ['red', 'blue'], 'category': 'colour'}
    """
    held = _held(row, columns)
    if "question" not in held:
        raise ConfigError(
            f"{where}: no column holds the question; name it with --columns question=NAME, one of "
            f"{', '.join(row)[:300]}"
        )
    value = {part: row.get(column) for part, column in held.items()}
    id = id_text(value.get("id")) or str(number)
    question = usable_text(_text(value["question"]), "question")
    lettered = list(takewhile(lambda letter: _text(row.get(letter)), _LETTERS))  # an empty column ends the options
    choices = _choices(value.get("choices")) or [_text(row[letter]) for letter in lettered]
    hint = _text(value.get("hint"))
    own = value.get("meta")
    meta = {
        **(own if isinstance(own, dict) else {}),
        **({"choices": choices} if choices else {}),
        **({"hint": hint} if hint else {}),
        **_carried(row, {*held.values(), *lettered}),
    }
    images = _images(row, value, id, root, shown if shown is not None else {})
    asked, placed = ask(question, choices, hint) if choices or hint else question, False
    if images:
        asked, images = by_number(asked, images)
        asked, placed = placed_question(asked, len(images))
    return Problem(id, asked, images, _answer(value.get("answer")), meta, placed=placed)


def _checked(columns: Mapping[str, str]) -> dict[str, str]:
    found = {SINGULAR.get(part, part): column for part, column in columns.items()}
    if unknown := [part for part in found if part not in COLUMNS]:
        raise ConfigError(f"--columns {unknown[0]}=…: expected one of {', '.join(COLUMNS)} before the sign")
    return found


def _held(row: Row, columns: Mapping[str, str]) -> dict[str, str]:
    """Part of a problem → column of this row."""
    if missing := [column for column in columns.values() if column not in row]:
        raise ConfigError(f"--columns names {missing[0]!r}, but a row has {', '.join(row)[:300]}")
    found = {part: next((name for name in names if name in row), None) for part, names in COLUMNS.items()}
    return {**{part: name for part, name in found.items() if name is not None}, **columns}


def _images(row: Row, value: Row, id: str, root: Path | None, shown: dict[str, Any]) -> tuple[Any, ...]:
    """Of the image column; of the row that it refers to; of `image_1`, `image_2`, …; or of the column of paths."""
    given = value.get("images")
    if isinstance(given, str) and len(given) <= MAX_REFERENCE and given in shown:
        given = shown[given]
    elif given and isinstance(given, str):
        shown[id] = given
    numbered = sorted((int(match[1]), name) for name in row if (match := _NUMBERED.fullmatch(name)))
    if given is None or given == "":
        given = [row[name] for _, name in numbered if row[name] is not None] or value.get("paths")
    return images_of(given, root=root)


def _choices(value: Any) -> list[str]:
    if isinstance(value, str):
        value = literal_list(value)
    return [_text(one) for one in value] if isinstance(value, list) else []


def _answer(value: Any) -> Any:
    """A text, a number or several of them; an empty field is no answer."""
    if isinstance(value, list):
        return [one for one in value if one is not None and _text(one)]
    return value if isinstance(value, bool | int | float) else _text(value) or None


def id_text(value: Any) -> str:
    """An id as text, the same whether a table holds it as a number or as a text; empty if there is none.

    Example:
        >>> id_text(7), id_text(7.0), id_text("07"), id_text(None)
        ('7', '7', '07', '')
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else _text(value)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip() if not isinstance(value, bytes) else ""


def _carried(row: Row, used: set[str]) -> dict[str, Any]:
    """The other columns, as far as they are small and JSON can hold them."""
    return {
        name: value
        for name, value in row.items()
        if name not in used and not _NUMBERED.fullmatch(name) and name not in COLUMNS["images"] and _is_small(value)
    }


def _is_small(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value) and len(value) <= LONGEST_META
    if isinstance(value, list):
        return len(value) <= 100 and all(_is_small(one) for one in value)
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
