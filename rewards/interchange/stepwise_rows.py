"""TRL's stepwise supervision rows, and what they lack to hold a labelled rollout: images, counts, provenance.

TRL's own columns (up to 1.13; the type is gone from later versions) are `prompt`, `completions` (one text per step) and
`labels` (one bool per step, mc > 0). Ours follow them, and readers that do not know them may leave them out: `images`
(PNG bytes), `scores`, `mc_correct`, `mc_total`, `response` (the original text, with what was between the steps),
`answer`, `verdict`, `problem_id`, `label_source`. A file with TRL's three columns alone is read too; its labels are
one of one or none of one, of the source `given`: hard labels, no estimates of mc (`rewards/prm/labelling/source.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from mpo.multimodal.errors import DataError, ImageError, StageError
from mpo.multimodal.images import load_image, png_bytes
from mpo.multimodal.messages import PLACEHOLDER
from mpo.multimodal.text import one_line
from rewards.interchange.parquet import opened_parquet, write_parquet
from rewards.interchange.placeholders import placed_question
from rewards.interchange.tables import read_table
from rewards.interchange.visualprm import check_steps, response_of, valid_row
from rewards.steps import split_into
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, Verdict

STEPWISE = "stepwise.parquet"
GIVEN = "given"  # label source of labels without counts

Row = dict[str, Any]
Labelled = tuple[Problem, Rollout]


def _label(value: Any) -> bool:
    if not isinstance(value, bool):  # -100, "no label", would be true
        raise ValueError(f"expected true or false, got {value!r:.40}")
    return value


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    prompt: str
    completions: list[str]
    labels: list[Annotated[bool, BeforeValidator(_label)]]
    images: list[dict[str, Any]] | None = None
    mc_correct: list[int] | None = None
    mc_total: list[int] | None = None
    response: str | None = None
    answer: str | None = None
    verdict: Verdict | None = None
    problem_id: str | None = None
    label_source: str | None = None


def to_stepwise_row(problem: Problem, rollout: Rollout) -> Row:
    """One labelled rollout as a row; its images are still those of the problem.

    Raises:
        DataError: no counts, a step without one, or counts that do not fit the text's steps.

    Example:
        >>> made = Rollout(Completion("a\\n\\nb"), mc=(MonteCarloCount(1, 4), MonteCarloCount(0, 4)))
        >>> row = to_stepwise_row(Problem("p", "2 + 2?"), made)
        >>> row["completions"], row["labels"], row["scores"]
        (['a', 'b'], [True, False], [0.25, 0.0])
    """
    if rollout.mc is None:
        raise DataError(
            f"labels: problem {problem.id!r} has a rollout without step counts; run `mpo label-steps` first"
        )
    if problem.images and not problem.placed and PLACEHOLDER in problem.question:
        raise DataError(f"prompt: the question holds the text {PLACEHOLDER}, which would claim an image")
    counts = [count for count in rollout.mc if count is not None]
    if len(counts) < len(rollout.mc):
        raise DataError(
            f"labels: a response to problem {problem.id!r} has steps without a label, which TRL's rows lack"
        )
    steps = split_into(rollout.completion.text, len(counts))
    return {
        "prompt": problem.question,
        "completions": [step.text.strip() for step in steps],
        "labels": [count.correct > 0 for count in counts],
        "images": list(problem.images),
        "scores": [count.value for count in counts],
        "mc_correct": [count.correct for count in counts],
        "mc_total": [count.total for count in counts],
        "response": rollout.completion.text,
        "answer": problem.answer,
        "verdict": rollout.verdict.value if rollout.verdict else None,
        "problem_id": problem.id,
        "label_source": rollout.label_source,
    }


def from_stepwise_row(row: Row) -> Labelled:
    """A row as problem, its images decoded, and rollout.

    Raises:
        DataError: a column is missing, of the wrong type, or contradicts another; the message begins with its name.
    """
    parsed = valid_row(_Row, row)
    response = response_of(parsed.completions) if parsed.response is None else parsed.response
    check_steps(response, parsed.completions, where="completions.{}")
    try:
        images = tuple(load_image(image) for image in parsed.images or ())
    except ImageError as error:
        raise ImageError(f"images: {error}") from error
    hashes = [hashlib.sha256(image["bytes"]).hexdigest() for image in parsed.images or ()]
    question, placed = _placed(parsed.prompt, len(images))
    identity = json.dumps([hashes, parsed.prompt, parsed.answer]).encode()
    identifier = parsed.problem_id or f"stepwise-{hashlib.sha256(identity).hexdigest()[:16]}"
    source = GIVEN if parsed.mc_correct is None else parsed.label_source
    rollout = Rollout(Completion(response), parsed.verdict, mc=_counts(parsed), label_source=source)
    return Problem(identifier, question, images, parsed.answer, placed=placed), rollout


def write_stepwise_parquet(items: Iterable[Labelled], path: str | Path) -> int:
    """Write rows, images as PNG bytes that we decoded and encoded again; the file appears whole or not at all.

    Returns:
        The number of rows.

    Raises:
        DataError: a rollout without fitting counts, or an image that cannot be decoded; nothing is written.
    """
    rows = (
        row | {"images": [{"bytes": png_bytes(load_image(image)), "path": None} for image in row["images"]]}
        for row in (to_stepwise_row(*item) for item in items)
    )
    return write_parquet(rows, path, schema=stepwise_features().arrow_schema)


def read_stepwise_parquet(path: str | Path) -> Iterator[tuple[int, Labelled | DataError]]:
    """The rows of a file in order, each with its number from 0; a damaged one is a value, an error naming the column.

    The file may be anyone's: its images are decoded by our decoder alone, and a path that it names is not opened.

    Raises:
        StageError: there is no such Parquet file.
    """
    import pyarrow as pa

    number = 0
    try:
        with opened_parquet(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    try:
                        yield number, from_stepwise_row(row)
                    except DataError as error:
                        yield number, error
                    number += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, StageError):
            raise
        said = one_line(str(error), 200)
        raise StageError(f"{path} is not a Parquet file of stepwise rows ({said})") from error


def read_stepwise_table(source: str | Path, *, limit: int = 0) -> Iterator[tuple[str, Labelled | DataError]]:
    """The rows of any table, as TRL publishes PRM800K and Math-Shepherd, each with its file and number.

    `trl-lib/prm800k` and `trl-lib/math_shepherd` have the three columns `prompt`, `completions` and `labels`
    (https://huggingface.co/datasets/trl-lib/math_shepherd).

    Args:
        source: as `rewards.interchange.tables.read_table`.
        limit: rows of each file; 0 takes all.

    Raises:
        StageError, ConfigError, DataError: as `read_table`.
    """
    for where, row in read_table(source, limit=limit):
        try:
            yield where, row if isinstance(row, DataError) else from_stepwise_row(row)
        except DataError as error:
            yield where, error


def stepwise_features() -> Any:
    """The columns with their types, as `datasets.Features`."""
    from datasets import Features, Image, List, Value

    text, texts, numbers = Value("string"), List(Value("string")), List(Value("int64"))
    own = {"images": List(Image()), "scores": List(Value("float64")), "mc_correct": numbers, "mc_total": numbers}
    strings = dict.fromkeys(("response", "answer", "verdict", "problem_id", "label_source"), text)
    return Features({"prompt": text, "completions": texts, "labels": List(Value("bool")), **own, **strings})


def _placed(prompt: str, images: int) -> tuple[str, bool]:
    try:
        return placed_question(prompt, images) if images else (prompt, False)
    except DataError as error:
        raise DataError(f"prompt: {error}") from error


def _counts(row: _Row) -> tuple[MonteCarloCount, ...]:
    right = [int(label) for label in row.labels] if row.mc_correct is None else row.mc_correct
    total = [1] * len(right) if row.mc_total is None else row.mc_total
    if not len(row.completions) == len(row.labels) == len(right) == len(total):
        raise DataError(
            f"labels: expected one label and one count per step, got {len(row.completions)} completions, "
            f"{len(row.labels)} labels, {len(right)} mc_correct, {len(total)} mc_total"
        )
    try:
        counts = tuple(MonteCarloCount(*both) for both in zip(right, total, strict=True))
    except DataError as error:
        raise DataError(f"mc_correct: {error}") from error
    for index, (count, label) in enumerate(zip(counts, row.labels, strict=True)):
        if (count.correct > 0) is not label:
            raise DataError(f"labels.{index}: {label} for {count.correct} of {count.total}; expected mc > 0")
    return counts
