"""`mpo check RUN`: whether every finished stage of a run still holds what it wrote, from the inputs that it names.

Every file is read and compared with the SHA-256 in its manifest, checkpoints and stores too. Nothing is changed: the
command that made a damaged stage makes it again, or says why it cannot.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from mpo.multimodal import checkpoint_files
from mpo.multimodal.errors import MPOError, StageError
from mpo.multimodal.text import one_line
from recipes.config import CheckConfig
from recipes.stage.folder import content_of, faults_of, manifest_of
from recipes.stage.manifest import input_root_of
from recipes.stage.order import stages_in


def check(config: CheckConfig) -> int:
    """Print a line for each stage; returns how many files of finished stages were read.

    Raises:
        StageError: no finished stage is there, or something is damaged; all of it was printed.
    """
    stages = stages_in(config.run)
    if not stages:
        raise StageError(f"{config.run} holds no finished stage: expected the folder of a run, or of a stage")
    damaged, files = 0, 0
    for folder in stages:
        found = [one_line(fault) for fault in _faults(folder)]
        damaged += bool(found)
        files += len(manifest_of(folder)["files"]) if not found else 0
        print(f"{folder}: {'; '.join(found) or 'whole'}")
    if damaged:
        raise StageError(
            f"{damaged} of {len(stages)} stages of {config.run} are damaged, see above: run the commands that made "
            "them again, in this order"
        )
    print(f"{len(stages)} stages, {files} files: all whole")
    return files


def _faults(folder: Path) -> Iterator[str]:
    try:
        yield from faults_of(folder)
        yield from _other_inputs(folder)
    except StageError as error:
        yield str(error)
    for saved in sorted(folder.glob("checkpoint-*")):
        yield from (f"{saved.name}: {fault}" for fault in checkpoint_files.faults_of(saved))
    for store in sorted(folder.glob("*.sqlite")):
        yield from _store_faults(store)


def _other_inputs(folder: Path) -> Iterator[str]:
    """Inputs that are here, and are others than the stage was made from; those that have gone are no fault of it."""
    manifest = manifest_of(folder)
    for name, (beside, there) in manifest["sources"].items():
        path = next((path for path in (folder / beside, Path(there)) if path.exists()), None)
        if path is None:
            continue
        try:
            now = content_of(path, manifest["stage"], input_root_of(folder))
        except MPOError as error:
            yield f"its {name} cannot be used ({error})"
        else:
            if now != manifest["fingerprint"]["inputs"].get(name):
                yield f"its {name} at {path} has changed since"


def _store_faults(store: Path) -> Iterator[str]:
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        said = str(error)
    if said != "ok":
        yield f"{store.name}: {said}"
