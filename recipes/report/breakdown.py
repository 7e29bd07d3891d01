"""Where a difference comes from: accuracy, verdicts and lengths before and after MPO, whole and by kinds of problems.

A kind is a value of `meta["source"]` or `meta["kind"]` of a problem, or the verifier that checked it. A column with one
value for all problems says nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mpo.multimodal.errors import DataError
from recipes.report.measures import LENGTHS, VERDICTS, Measure, difference
from recipes.stage.folder import MANIFEST, manifest_of
from recipes.stage.groups import problems_of, read_problems
from rewards.types import Problem
from rewards.verifying.auto import picked

KINDS = ("source", "kind", "verifier")
MOST = 12  # values of a kind in the table, the most frequent first

Arms = Mapping[str, Mapping[str, Measure]]


def breakdown(runs: Sequence[Path], arms: Arms) -> list[dict[str, Any]]:
    """One row for all problems, and one for each value of a kind.

    Args:
        runs: of which the first that has its problems says what they are.
        arms: the policy before and after, in this order, or one of them.

    Returns:
        Rows of `by` ("" for all), `value`, `problems`, `arms` (arm → accuracy, verdicts, lengths) and, with two arms,
        `difference`; empty without samples.
    """
    sampled = {arm: measures["sampled"].averaged() for arm, measures in arms.items() if "sampled" in measures}
    if not sampled:
        return []
    ids = list(next(iter(sampled.values())))
    rows = [_row("", "", ids, arms)]
    for by, values in _kinds(runs, list(arms)).items():
        groups: dict[str, list[str]] = {}
        for identifier in ids:
            groups.setdefault(values.get(identifier, "none"), []).append(identifier)
        if len(groups) > 1:
            largest = sorted(groups, key=lambda value: (-len(groups[value]), value))
            rows += [_row(by, value, groups[value], arms) for value in largest[:MOST]]
            rest = [identifier for value in largest[MOST:] for identifier in groups[value]]
            rows += [_row(by, f"{len(largest) - MOST} others", rest, arms)] if rest else []
    return rows


def kinds_of(problem: Problem, verifier: str) -> dict[str, str]:
    """Kind → value of one problem; a kind that the problem does not have is left out.

    Args:
        problem: of the test.
        verifier: of `mpo verify`, for problems that name none.
    """
    named = {by: str(problem.meta[by]) for by in KINDS if isinstance(problem.meta.get(by), str | int)}
    if "verifier" not in named and verifier:
        named["verifier"] = picked(problem) if verifier == "auto" and problem.answer is not None else verifier
    return named


def verifier_of(run: Path, arm: str) -> str:
    """The verifier that `mpo verify` was given for an arm's responses; empty where that is not known."""
    folder = run / "test" / arm / "verified"
    if not (folder / MANIFEST).exists():
        return ""
    return str(manifest_of(folder)["fingerprint"]["settings"].get("verifier", ""))


def _kinds(runs: Sequence[Path], arms: Sequence[str]) -> dict[str, dict[str, str]]:
    """Kind → problem id → value; empty where the problems are not there any more."""
    found: dict[str, dict[str, str]] = {by: {} for by in KINDS}
    for run in runs:
        for arm in arms:
            folder = next((f for f in (run / "test" / arm).glob("*/") if (f / MANIFEST).exists()), None)
            if folder is None:
                continue
            try:
                problems = read_problems(problems_of(folder), on_bad=lambda *_: None)
            except (DataError, OSError):
                continue
            verifier = verifier_of(run, arm)
            for identifier, problem in problems.items():
                for by, value in kinds_of(problem, verifier).items():
                    found[by][identifier] = value
            return {by: values for by, values in found.items() if values}
    return {}


def _row(by: str, value: str, ids: Collection[str], arms: Arms) -> dict[str, Any]:
    kept = set(ids)
    sides = [measures.get("sampled") for measures in arms.values()]
    return {
        "by": by,
        "value": value,
        "problems": len(kept),
        "arms": {arm: _side(measures, kept) for arm, measures in arms.items() if "sampled" in measures},
        "difference": difference(sides[-1], sides[0], kept) if len(sides) == 2 else None,
    }


def _side(measures: Mapping[str, Measure], kept: Collection[str]) -> dict[str, Any]:
    names = dict.fromkeys(VERDICTS.values())
    return {
        "accuracy": _mean(measures["sampled"], kept),
        "verdicts": {name: _mean(measures[name], kept) for name in names},
        "lengths": {name: _mean(measures[name], kept) for name in LENGTHS if name in measures},
    }


def _mean(measure: Measure, kept: Collection[str]) -> float | None:
    values = [value for identifier, value in measure.averaged().items() if identifier in kept]
    return fmean(values) if values else None
