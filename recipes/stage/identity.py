"""What an input is: its content. Never its path, its time or its spelling, so a run may be moved, copied or renamed.

A file is its bytes, and the bytes of the images that its rows name. A folder is every file in it that a reader looks
at: weights, configuration, tokenizer, processor, template; or groups, with the problems and images behind them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ImageError
from mpo.multimodal.files import file_digest
from mpo.multimodal.hub import ADAPTER_CONFIG, adapter_base
from mpo.multimodal.images import resolve_inside

# Of a folder, what no later stage reads: for people, for resuming, or with times and paths in it.
ASIDE = ("manifest.json", "started.json", "log_history.json", "trainer_state.json", "training_args.bin",
         "quarantine.jsonl", "report.json")  # fmt: skip
ASIDE_ENDINGS = (".md", ".lock", ".tmp", ".sqlite", ".sqlite-wal", ".sqlite-shm", ".sqlite.lock")


def file_content(path: Path, *, image_root: Path | None = None) -> str:
    """Content key of a file: its bytes, and those of the image files that rows of JSON lines name.

    Args:
        path: of a file.
        image_root: where the images lie; None is the file's own folder.
    """
    images = _images(path, image_root or path.parent) if path.suffix == ".jsonl" else ()
    return _joined([file_digest(path), *images])


def folder_content(folder: Path, *, problems: Path | None = None, image_root: Path | None = None) -> str:
    """Content key of a folder: names and bytes of its own files, and the problems that its groups name.

    Args:
        folder: of a model or of a finished stage.
        problems: the file behind its groups, if it holds groups.
        image_root: where the images of these problems lie; None is the folder of `problems`.
    """
    files = sorted(path for path in folder.iterdir() if is_content(path))
    names = [f"{path.name} {file_digest(path)}" for path in files]
    return _joined([*names, *([file_content(problems, image_root=image_root)] if problems else [])])


def model_content(folder: Path) -> str:
    """Content key of a model's folder; of an adapter its own files, but for where its base lies, and the base's key."""
    base = adapter_base(folder)
    if base is None:
        return folder_content(folder)
    files = sorted(path for path in folder.iterdir() if is_content(path) and path.name != ADAPTER_CONFIG)
    said = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    told = {key: value for key, value in said.items() if key not in ("base_model_name_or_path", "revision")}
    names = [f"{path.name} {file_digest(path)}" for path in files]
    return _joined([*names, json.dumps(told, sort_keys=True), folder_content(base)])


def is_content(path: Path) -> bool:
    """Whether a later stage may read this file of a folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> for name in ("generation_config.json", "README.md", ".gitattributes"):
        ...     _ = (folder / name).write_text("")
        >>> [path.name for path in folder.iterdir() if is_content(path)]
        ['generation_config.json']
    """
    name = path.name
    aside = name in ASIDE or name.startswith((".", "LICENSE")) or name.endswith(ASIDE_ENDINGS)
    return not aside and path.is_file()


def _images(path: Path, root: Path) -> Iterator[str]:
    """A digest of each image file, in the order of the rows; what cannot be read says so when it is decoded."""
    seen: dict[str, str] = {}
    with path.open("rb") as lines:
        for line in lines:
            for name in _named(line):
                if name not in seen:
                    try:
                        seen[name] = file_digest(resolve_inside(name, root))
                    except (ImageError, OSError):
                        seen[name] = "unreadable"
                yield seen[name]


def _named(line: bytes) -> Iterable[str]:
    """The image paths of a row."""
    if b'"image' not in line:
        return ()
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    named: Any = (row.get("images") or row.get("image")) if isinstance(row, dict) else None
    return [name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str)]


def _joined(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
