"""MMPR, InternVL's format of preference pairs: a `meta.json` that names JSON-lines files and folders of images.

`meta.json` is `{name: {"root", "annotation", "data_augment", "repeat_time", "length"}}`. A row is `{"image",
"question", "chosen", "rejected", "answer_gt"}` with `image` one path or a list below `root` (or none), and `<image>`
placeholders anywhere in the question (https://huggingface.co/datasets/OpenGVLab/MMPR-v1.2). Ours adds `problem_id`,
`source`, which sides were truncated, and `rejected_span`; InternVL's loader ignores them, so its trainer counts the
whole rejected response.

A file may be anyone's. Paths stay inside the folder of `meta.json`, images are decoded by our decoder, a zip archive is
read without unpacking it, and a row that breaks the format is reported with its reason while the rest is read.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mpo.multimodal.errors import DataError, ImageError
from mpo.multimodal.files import opened_atomically, write_atomic
from mpo.multimodal.images import image_sha256, load_image, png_bytes
from mpo.multimodal.messages import PLACEHOLDER
from rewards.interchange.image_places import ImagePlaces
from rewards.interchange.json_rows import decoded_row
from rewards.interchange.meta_file import META, MetaEntry, meta_path, read_meta
from rewards.interchange.placeholders import placed_question, with_placeholders
from rewards.types import Completion, FinishReason, PreferencePair, Problem

if TYPE_CHECKING:
    from rewards.types import ImageLike

OnReject = Callable[[str, str, str], None]  # (row id, kind of fault, detail)


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    image: list[str] = []
    video: Any = None
    question: str
    chosen: str
    rejected: str
    answer_gt: str | int | float | None = None
    problem_id: str | None = Field(default=None, min_length=1)
    source: str | None = None
    chosen_truncated: bool = False
    rejected_truncated: bool = False
    rejected_span: tuple[int, int] | None = None


def write_mmpr(pairs: Iterable[PreferencePair], folder: str | Path, *, name: str = "pairs") -> tuple[int, Counter[str]]:
    """Write `meta.json`, `<name>.jsonl` and `images/`, the images decoded and encoded again as PNG.

    Equal images are stored once, under the hash of their pixels. `meta.json` is written last.

    Args:
        pairs: may be a generator; one pair is held at a time.
        folder: made if it does not exist.
        name: of the data set inside `meta.json`.

    Returns:
        Rows written; and reason → pairs left out: a text that holds `<image>` would claim an image, and a
        system message has no place in a row.

    Raises:
        ImageError: an image cannot be decoded.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    written, rejected = 0, Counter[str]()
    with opened_atomically(folder / f"{name}.jsonl", "w") as file:
        for pair in pairs:
            try:
                question = _question(pair)
            except DataError as error:
                rejected[error.reason] += 1
                continue
            if pair.problem.prompt.system:
                rejected["a system message, for which MMPR has no place"] += 1
                continue
            files = [_stored(image, folder / "images") for image in pair.problem.images]
            file.write(json.dumps(_row_of(pair, question, files), ensure_ascii=False) + "\n")
            written += 1
    entry = {"root": "images", "annotation": f"{name}.jsonl", "data_augment": False, "repeat_time": 1}
    write_atomic(folder / META, json.dumps({name: {**entry, "length": written}}, indent=2) + "\n")
    return written, rejected


def read_mmpr(path: str | Path, *, on_reject: OnReject, limit: int = 0) -> Iterator[PreferencePair]:
    """The pairs behind a `meta.json`, in its order, images decoded.

    Images lie in the folders that it names, or in `images.zip` beside it, or in that archive's pieces
    (`images.zip_aa`, …), which need not be joined. A data set's `repeat_time` is how often each of its rows is drawn;
    `data_augment` goes into the pairs' `meta`.

    Args:
        path: a `meta.json`, or its folder.
        on_reject: called with (row id, kind, detail) for every row that gives no pair, as often as it was drawn:
            `in = out + rejected`.
        limit: rows of each data set to look at; 0 takes all.

    Raises:
        StageError: there is no such file, or an annotation file is missing.
        DataError: `meta.json` itself breaks its format, or a path in it leaves the folder.
    """
    base = meta_path(path).parent
    with ImagePlaces(base) as places:
        for entry in read_meta(path):
            yield from _pairs_of(entry, places, on_reject, limit)


