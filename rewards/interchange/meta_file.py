"""InternVL's `meta.json`: the data sets of a release, each a JSON-lines file and the folder that its images lie in.

`{name: {"root", "annotation", "data_augment", "repeat_time", "length"}}`, as MMPR, MMPR-v1.1, MMPR-v1.2 and
VisualPRM400K-v1.1 hold it (https://huggingface.co/datasets/OpenGVLab/MMPR-v1.2). A file may be anyone's: paths stay
inside its folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mpo.multimodal.errors import DataError, StageError
from mpo.multimodal.images import resolve_inside

META = "meta.json"
ANNOTATIONS_ZIP = "annotations.zip"
MOST_REPEATS = 100


@dataclass(frozen=True)
class MetaEntry:
    """One data set.

    Attributes:
        name: of the data set.
        folder: of its images, relative to the folder of `meta.json`.
        annotation: the file of its rows.
        repeat_time: how often each row is drawn; the fraction draws rows evenly over the file.
        data_augment: whether InternVL's loader compresses its images at random (`mpo/multimodal/jpeg.py`).
    """

    name: str
    folder: str
    annotation: Path
    repeat_time: float = 1.0
    data_augment: bool = False

    def times(self, row: int) -> int:
        """How often a row is drawn; of n rows in all floor(n · repeat_time).

        Args:
            row: its number, from 0.

        Example:
            >>> [MetaEntry("m", "", Path("m.jsonl"), repeat_time=1.5).times(row) for row in range(4)]
            [1, 2, 1, 2]
        """
        share = Fraction(str(self.repeat_time))  # of floating-point numbers, 100 · 0.29 is below 29
        return math.floor((row + 1) * share) - math.floor(row * share)


class _Dataset(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    root: str = ""
    annotation: str
    repeat_time: float = Field(default=1.0, gt=0, le=MOST_REPEATS)
    data_augment: bool = False


def read_meta(path: str | Path) -> list[MetaEntry]:
    """The data sets of a `meta.json`, resolved and inside its folder.

    A first part of a path that repeats the folder's name ("MMPR-v1.2/images/…") is dropped where nothing lies at the
    whole.

    Args:
        path: a `meta.json`, or its folder.

    Raises:
        StageError: there is no such file, or an annotation file is missing.
        DataError: the file breaks its format, or a path in it leaves the folder.
    """
    file = meta_path(path)
    try:
        found = json.loads(file.read_bytes())
        if not isinstance(found, dict):
            raise DataError(f"{file}: expected an object of data sets, got {type(found).__name__}")
        entries = {name: _Dataset.model_validate(entry) for name, entry in found.items()}
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: not a meta.json of MMPR ({' '.join(str(error).split())[:200]})") from error
    return list(_resolved(entries, file))


def meta_path(path: str | Path) -> Path:
    """The `meta.json` that a path means: itself, or the one in a folder.

    Raises:
        StageError: there is none.
    """
    path = Path(path)
    file = path / META if path.is_dir() else path
    if not file.is_file():
        raise StageError(f"no {META} at {path}: expected MMPR data (a {META} beside its annotations and images)")
    return file


def unpacked_hint(folder: Path) -> str:
    """What to do where annotations are missing and their archive lies there."""
    return f"; run `unzip {ANNOTATIONS_ZIP}` in {folder} first" if (folder / ANNOTATIONS_ZIP).is_file() else ""


def _resolved(entries: dict[str, _Dataset], file: Path) -> Iterator[MetaEntry]:
    base = file.parent.resolve()
    for name, entry in entries.items():
        folder, annotation = _inside(entry.root, file.parent), _inside(entry.annotation, file.parent)
        if not annotation.is_file():
            raise StageError(
                f"{file}: annotation of {name!r} is not a file at {annotation}{unpacked_hint(file.parent)}"
            )
        relative = folder.relative_to(base).as_posix()
        yield MetaEntry(name, "" if relative == "." else relative, annotation, entry.repeat_time, entry.data_augment)


def _inside(path: str, base: Path) -> Path:
    first, _, rest = path.partition("/")
    repeats = first == base.resolve().name and not resolve_inside(path, base).exists()
    return resolve_inside(rest if repeats else path, base)
