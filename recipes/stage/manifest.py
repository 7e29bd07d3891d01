"""The manifest of a finished stage, and where the files lie that it names: beside it, or where the run was made."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import StageError
from recipes.stage.vouching import OWN

MANIFEST, STARTED = OWN  # the second: of a stage that resumes where it was killed: whose work lies in the folder


def manifest_of(folder: str | Path) -> dict[str, Any]:
    """The manifest of a complete stage.

    Raises:
        StageError: there is none, or it is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise StageError(f"{folder} holds no finished stage (no {MANIFEST}); run the stage that writes it first")
    manifest = read_own(path)
    if manifest is None:
        raise StageError(
            f"{path} is damaged: expected the JSON of a finished stage; run the stage that writes it again"
        )
    return manifest


def problems_of(folder: str | Path) -> Path:
    """The problems file behind a groups folder: where it lay beside the folder, else where it lay on this machine.

    Raises:
        StageError: the folder holds no groups, or the file is in neither place.
    """
    places = manifest_of(folder).get("problems")
    if not places:
        raise StageError(f"{folder} holds no rollout groups; expected the folder of `mpo sample` or a stage after it")
    return _found(folder, places)


def image_root_of(folder: str | Path) -> Path | None:
    """The folder that holds the images of a groups folder's problems; None if it is that of the problems' file.

    Raises:
        StageError: the folder holds no finished stage, or its images are gone.
    """
    problems = manifest_of(folder).get("problems")
    its_own = problems is not None and Path(problems[0]).parent == Path()
    return None if its_own else input_root_of(folder)


def input_root_of(folder: str | Path) -> Path | None:
    """The folder that holds the images of the problems that a stage has read; errors are those of `image_root_of`."""
    places = manifest_of(folder).get("image_root")
    return _found(folder, places) if places else None


def read_own(path: Path) -> dict[str, Any] | None:
    """A file that we wrote; None if it is not there, or was cut short."""
    try:
        read = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return read if isinstance(read, dict) and {"settings", "inputs"} <= {*read.get("fingerprint", {})} else None


def place(path: Path, out: Path) -> list[str]:
    """Where a path lies, beside a folder and on this machine; links to its folder are followed, its own is not."""
    real = os.path.join(os.path.realpath(path.parent), path.name)
    return [os.path.relpath(real, os.path.realpath(out)), real]


def _found(folder: str | Path, places: Sequence[str]) -> Path:
    for path in (Path(os.path.realpath(folder)) / places[0], Path(places[1])):
        if path.exists():
            return Path(os.path.normpath(path))
    raise StageError(f"{folder}: {places[1]} is gone: expected it there, or at {places[0]} seen from the folder")
