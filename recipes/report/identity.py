"""Which run a page is about: models, data, commit, dates, machine, time and tokens, as its manifests have them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.report.summary import BASELINE, TRAINED
from recipes.stage.folder import manifest_of
from recipes.stage.order import stages_in

UNKNOWN = "not recorded"
DRAWN = "sample"  # the stage whose responses were drawn


def identity(runs: Sequence[Path]) -> list[tuple[str, str]]:
    """Name → value, for people; what no manifest has is named as not recorded.

    Args:
        runs: one per seed; models and data are those of the first.
    """
    stages = [[(folder, manifest_of(folder)) for folder in stages_in(run)] for run in runs]
    every = [manifest for rows in stages for _, manifest in rows]
    first = {str(folder.relative_to(runs[0])): manifest for folder, manifest in stages[0]}
    made = [manifest.get("made", {}) for manifest in every]
    dates = sorted(at for one in made if (at := one.get("at")))
    return [
        ("policy", _input(first, f"test/{BASELINE}/samples", "policy")),
        ("trained policy", _input(first, f"test/{TRAINED}/samples", "policy")),
        ("reward model", _input(first, f"test/{TRAINED}/scored", "prm") or _input(first, "preference/scored", "prm")),
        ("test problems", _input(first, f"test/{BASELINE}/samples", "problems")),
        ("preference problems", _input(first, "preference/samples", "problems")),
        ("reward model’s problems", _input(first, "prm_samples", "problems")),
        ("commit", _distinct(one.get("commit") for one in made)),
        ("made", f"{_day(dates[0])} to {_day(dates[-1])}" if dates else UNKNOWN),
        ("machine", _distinct(one.get("machine") for one in made)),
        ("time", " / ".join(_duration(sum(m["seconds"] for _, m in rows)) for rows in stages)),
        ("tokens drawn", " / ".join(_tokens(rows) for rows in stages)),
    ]


def settings_of(run: Path) -> list[tuple[str, str]]:
    """Stage → its settings; of a path only its last two parts, since a report travels."""
    rows = []
    for folder in stages_in(run):
        manifest = manifest_of(folder)
        settings = manifest["fingerprint"]["settings"] | {name: at[0] for name, at in manifest["sources"].items()}
        settings |= manifest.get("hub", {})
        text = ", ".join(f"{name} = {_short(value)}" for name, value in sorted(settings.items()))
        rows.append((str(folder.relative_to(run)), text))
    return rows


def counts_text(counts: Sequence[Mapping[str, Any]]) -> str:
    """What a stage counted, each number over the seeds."""
    names = dict.fromkeys(name for row in counts for name in row)
    parts = []
    for name in names:
        values = dict.fromkeys(_flat(row.get(name)) for row in counts)
        if any(values):
            parts.append(f"{name} {' / '.join(values)}")
    return ", ".join(parts)


def _input(stages: Mapping[str, Mapping[str, Any]], folder: str, name: str) -> str:
    """The last parts of an input's path, and the start of the key of its content."""
    manifest = stages.get(folder)
    if manifest is None or name not in manifest["sources"]:
        return ""
    path = Path(manifest["sources"][name][1])
    return f"{'/'.join(path.parts[-2:])} · {manifest['fingerprint']['inputs'].get(name, '')[:12]}"


def _distinct(values: Iterable[str | None]) -> str:
    found = dict.fromkeys(value[:60] for value in values if value)
    return "; ".join(found) or UNKNOWN


def _day(at: str) -> str:
    return at[:16].replace("T", " ") + " UTC"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _tokens(stages: Sequence[tuple[Path, Mapping[str, Any]]]) -> str:
    """Of all responses that were drawn, as their generator counted them."""
    counts = [_drawn(folder / "groups.jsonl") for folder, manifest in stages if manifest["stage"] == DRAWN]
    total = sum(tokens for count in counts for tokens in count)
    return f"{total:,}".replace(",", " ") if total else UNKNOWN


def _drawn(groups: Path) -> Iterator[int]:
    if groups.exists():
        for line in groups.read_text(encoding="utf-8").splitlines():
            yield from (rollout.get("num_tokens") or 0 for rollout in json.loads(line)["rollouts"])


def _short(value: Any) -> str:
    text = str(value)
    return "/".join(Path(text).parts[-2:]) if isinstance(value, str) and "/" in text else text


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
