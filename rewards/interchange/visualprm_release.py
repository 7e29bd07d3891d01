"""VisualPRM400K as it is released: conversations whose assistant answers each step with a sign, or rows with counts.

VisualPRM400K and -v1.1 hold `{"id": -1, "image", "conversations": [{"from": "system" | "human" | "gpt", "value"}, …]}`
(https://huggingface.co/datasets/OpenGVLab/VisualPRM400K-v1.1; written by InternVL's
`visualprm_data_pipeline_postprocess.py`): the first human turn is `### Question:`, the question with its `<image>`,
`### Solution Process:` and the first step, each later one the next step, and `gpt` says `+` where a step's mc is above
0, else `-`. These are hard labels of the source `given`. -v1.1-Raw holds the rows of `visualprm.py`, with counts.

A release is a folder: `meta.json` (v1.1), or `annotations/` with a file per data set (38 in -v1.1-Raw), and images in a
folder or in `images.zip` or its pieces. Images of -v1.1-Raw are named `VisualPRM400K-v1.1-Raw/Geometry3K/…`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mpo.multimodal.errors import DataError, ImageError, StageError
from rewards.interchange.image_places import ImagePlaces
from rewards.interchange.json_rows import decoded_row, usable_text
from rewards.interchange.meta_file import META, MetaEntry, read_meta, unpacked_hint
from rewards.interchange.placeholders import placed_question, with_placeholders
from rewards.interchange.stepwise_rows import GIVEN, Labelled
from rewards.interchange.visualprm import VISUALPRM400K, Find, from_visualprm_row, image_names, response_of, valid_row
from rewards.steps import split_into
from rewards.types import Completion, MonteCarloCount, Problem, Rollout

ANNOTATIONS = "annotations"
SIGNS = {"+": 1, "-": 0}
_QUESTION, _SOLUTION = "### Question:", "### Solution Process:"
_FIRST = re.compile(rf"\s*{_QUESTION}\s*(.*?)\s*{_SOLUTION}\s*(.*)", re.DOTALL)


class _Turn(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)
    who: Literal["system", "human", "gpt"] = Field(alias="from")
    value: str


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    image: str | list[str] | None = None
    conversations: list[_Turn]


def read_release(
    source: Path, *, image_root: Path | None = None, limit: int = 0
) -> Iterator[tuple[str, Labelled | DataError]]:
    """The rows of a release, each with its data set and line; a damaged one is a value, an error that names the field.

    Args:
        source: the release's folder, its `annotations` folder, or one of its files.
        image_root: folder that holds the images; the release's own if not given.
        limit: rows of each file to look at; 0 takes all.

    Raises:
        StageError: there is no such file, or no annotation in the folder.
        DataError: its `meta.json` breaks its format.
        ImageError: its `images.zip` is damaged.
    """
    base, entries = files_of_release(source)
    several = len(entries) > 1
    with ImagePlaces(image_root or base) as places:
        for entry in entries:
            for where, item, times in _rows(entry, places, limit):
                if not isinstance(item, DataError):
                    problem, rollout = item
                    meta: dict[str, Any] = {"data_augment": True} if entry.data_augment else {}
                    if several:
                        problem = replace(problem, id=f"{entry.name}:{problem.id}")
                        meta["source"] = entry.name
                    item = replace(problem, meta={**problem.meta, **meta}), rollout
                for _ in range(times):
                    yield where, item


def files_of_release(source: Path) -> tuple[Path, list[MetaEntry]]:
    """The folder of a release, and its data sets in order; raises as `read_release`."""
    if source.is_file() and source.name != META:
        base = source.parent.parent if source.parent.name == ANNOTATIONS else source.parent
        return base, [MetaEntry(source.stem, "", source)]
    base = source.parent if source.name in (META, ANNOTATIONS) else source
    if (base / VISUALPRM400K).is_file():  # of our own writing
        return base, [MetaEntry(VISUALPRM400K.removesuffix(".jsonl"), "", base / VISUALPRM400K)]
    if (base / META).is_file():
        return base, read_meta(base)
    folder = base / ANNOTATIONS if (base / ANNOTATIONS).is_dir() else base
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    if not files:
        raise StageError(
            f"no annotations at {source}: expected {META}, or JSON-lines files in {folder}{unpacked_hint(base)}"
        )
    return base, [MetaEntry(file.stem, "", file) for file in files]


def _rows(entry: MetaEntry, places: ImagePlaces, limit: int) -> Iterator[tuple[str, Labelled | DataError, int]]:
    """(data set and line, row, how often it is drawn)."""
    find = partial(places.find, folder=entry.folder)
    with entry.annotation.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for row, (number, line) in enumerate(islice(lines, limit) if limit else lines):
            where, times = f"{entry.annotation.name}:{number}", entry.times(row)
            if not times:
                yield where, DataError(f"left out by repeat_time: it is {entry.repeat_time}"), 1
                continue
            try:
                yield where, _labelled(_decoded(line), find), times
            except DataError as error:
                yield where, error, times


def _decoded(line: bytes) -> Any:
    try:
        return decoded_row(line)
    except DataError as error:
        raise DataError(f"row: {error}") from error


def _labelled(row: Any, find: Find) -> Labelled:
    if isinstance(row, dict) and "conversations" in row:
        return from_conversation_row(row, find=find)
    return from_visualprm_row(row, image_root=".", find=find)


def from_conversation_row(row: Any, *, find: Find) -> Labelled:
    """A conversation as problem and rollout, one count of one per step.

    Args:
        row: decoded.
        find: gives the image of a name.

    Raises:
        DataError: turns that are not those of a release; the message begins with the field.

    Example:
        >>> first = "### Question:\\nWhat is 1 + 1?\\n\\n### Solution Process:\\nOne and one."
        >>> turns = [{"from": "human", "value": first}, {"from": "gpt", "value": "+"}]
        >>> turns += [{"from": "human", "value": "So 3."}, {"from": "gpt", "value": "-"}]
        >>> problem, rollout = from_conversation_row({"id": -1, "conversations": turns}, find=str)
        >>> problem.question, rollout.completion.text, [count.correct for count in rollout.mc]
        ('What is 1 + 1?', 'One and one.\\n\\nSo 3.', [1, 0])
    """
    parsed = valid_row(_Row, row)
    turns = parsed.conversations[1:] if parsed.conversations[:1] and parsed.conversations[0].who == "system" else None
    turns = list(parsed.conversations if turns is None else turns)
    if not turns or [turn.who for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
        raise DataError("conversations: expected turns of human and gpt in alternation, a step and its sign each")
    first = _FIRST.fullmatch(turns[0].value)
    if first is None:
        raise DataError(f"conversations: the first human turn lacks {_QUESTION!r} or {_SOLUTION!r}")
    steps = [first[2].strip(), *(turn.value.strip() for turn in turns[2::2])]
    signs = [turn.value.strip() for turn in turns[1::2]]
    if other := next((sign for sign in signs if sign not in SIGNS), None):
        raise DataError(f"conversations: a step has the sign {other[:20]!r}; expected + or -")
    if not all(steps) or not all(signs):
        raise DataError("conversations: a step or a sign is empty")
    names = image_names(parsed.image)
    try:
        question, placed = placed_question(usable_text(first[1], "question"), len(names))
        images = tuple(find(name) for name in names)
    except ImageError as error:
        raise ImageError(f"image: {error}") from error
    except DataError as error:
        raise DataError(f"conversations: {error}") from error
    digest = hashlib.sha256(json.dumps([names, question]).encode()).hexdigest()[:16]
    problem = Problem(f"visualprm-{digest}", question, images, placed=placed)
    response = usable_text(response_of(steps), "a step")
    split_into(response, len(steps))  # raises here what would end a training run
    mc = tuple(MonteCarloCount(SIGNS[sign], 1) for sign in signs)
    return problem, Rollout(Completion(response), mc=mc, label_source=GIVEN)


def to_conversation_row(problem: Problem, rollout: Rollout, *, images: Sequence[str]) -> dict[str, Any]:
    """A labelled rollout as a conversation without a system turn, which belongs to the PRM's format.

    Args:
        problem: whose images have these names.
        rollout: with `mc`; a step is `+` where its count is above 0.
        images: a path for each image.

    Raises:
        DataError: no counts, or a question that holds `<image>` as text.
    """
    if rollout.mc is None:
        raise DataError(f"problem {problem.id!r} has a rollout without step labels; run `mpo label-steps` first")
    steps = [step.text.strip() for step in split_into(rollout.completion.text, len(rollout.mc))]
    question = with_placeholders(problem.question, len(images), placed=problem.placed)
    said = [f"{_QUESTION}\n{question}\n\n{_SOLUTION}\n{steps[0]}", *steps[1:]]
    signs = ["+" if count.correct else "-" for count in rollout.mc]
    turns = [
        turn
        for step, sign in zip(said, signs, strict=True)
        for turn in ({"from": "human", "value": step}, {"from": "gpt", "value": sign})
    ]
    shown: dict[str, Any] = {"image": images[0] if len(images) == 1 else list(images)} if images else {}
    return {"id": -1, **shown, "conversations": turns}
