"""What a stage ends with: the line that accounts for its rows, and the circumstances that its manifest keeps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from mpo.multimodal.text import one_line

CHECKOUT = Path(__file__).resolve().parents[2]
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


def circumstances() -> dict[str, str | None]:
    """When, with which code and on what machine: no path, no host or user name."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit_of(CHECKOUT),
        "machine": machine(),
    }


def machine() -> str:
    """Cores, memory and accelerators of this machine."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    memory = f", {pages / 2**30:.0f} GiB" if pages else ""
    torch = sys.modules.get("torch")  # a stage without torch uses no accelerator
    used = torch is not None and torch.cuda.is_available()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch and used else []
    found = ", ".join(f"{devices.count(name)} × {name}" for name in dict.fromkeys(devices))
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{memory}{', ' if found else ''}{found}"


@cache
def commit_of(folder: Path) -> str | None:
    """The commit of a checkout and whether its files were changed; None where this is an installed package."""
    if not (folder / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}, with changes" if changes else commit
