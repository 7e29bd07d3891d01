"""The problems of a benchmark, from its published file: rows of other splits left out, options and answers in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import DataError
from recipes.evaluating.settings import BenchmarkEntry
from recipes.stage.folder import open_stage
from recipes.stage.groups import write_problems
from recipes.stage.problem_source import PROBLEMS, columns_of, kept_problems
from recipes.stage.quarantine import Quarantine
from rewards.benchmarks.table import prepared
from rewards.interchange.hub import HUB
from rewards.interchange.problems import read_problems, with_options
from rewards.interchange.tables import files_of


@dataclass
class BenchmarkProblems:
    """Settings of the stage that writes a benchmark's problems."""

    source: Path
    out: Path
    benchmark: str
    columns: list[str] = field(default_factory=list)
    keep: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    hub: str = ""  # the address, which is a setting where it is no path
    limit: int = 0
    image_root: Path | None = None


def benchmark_problems(entry: BenchmarkEntry, out: Path) -> Path:
    """Write `problems.jsonl` and `images/`; returns the file.

    Raises:
        DataError: no row gives a problem.
    """
    row, address = entry.row, entry.problems if entry.problems.startswith(HUB) else ""
    config = BenchmarkProblems(
        Path(entry.problems), out, row.name, list(entry.columns), dict(row.keep), dict(row.columns), address,
        entry.limit, entry.image_root,
    )  # fmt: skip
    stage = open_stage("benchmark", config, inputs=[] if address else files_of(config.source))
    if stage.complete:
        return out / PROBLEMS
    quarantine = Quarantine()
    found = read_problems(
        address or config.source,
        columns=columns_of(entry.columns),
        image_root=entry.image_root,
        prepare=prepared(row),
        ask=_as_it_is if row.shows_options else with_options,
    )
    kept = kept_problems(found, out, quarantine)
    problems = list(islice(kept, entry.limit) if entry.limit else kept)
    quarantine.write(out)
    if not problems:
        first = "; ".join(bad["detail"] for bad in quarantine.rows[:3])
        raise DataError(f"no row of {entry.problems} gives a problem of {row.name}: {quarantine.counts()}: {first}")
    write_problems(out / PROBLEMS, problems)
    rejected = quarantine.counts()
    counts: dict[str, Any] = {"in": len(problems) + sum(rejected.values()), "out": len(problems), "rejected": rejected}
    stage.finish({**counts, "expected": row.rows}, note=_note(len(problems), entry))
    return out / PROBLEMS


def _as_it_is(question: str, choices: Any, hint: str) -> str:
    """The question holds its options and its hint."""
    return question


def _note(count: int, entry: BenchmarkEntry) -> str:
    """What is said of the number of problems."""
    expected = entry.row.rows
    if expected is None or entry.limit or count == expected:
        return ""
    return f"{entry.row.name} has {expected} problems, these are {count}"
