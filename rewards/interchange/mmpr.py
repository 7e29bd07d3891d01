"""MMPR, InternVL's format of preference pairs: a `meta.json` that names JSON-lines files and folders of images.

`meta.json` is `{name: {"root", "annotation", "data_augment", "repeat_time", "length"}}`. A row is `{"image",
"question", "chosen", "rejected", "answer_gt"}` with `image` one path or a list below `root`, and `<image>`
placeholders in the question (https://huggingface.co/datasets/OpenGVLab/MMPR-v1.2). Ours adds `problem_id`, `source`,
which sides were truncated, and `rejected_span`; InternVL's loader ignores them, so its trainer counts the whole
rejected response.

A file may be anyone's. Paths stay inside the folder of `meta.json`, images are decoded by our decoder, a zip archive is
read without unpacking it, and a row that breaks the format is reported with its reason while the rest is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mpo.multimodal.errors import DataError, ImageError, StageError
from mpo.multimodal.files import opened_atomically, write_atomic
from mpo.multimodal.images import image_sha256, load_image, png_bytes, resolve_inside
from rewards.interchange.archives import ZipImages
from rewards.interchange.json_rows import decoded_row
from rewards.types import Completion, FinishReason, PreferencePair, Problem

if TYPE_CHECKING:
    from rewards.types import ImageLike

META = "meta.json"
IMAGES_ZIP = "images.zip"
PLACEHOLDER = "<image>"
_LEADING = re.compile(rf"(?:{PLACEHOLDER}\n?)*")

OnReject = Callable[[str, str, str], None]  # (row id, kind of fault, detail)


class _Dataset(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    root: str = ""
    annotation: str


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
            if any(PLACEHOLDER in text for text in (_question(pair.problem), pair.chosen.text, pair.rejected.text)):
                rejected["image placeholder in a text"] += 1
                continue
            if pair.problem.prompt.system:
                rejected["a system message, for which MMPR has no place"] += 1
                continue
            files = [_stored(image, folder / "images") for image in pair.problem.images]
            file.write(json.dumps(_row_of(pair, files), ensure_ascii=False) + "\n")
            written += 1
    entry = {"root": "images", "annotation": f"{name}.jsonl", "data_augment": False, "repeat_time": 1}
    write_atomic(folder / META, json.dumps({name: {**entry, "length": written}}, indent=2) + "\n")
    return written, rejected


def read_mmpr(path: str | Path, *, on_reject: OnReject) -> Iterator[PreferencePair]:
    """The pairs behind a `meta.json`, in its order, images decoded.

    Paths in it start at its folder; a first part that repeats the folder's name ("MMPR-v1.2/images/…") is dropped.
    Where `root` is no folder, images come from `images.zip` beside `meta.json`. `repeat_time` and `data_augment` are
    settings of InternVL's loader and are not applied.

    Args:
        path: a `meta.json`, or its folder.
        on_reject: called with (row id, kind, detail) for every row that gives no pair: `in = out + rejected`.

    Raises:
        StageError: there is no such file, or an annotation file is missing.
        DataError: `meta.json` itself breaks its format, or a path in it leaves the folder.
    """
    datasets = read_meta(path)
    base = _meta_file(path).parent
    with ExitStack() as stack:
        archive = stack.enter_context(ZipImages(base / IMAGES_ZIP)) if (base / IMAGES_ZIP).is_file() else None
        for name, (root, annotation) in datasets.items():
            reader = _Reader(name, root, base, None if root.is_dir() else archive)
            with annotation.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    try:
                        yield reader.pair(line)
                    except ImageError as error:
                        on_reject(f"{name}:{number}", "unreadable image", str(error))
                    except DataError as error:
                        on_reject(f"{name}:{number}", "not a pair of MMPR", str(error))


def read_meta(path: str | Path) -> dict[str, tuple[Path, Path]]:
    """Name → (root, annotation) of a `meta.json`, resolved and inside its folder. Raises as `read_mmpr`."""
    file = _meta_file(path)
    try:
        found = json.loads(file.read_bytes())
        if not isinstance(found, dict):
            raise DataError(f"{file}: expected an object of data sets, got {type(found).__name__}")
        entries = {name: _Dataset.model_validate(entry) for name, entry in found.items()}
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: not a meta.json of MMPR ({' '.join(str(error).split())[:200]})") from error
    resolved = {n: (_inside(e.root, file.parent), _inside(e.annotation, file.parent)) for n, e in entries.items()}
    for name, (_, annotation) in resolved.items():
        if not annotation.is_file():
            raise StageError(f"{file}: annotation of {name!r} is not a file at {annotation}")
    return resolved


class _Reader:
    """Rows of one data set → pairs; neighbours about one question share their problem and its decoded images."""

    def __init__(self, name: str, root: Path, base: Path, archive: ZipImages | None) -> None:
        self.name, self.root, self.archive = name, root, archive
        self.folder = root.relative_to(base.resolve()).as_posix()
        self._last: tuple[tuple[Any, ...], Problem] | None = None

    def pair(self, line: bytes) -> PreferencePair:
        row = _parsed(line)
        if row.video is not None:
            raise DataError("a video row; expected images")
        question = _without_placeholders(row)
        answer = None if row.answer_gt is None else str(row.answer_gt)
        key = (row.image, question, answer, row.problem_id)
        if self._last is None or self._last[0] != key:
            digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
            images = tuple(self._image(image) for image in row.image)
            self._last = key, Problem(row.problem_id or f"{self.name}-{digest}", question, images, answer)
        sides = [
            Completion(text, FinishReason.LENGTH if truncated else FinishReason.STOP)
            for text, truncated in ((row.chosen, row.chosen_truncated), (row.rejected, row.rejected_truncated))
        ]
        source = row.source or self.name
        return PreferencePair(self._last[1], sides[0], sides[1], source, rejected_span=row.rejected_span)

    def _image(self, image: str) -> ImageLike:
        if self.archive is not None:
            return load_image(self.archive.read(self.folder, image))
        return load_image(image, root=self.root)


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


def _without_placeholders(row: _Row) -> str:
    """The question after its leading placeholders, of which there are none or one per image."""
    leading = _LEADING.match(row.question)
    assert leading is not None  # the pattern matches the empty text
    rest, count = row.question[leading.end() :], leading[0].count(PLACEHOLDER)
    if any(PLACEHOLDER in text for text in (rest, row.chosen, row.rejected)):
        raise DataError("an image placeholder inside a text; expected all of them before the question")
    if count not in (0, len(row.image)):
        raise DataError(f"{count} image placeholders for {len(row.image)} images; expected as many, or none")
    return rest


def _question(problem: Problem) -> str:
    """As the policy was asked it."""
    return problem.prompt.text(problem.question)


def _row_of(pair: PreferencePair, files: list[str]) -> dict[str, Any]:
    images: dict[str, Any] = {"image": files if len(files) > 1 else files[0]} if files else {}
    answer = {} if pair.problem.answer is None else {"answer_gt": pair.problem.answer}
    return {
        **images,
        "question": f"{PLACEHOLDER}\n" * len(files) + _question(pair.problem),
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


def _meta_file(path: str | Path) -> Path:
    path = Path(path)
    file = path / META if path.is_dir() else path
    if not file.is_file():
        raise StageError(f"no {META} at {path}: expected MMPR data (a {META} beside its annotations and images)")
    return file


def _inside(path: str, base: Path) -> Path:
    first, _, rest = path.partition("/")
    repeats = first == base.resolve().name and not resolve_inside(path, base).exists()
    return resolve_inside(rest if repeats else path, base)
