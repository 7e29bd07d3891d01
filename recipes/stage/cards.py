"""What the cards of data sets and models share: Markdown that no name can break out of, and where a stage came from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.stage.folder import MANIFEST, manifest_of

CARD = "README.md"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A section with one table; cells are one line each."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    ]
    return f"## {title}\n\n" + "\n".join(cells)


def code(text: str) -> str:
    r"""Inline code, in which neither Markdown nor HTML means anything.

    Example:
        >>> code("a`<b>\n")
        "`a'<b> `"
    """
    return "`" + re.sub(r"\s", " ", text).replace("`", "'") + "`"


def short(value: Any) -> str:
    """A setting as inline code; of a path its last part.

    Example:
        >>> short("/home/someone/models/base"), short(0.1)
        ('`base`', '`0.1`')
    """
    text = str(value)
    return code(Path(text).name if os.sep in text else text)


def fenced(text: str, language: str = "") -> str:
    """A block of code, fenced with more backticks than the text has in a row."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def provenance(stage: Mapping[str, Any], seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """One line per stage: the settings of this one, then of every finished stage that it reads, back to the first.

    Args:
        stage: of `Stage.provenance`.
        seen: folders that have their line.
    """
    told = {**stage["settings"], **stage["sources"]}
    yield f"- {stage['stage']}: " + ", ".join(f"{key} {short(value)}" for key, value in sorted(told.items()))
    for path in sorted({*stage["sources"].values()}):
        if path not in seen and (Path(path) / MANIFEST).is_file():
            manifest = manifest_of(path)
            sources = {name: os.path.normpath(os.path.join(path, at[0])) for name, at in manifest["sources"].items()}
            sources |= manifest.get("hub", {})
            before = {"stage": manifest["stage"], **manifest["fingerprint"], "sources": sources}
            yield from provenance(before, seen | {path})
            if verdicts := manifest["counts"].get("verdicts"):
                yield f"- verdicts: {', '.join(f'{n} {name}' for name, n in verdicts.items())}"
