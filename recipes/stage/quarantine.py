"""Rows that a stage could not use: `quarantine.jsonl` beside its output names each, the manifest counts them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ImageError
from mpo.multimodal.files import write_atomic
from mpo.multimodal.images import image_sha256, load_image
from recipes.stage.closing import QUARANTINE
from rewards.types import Problem


class Quarantine:
    """Collects bad rows while the stage continues with the good ones.

    Example:
        >>> quarantine = Quarantine()
        >>> quarantine.add("p7", "unreadable image", "image 'x.png' does not exist")
        >>> quarantine.counts()
        {'unreadable image': 1}
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def add(self, id: str, reason: str, detail: str) -> None:
        """One row: its id (or file and line), the kind of fault, and what exactly was wrong."""
        self.rows.append({"id": id, "reason": reason, "detail": detail})

    def counts(self, *, times: int = 1) -> dict[str, int]:
        """Kind of fault → rows, each counted `times`."""
        return {reason: times * n for reason, n in sorted(Counter(row["reason"] for row in self.rows).items())}

    def write(self, folder: Path) -> None:
        """Write the file if there is anything in it."""
        if self.rows:
            lines = [json.dumps(row) + "\n" for row in self.rows]  # ASCII: a row may hold what UTF-8 cannot
            write_atomic(folder / QUARANTINE, "".join(lines))


def readable(problems: Iterable[Problem], quarantine: Quarantine) -> tuple[list[Problem], Mapping[Any, str]]:
    """The problems whose images all decode, and the content key of each image; the others go into quarantine."""
    kept, digests = [], dict[Any, str]()
    for problem in problems:
        try:
            new = [image for image in problem.images if image not in digests]  # problems share images
            digests |= {image: image_sha256(load_image(image)) for image in new}
        except ImageError as error:
            quarantine.add(problem.id, "unreadable image", str(error))
        else:
            kept.append(problem)
    return kept, digests
