"""VisualProcessBench's rows: read, write, validate (arXiv 2503.10291 §3.3).

A row of its `test.jsonl` is `{"image": [paths], "question", "answer", "response": {"steps": [texts],
"process_correctness": [1 | 0 | -1]}, "policy_model", "data_source"}`; 1 is right, −1 wrong, 0 neutral. Neutral steps
get no label here: the benchmark's macro-F1 leaves them out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mpo.multimodal.errors import DataError, ImageError
from mpo.multimodal.images import load_image, resolve_inside
from mpo.multimodal.messages import PLACEHOLDER
from rewards.interchange.image_places import ImagePlaces
from rewards.interchange.json_rows import problem_id, read_rows, usable_text, validated, write_rows
from rewards.interchange.placeholders import placed_question
from rewards.prm.evaluating.benchmark import BenchmarkResponse
from rewards.types import Problem

if TYPE_CHECKING:
    from rewards.types import ImageLike

LABELS = {1: True, -1: False, 0: None}
SIGNS = {label: sign for sign, label in LABELS.items()}


class _Response(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    steps: list[str] = Field(min_length=1)
    process_correctness: list[Literal[1, 0, -1]]


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    image: list[str] = []
    question: str
    answer: str | None = None
    response: _Response
    policy_model: str = ""
    data_source: str = Field(min_length=1)

    @field_validator("image", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("answer", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value

    @field_validator("response", mode="before")
    @classmethod
    def _decoded(cls, value: Any) -> Any:
        if not isinstance(value, str):  # the dataset card calls it a string
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError("a string that is not JSON") from error


def read_visualprocessbench(
    path: str | Path, *, image_root: str | Path | None = None, keep: Callable[[ImageLike], ImageLike] | None = None
) -> tuple[list[BenchmarkResponse], Counter[str]]:
    """The rows of a file, their images decoded once to see that they can be.

    Args:
        path: JSON lines, as published.
        image_root: folder that holds the images, or `images.zip` as it was published; the file's own folder if not
            given. No image outside it is opened.
        keep: puts an image that lies in the archive into a file, so that not all of them are in memory.

    Returns:
        Responses, and reason → number of rows that are none.

    Raises:
        StageError: no such file.
        DataError: no row can be used.
    """
    root = Path(path).parent if image_root is None else Path(image_root)
    with ImagePlaces(root) as places:
        found = cache(lambda name: checked_image(name, places, keep))
        return read_rows(path, lambda number, row: parse_visualprocessbench(row, id=f"row {number}", find=found))


def parse_visualprocessbench(
    row: Any, *, id: str, image_root: str | Path = ".", find: Callable[[str], ImageLike] | None = None
) -> BenchmarkResponse:
    """One row; `<image>` placeholders that open the question leave it, since a problem's images precede it.

    Args:
        row: decoded.
        id: of the response.
        image_root: folder that holds the images.
        find: gives the image of a name, in place of the folder.

    Raises:
        DataError: a field is missing or of the wrong kind, steps and labels differ in number, no step is labelled, a
            text is empty or no valid Unicode, or an image is missing, damaged, not local or outside the folder.

    Example:
        >>> row = {"question": "2 + 2?", "response": {"steps": ["4"], "process_correctness": [1]}, "data_source": "toy"}
        >>> parse_visualprocessbench(row, id="row 1", image_root=".").labels
        (True,)
        >>> row["response"]["process_correctness"] = [1, -1]
        >>> parse_visualprocessbench(row, id="row 1", image_root=".")
        Traceback (most recent call last):
        ...
        mpo.multimodal.errors.DataError: steps and process_correctness differ in number
    """
    given = validated(_Row, row)
    steps, signs = given.response.steps, given.response.process_correctness
    if len(steps) != len(signs):
        raise DataError("steps and process_correctness differ in number")
    if not any(signs):
        raise DataError("no step has a label")
    question, placed = _placed(usable_text(given.question, "question"), len(given.image))
    usable_text(given.data_source, "data_source")
    texts = tuple(usable_text(step, "a step") for step in steps)
    find = find or partial(checked_image, places=ImagePlaces(Path(image_root)))
    images = tuple(find(image) for image in given.image)
    id_of_problem = problem_id(given.data_source, question, given.image)
    problem = Problem(id_of_problem, question, images, given.answer, placed=placed)
    labels = tuple(LABELS[sign] for sign in signs)
    return BenchmarkResponse(id, problem, texts, labels, given.data_source, given.policy_model)


def write_visualprocessbench(
    path: str | Path, responses: Sequence[BenchmarkResponse], *, image_root: str | Path | None = None
) -> int:
    """Write rows that `read_visualprocessbench` gives back; images are named relative to `image_root`.

    Returns:
        The number of rows.

    Raises:
        DataError: an image is no path, or lies outside the folder; nothing is written.
    """
    root = (Path(path).parent if image_root is None else Path(image_root)).resolve()
    return write_rows(path, [_row(response, root) for response in responses])


def _placed(question: str, images: int) -> tuple[str, bool]:
    """The question, and whether it holds its images; placeholders that are not one per image mean nothing."""
    try:
        question, placed = placed_question(question, images)
    except DataError:
        question, placed = question.replace(PLACEHOLDER, ""), False
    return usable_text(question.strip(), "question"), placed


def checked_image(name: str, places: ImagePlaces, keep: Callable[[ImageLike], ImageLike] | None = None) -> ImageLike:
    """The image of a name, decoded once to see that it can be; `keep` puts one of an archive into a file.

    Raises:
        DataError: it is missing, damaged, not local or outside the folder; the message names no path.
    """
    usable_text(name, "an image path")
    try:
        resolve_inside(name, places.root)
    except ImageError as error:
        raise DataError("an image is not a local path inside the folder") from error
    try:
        image = places.find(name)
    except ImageError as error:
        raise DataError("an image is missing") from error
    try:
        decoded = load_image(image)
    except ImageError as error:
        raise DataError("an image cannot be decoded") from error
    return keep(decoded) if keep is not None and not isinstance(image, str | Path) else image


def _row(response: BenchmarkResponse, root: Path) -> dict[str, Any]:
    images = []
    for image in response.problem.images:
        if not isinstance(image, str | Path) or not Path(image).resolve().is_relative_to(root):
            raise DataError(f"{response.id}: image {image!r} is not a file inside {root}; save it there")
        images.append(str(Path(image).resolve().relative_to(root)))
    return {
        "image": images,
        "question": response.problem.question,
        "answer": response.problem.answer,
        "response": {
            "steps": list(response.steps),
            "process_correctness": [SIGNS[label] for label in response.labels],
        },
        "policy_model": response.generator,
        "data_source": response.source,
    }