def _pairs_of(entry: MetaEntry, places: ImagePlaces, on_reject: OnReject, limit: int) -> Iterator[PreferencePair]:
    reader = _Reader(entry, places)
    with entry.annotation.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for row, (number, line) in enumerate(islice(lines, limit) if limit else lines):
            times, where = entry.times(row), f"{entry.name}:{number}"
            if not times:
                on_reject(where, "left out by repeat_time", f"repeat_time is {entry.repeat_time}")
                continue
            try:
                pair = reader.pair(line)
            except DataError as error:
                kind = "unreadable image" if isinstance(error, ImageError) else "not a pair of MMPR"
                for _ in range(times):
                    on_reject(where, kind, str(error))
            else:
                yield from repeat(pair, times)


class _Reader:
    """Rows of one data set → pairs; neighbours about one question share their problem and its decoded images."""

    def __init__(self, entry: MetaEntry, places: ImagePlaces) -> None:
        self.name, self.places, self.folder = entry.name, places, entry.folder
        self.meta = {"data_augment": True} if entry.data_augment else {}
        self._last: tuple[tuple[Any, ...], Problem] | None = None

    def pair(self, line: bytes) -> PreferencePair:
        row = _parsed(line)
        if row.video is not None:
            raise DataError("a video row; expected images")
        if any(PLACEHOLDER in text for text in (row.chosen, row.rejected)):
            raise DataError("an image placeholder inside a response; expected them in the question only")
        question, placed = placed_question(row.question, len(row.image))
        answer = None if row.answer_gt is None else str(row.answer_gt)
        key = (row.image, question, placed, answer, row.problem_id)
        if self._last is None or self._last[0] != key:
            identity = [row.image, question, answer, row.problem_id, *(["placed"] if placed else [])]
            digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
            images = tuple(load_image(self.places.find(image, self.folder)) for image in row.image)
            id = row.problem_id or f"{self.name}-{digest}"
            self._last = key, Problem(id, question, images, answer, placed=placed)
        sides = [
            Completion(text, FinishReason.LENGTH if truncated else FinishReason.STOP)
            for text, truncated in ((row.chosen, row.chosen_truncated), (row.rejected, row.rejected_truncated))
        ]
        source = row.source or self.name
        return PreferencePair(self._last[1], sides[0], sides[1], source, self.meta, rejected_span=row.rejected_span)


def _parsed(line: bytes) -> _Row:
    row = decoded_row(line)
    if isinstance(row, dict):
        image = row.get("image")
        row["image"] = [] if image is None else [image] if isinstance(image, str) else image
    try:
        return _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg']}") from error


def _question(pair: PreferencePair) -> str:
    """As the policy was asked it, with a placeholder for each image."""
    problem = pair.problem
    if any(PLACEHOLDER in text for text in (problem.prompt.template, pair.chosen.text, pair.rejected.text)):
        raise DataError(f"a text holds {PLACEHOLDER}", reason="image placeholder in a text")
    if problem.placed:
        return problem.prompt.text(problem.question)
    return with_placeholders(problem.prompt.text(problem.question), len(problem.images), placed=False)


def _row_of(pair: PreferencePair, question: str, files: list[str]) -> dict[str, Any]:
    images: dict[str, Any] = {"image": files if len(files) > 1 else files[0]} if files else {}
    answer = {} if pair.problem.answer is None else {"answer_gt": pair.problem.answer}
    return {
        **images,
        "question": question,
        "chosen": pair.chosen.text,
        "rejected": pair.rejected.text,
        **answer,
        "problem_id": pair.problem.id,
        "source": pair.source,
        "chosen_truncated": pair.chosen.finish_reason is FinishReason.LENGTH,
        "rejected_truncated": pair.rejected.finish_reason is FinishReason.LENGTH,
        **({} if pair.rejected_span is None else {"rejected_span": list(pair.rejected_span)}),
    }


def _stored(image: ImageLike, folder: Path) -> str:
    decoded = load_image(image)
    path = folder / f"{image_sha256(decoded)[:32]}.png"
    if not path.exists():
        with opened_atomically(path, "wb") as file:
            file.write(png_bytes(decoded))
    return path.name
