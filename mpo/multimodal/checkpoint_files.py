"""What lies in a folder of checkpoints and what of it is whole: the manifest is written last, for every file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import StageError
from mpo.multimodal.files import file_digest, write_atomic

MANIFEST = "complete.json"
PREFIX = "checkpoint"  # PREFIX_CHECKPOINT_DIR of transformers, whose import takes seconds

_log = logging.getLogger(__name__)


def write_manifest(folder: Path, settings: Mapping[str, Any], *, ranks: int = 1) -> None:
    """Vouch for every file that is in a checkpoint now: its size and SHA-256, flushed to the disk before the manifest.

    Args:
        folder: a checkpoint that is written out, by all ranks.
        settings: what the run was told, as plain data.
        ranks: how many processes wrote it.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": digest}
    manifest = {"files": files, "settings": dict(settings), "ranks": ranks}
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1))


def faults_of(folder: Path) -> list[str]:
    """Why a checkpoint cannot be used; empty for a complete one. Every file is read: about one second per gigabyte."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
    except FileNotFoundError:
        return [f"no {MANIFEST}: the save did not finish, or this package did not write the checkpoint"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read: {error}"]
    return [f"{name} {fault}" for name, expected in files if (fault := fault_of(folder / name, expected))]


def newest_complete(output_dir: str | Path) -> Path:
    """The complete checkpoint with the most steps; every later one that is not complete is named in a warning.

    Raises:
        StageError: there is none; the message says what is wrong with each.
    """
    wrong = []
    for _, path in sorted(checkpoints(Path(output_dir)), reverse=True):
        faults = faults_of(path)
        if not faults:
            return path
        wrong.append(f"{path.name}: {faults[0]}")
        _log.warning("skipping %s: %s", path, "; ".join(faults))
    reasons = "; ".join(wrong) or "it holds no checkpoint"
    raise StageError(f"nothing to resume in {output_dir}: {reasons}; start without resume_from_checkpoint")


def fault_of(path: Path, expected: Mapping[str, Any]) -> str | None:
    """What is wrong with a file of which `bytes` and `sha256` are expected; None if nothing is."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != expected["bytes"]:
        return f"has {path.stat().st_size} bytes, expected {expected['bytes']}"
    return None if file_digest(path) == expected["sha256"] else "does not match its SHA-256"


def checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint that is there, whole or not."""
    folders = [path for path in output_dir.glob(f"{PREFIX}-*") if path.is_dir()]
    named = [(re.fullmatch(rf"{PREFIX}-(\d+)", path.name), path) for path in folders]
    return [(int(match[1]), path) for match, path in named if match]
