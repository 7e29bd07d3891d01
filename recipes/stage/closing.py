"""The line that a stage ends with: what came in, what went out, what was lost and why, and the number that matters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpo.multimodal.text import one_line

QUARANTINE = "quarantine.jsonl"  # names each row that a stage could not use
REASONS = 5  # named in the line, the most frequent first; the manifest has all


def closing_line(name: str, counts: Mapping[str, Any], out: Path, *, seconds: float, note: str = "") -> str:
    """One line for the terminal.

    Args:
        name: of the stage.
        counts: as in its manifest: `in`, `out` and `rejected` (reason → number) where it has an account.
        out: the stage's folder.
        seconds: that it took.
        note: the number that matters, in words.

    Example:
        >>> closing_line("sample", {"in": 8, "out": 6, "rejected": {"bad row": 2}}, Path("run/s"), seconds=3.2)
        'sample: 8 in, 6 out, 2 rejected (bad row 2); 3 s; run/s'
    """
    parts = []
    if "in" in counts:
        lost_by = {reason: number for reason, number in counts["rejected"].items() if number}
        rejected = sorted(lost_by.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{reason} {number}" for reason, number in rejected[:REASONS])
        more = ", …" if len(rejected) > REASONS else ""
        lost = f", {sum(counts['rejected'].values())} rejected ({named}{more})" if rejected else ", nothing rejected"
        parts.append(f"{counts['in']} in, {counts['out']} out{lost}")
    parts += [note] if note else []
    listed = f", rejects in {QUARANTINE}" if (out / QUARANTINE).is_file() else ""
    return one_line(f"{name}: {'; '.join([*parts, duration(seconds), str(out)])}{listed}")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as many as a reader wants to know.

    Example:
        >>> duration(8.4), duration(400), duration(8000)
        ('8 s', '7 min', '2.2 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
