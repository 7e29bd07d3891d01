"""ProcessBench's rows: read, write, validate (arXiv 2412.06559; text only).

A row is `{"id": "gsm8k-0", "generator", "problem", "steps": [texts], "final_answer_correct", "label"}`; `label` is the
index of the first wrong step, −1 if all are right. Steps before it are right, those after it get no label here. The
subset is the part of the id before the last `-`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mpo.multimodal.errors import DataError
from rewards.interchange.json_rows import problem_id, read_rows, usable_text, validated, write_rows
from rewards.prm.evaluating.benchmark import BenchmarkResponse
from rewards.types import Problem


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    id: str = Field(min_length=1)
    generator: str = ""
    problem: str
    steps: list[str] = Field(min_length=1)
    final_answer_correct: bool | None = None
    label: int = Field(strict=True, ge=-1)


def read_processbench(path: str | Path) -> tuple[list[BenchmarkResponse], Counter[str]]:
    """The rows of a file of JSON lines, or of one JSON array, as published.

    Returns:
        Responses, and reason → number of rows that are none.

    Raises:
        StageError: no such file.
        DataError: no row can be used.
    """
    return read_rows(path, lambda number, row: parse_processbench(row))


def parse_processbench(row: Any) -> BenchmarkResponse:
    """One row.

    Raises:
        DataError: a field is missing or of the wrong kind, `label` is no step's index, or a text is empty or no valid
            Unicode.

    Example:
        >>> row = {"id": "gsm8k-0", "problem": "2 + 2 + 2?", "steps": ["2 + 2 = 4", "4 + 2 = 7", "So 7"], "label": 1}
        >>> response = parse_processbench(row)
        >>> response.labels, response.first_error, response.source
        ((True, False, None), 1, 'gsm8k')
    """
    given = validated(_Row, row)
    if given.label >= len(given.steps):
        raise DataError("label is not the index of a step")
    wrong = given.label if given.label >= 0 else len(given.steps)
    labels = tuple(True if i < wrong else False if i == wrong else None for i in range(len(given.steps)))
    steps = tuple(usable_text(step, "a step") for step in given.steps)
    question = usable_text(given.problem, "problem").strip()
    source = given.id.rpartition("-")[0] or given.id
    problem = Problem(problem_id(source, question), question)
    return BenchmarkResponse(given.id, problem, steps, labels, source, given.generator, given.final_answer_correct)


def write_processbench(path: str | Path, responses: Sequence[BenchmarkResponse]) -> int:
    """Write rows that `read_processbench` gives back; of the labels only the first error is kept.

    Returns:
        The number of rows.

    Raises:
        DataError: a problem has images, which the format cannot hold; nothing is written.
    """
    if pictured := [response.id for response in responses if response.problem.images]:
        raise DataError(f"{pictured[0]}: ProcessBench has no images; write VisualProcessBench rows instead")
    return write_rows(path, [_row(response) for response in responses])


def _row(response: BenchmarkResponse) -> dict[str, Any]:
    return {
        "id": response.id,
        "generator": response.generator,
        "problem": response.problem.question,
        "steps": list(response.steps),
        "final_answer_correct": response.final_correct,
        "label": response.first_error,
    }
