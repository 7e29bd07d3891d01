"""What a finished stage says of its files, size and SHA-256 of each, and whether it still holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpo.multimodal.checkpoint_files import fault_of
from mpo.multimodal.files import file_digest
from recipes.stage.identity import ASIDE_ENDINGS

OWN = ("manifest.json", "started.json")  # what speaks of the files, and is none of them
# Folders inside a stage's that it does not vouch for: checkpoints vouch for themselves, trackers write when they like.
APART = ("checkpoint-", "wandb", "tensorboard", "trackio")


def vouched(out: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a stage; not of what it keeps for a resume, nor of stages inside.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> _ = (folder / "groups.jsonl").write_text("{}"), (folder / "calls.sqlite").write_text("")
        >>> files = vouched(folder)
        >>> list(files), faults(folder, files)
        (['groups.jsonl'], [])
        >>> _ = (folder / "groups.jsonl").write_text("[]")
        >>> faults(folder, files)
        ['groups.jsonl does not match its SHA-256']
    """
    found = sorted(_files(out))
    return {str(path.relative_to(out)): {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in found}


def faults(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the files of a folder, one line for each; every file is read, a second a gigabyte or so."""
    return [f"{name} {fault}" for name, kept in files.items() if (fault := fault_of(folder / name, kept))]


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith((".", *APART)) or path.name in OWN:
            continue
        if path.is_dir() and not path.is_symlink() and not (path / OWN[0]).exists():
            yield from _files(path)
        elif path.is_file() and (path.suffix == ".md" or not path.name.endswith(ASIDE_ENDINGS)):
            yield path
