"""The preference pairs of a run as texts: what was chosen over what, and where the two first differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.interchange.trl_rows import read_trl_parquet
from rewards.steps import split_on_blank_lines

PAIRS = Path("pairs") / "pairs.parquet"


@dataclass(frozen=True)
class PairTexts:
    """Both sides of a pair, the rule that made it, and the part of the rejected one that counts."""

    problem_id: str
    chosen: str
    rejected: str
    source: str
    rejected_span: tuple[int, int] | None = None  # characters that carried the gradient; None: all


def read_pairs(run: Path) -> dict[str, list[PairTexts]]:
    """Problem id → its pairs, in file order; empty without a file."""
    found: defaultdict[str, list[PairTexts]] = defaultdict(list)
    if (run / PAIRS).exists():
        columns = ["problem_id", "chosen", "rejected", "source", "rejected_span"]
        for row in read_trl_parquet(run / PAIRS, columns=columns):
            chosen, rejected = _text_of(row["chosen"]), _text_of(row["rejected"])
            span = None if row["rejected_span"] is None else tuple(row["rejected_span"])
            found[row["problem_id"]].append(PairTexts(row["problem_id"], chosen, rejected, row["source"], span))
    return dict(found)


def first_difference(a: str, b: str) -> int:
    """The index of the first step that is not the same in both.

    Example:
        >>> first_difference("a\\n\\nb\\n\\nc", "a\\n\\nx\\n\\nc")
        1
    """
    steps = zip(_texts(a), _texts(b), strict=False)
    return next((i for i, (x, y) in enumerate(steps) if x != y), min(len(_texts(a)), len(_texts(b))))


def _texts(text: str) -> list[str]:
    return [step.text for step in split_on_blank_lines(text)] if text.strip() else []


def _text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    return "".join(block["text"] for message in messages for block in message["content"] if block["text"] is not None)


def yield_rows(pairs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, int] | None]]]:
    """Pairing rule → what it gives in each seed; empty where no report has it."""
    rules = dict.fromkeys(rule for row in pairs for rule in row.get("yields", {}))
    return [(rule.replace("_", " "), [row.get("yields", {}).get(rule) for row in pairs]) for rule in rules]
