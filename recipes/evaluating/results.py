"""What `results/` holds: every cell in `evaluation.json`, and the tables and the page that are read off it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import DataError
from mpo.multimodal.files import file_digest, read_json, write_atomic
from recipes.data.overlap import OVERLAP, Overlap
from recipes.evaluating.page import PAGE, write_page
from recipes.evaluating.settings import BenchmarkEntry, Matrix
from recipes.evaluating.tables import FILES, print_tables
from recipes.stage.folder import MANIFEST, RESULTS, manifest_of, open_stage
from recipes.stage.groups import iter_groups, read_problems
from rewards.choosing.evaluation import UNSCORED
from rewards.choosing.matrix import VOTE, Critic, Measured, breakdown, cell, overall
from rewards.types import FinishReason, Problem, Rollout, Verdict

EVALUATION = "evaluation.json"
SECONDS = "seconds.json"  # apart, since they are another time others
# Beside the critics of the settings file: what every table compares with, and rulers that read neither image nor text.
RULERS = (
    Critic("pass@1", "random"),
    Critic("majority", VOTE),
    Critic("oracle", "oracle"),
    Critic("first", "first"),
    Critic("longest", "longest"),
    Critic("shortest", "shortest"),
)


@dataclass(frozen=True)
class Part:
    """What one policy's responses to one benchmark gave.

    Attributes:
        groups, verified: folders of the responses.
        votes: folder of what votes and rulers are worth.
        chosen: critic → folder of what its choices are worth; None for a vote.
        most: responses to each problem, at least.
    """

    policy: str
    entry: BenchmarkEntry
    groups: Path
    verified: Path
    votes: Path
    chosen: Mapping[str, Path | None]
    most: int


@dataclass
class ResultsSettings:
    """Settings of the stage that writes the results."""

    out: Path
    matrix: dict[str, Any]
    contents: list[str]


def write_results(
    matrix: Matrix, problems: Mapping[str, Path], parts: Sequence[Part], found: Mapping[str, Overlap], out: Path
) -> Path:
    """Write `results/`, print the table, and return the folder."""
    critics = _critics(matrix)
    contents = [file_digest(folder / RESULTS) for part in parts for folder in _folders(part)]
    described = {"ns": matrix.ns, "critics": [asdict(one) for one in critics], "parts": _names(parts)}
    described["benchmarks"] = [_benchmark(part, None, None) for part in parts]
    described["overlap"] = {name: asdict(one) for name, one in found.items()}
    stage = open_stage("evaluate", ResultsSettings(out / "results", described, contents), inputs=[], refuse=False)
    if not stage.complete:
        (stage.out / MANIFEST).unlink(missing_ok=True)
        evaluation = _evaluation(matrix, critics, problems, parts, found)
        write_atomic(stage.out / EVALUATION, json.dumps(evaluation, indent=1, allow_nan=False) + "\n")
        for name, text_of in FILES.items():
            write_atomic(stage.out / name, text_of(evaluation))
        if found:
            write_atomic(stage.out / OVERLAP, _listed(out / "overlap" / OVERLAP, list(problems)))
        write_page(evaluation, stage.out)
        cells = len(evaluation["cells"])
        stage.finish({"cells": cells}, note=f"{cells} cells; {stage.out / PAGE}")
    write_atomic(out / SECONDS, json.dumps([_seconds(part) for part in parts], indent=1) + "\n")
    print_tables(read_json(stage.out / EVALUATION), [_seconds(part) for part in parts])
    return stage.out


def _critics(matrix: Matrix) -> list[Critic]:
    """Those of the settings file and the rulers; a vote of the file takes the majority's place."""
    own = [entry.critic for entry in matrix.critics]
    named = {critic.selector for entry, critic in zip(matrix.critics, own, strict=True) if entry.settings.vote}
    return [*(ruler for ruler in RULERS if ruler.selector not in named), *own]


def _evaluation(
    matrix: Matrix,
    critics: Sequence[Critic],
    problems: Mapping[str, Path],
    parts: Sequence[Part],
    found: Mapping[str, Overlap],
) -> dict[str, Any]:
    known = {name: read_problems(path) for name, path in problems.items()}
    cells, breakdowns, totals = [], [], []
    by_policy: dict[str, list[tuple[Part, dict[str, Measured]]]] = {}
    for part in parts:
        measured = {critic.name: _measured(part, critic, known[part.entry.row.name]) for critic in critics}
        by_policy.setdefault(part.policy, []).append((part, measured))
        names = {"policy": part.policy, "benchmark": part.entry.row.name}
        for critic in critics:
            for n in (k for k in matrix.ns if k <= part.most):
                made = cell(measured[critic.name], critic, n, most=part.most)
                cells.append({**names, "critic": critic.name, "n": n, **made, "unscored": _unscored(part, critic)})
            by = breakdown(
                measured[critic.name], critic.selector, max(k for k in matrix.ns if k <= part.most), part.entry.row.by
            )
            if len(by) > 1:
                breakdowns.append({**names, "critic": critic.name, "by": by})
    for policy, own in by_policy.items():
        most = min(part.most for part, _ in own)
        for critic in critics:
            for n in (k for k in matrix.ns if k <= most):
                total = overall([measured[critic.name] for _, measured in own], critic, n, most=most)
                totals.append({"policy": policy, "critic": critic.name, "n": n, "benchmarks": len(own), **total})
    return {
        "ns": matrix.ns,
        "seed": matrix.seed,
        "policies": list(by_policy),
        "benchmarks": [
            _benchmark(next(part for part in parts if part.entry.row.name == name), known[name], found.get(name))
            for name in known
            if any(part.entry.row.name == name for part in parts)
        ],
        "critics": [{**asdict(critic), "ruler": critic in RULERS} for critic in critics],
        "responses": [_responses(part, known[part.entry.row.name]) for part in parts],
        "cells": cells,
        "overall": totals,
        "breakdown": breakdowns,
        "warnings": [
            {"policy": part.policy, "benchmark": part.entry.row.name, "critic": name, "message": warning["message"]}
            for part in parts
            for name, folder in part.chosen.items()
            if folder is not None
            for warning in read_json(folder / RESULTS).get("warnings", ())
        ],
    }


def _measured(part: Part, critic: Critic, problems: Mapping[str, Problem]) -> Measured:
    """The critic's values, of those problems that are the benchmark's."""
    folder = part.chosen.get(critic.name) or part.votes
    found = read_json(folder / RESULTS)
    if critic.selector not in found["values"]:
        raise DataError(
            f"{critic.name} selects by {critic.selector}, and its PRM told no spread of any score of {part.policy} on "
            f"{part.entry.row.name}: train a PRM with --concentration_head, or select by prm"
        )
    kept = [place for place, id in enumerate(found["problem_ids"]) if id in problems]
    if not kept:
        raise DataError(
            f"no response of {part.policy} ({part.groups}) is to a problem of {part.entry.row.name}: its first problem "
            f"is {found['problem_ids'][0]!r}, the benchmark's is {next(iter(problems))!r}; the ids must be the same"
        )
    values = {
        name: {int(k): [column[place] for place in kept] for k, column in at.items()}
        for name, at in found["values"].items()
        if name in (critic.selector, *UNSCORED)
    }
    return Measured([problems[found["problem_ids"][place]] for place in kept], values, part.entry.row.metric)


def _unscored(part: Part, critic: Critic) -> float | None:
    """Share of the responses that the critic could not score."""
    folder = part.chosen.get(critic.name)
    if folder is None:
        return None
    found = read_json(folder / RESULTS)
    return found["unscored"] / max(1, manifest_of(folder)["counts"]["out"])


def _responses(part: Part, problems: Mapping[str, Problem]) -> dict[str, Any]:
    """What the responses are like: how long, how many were cut or could not be read, where two verifiers disagree."""
    rollouts: list[Rollout] = []
    foreign, answered = 0, set()
    for group in iter_groups(part.verified):
        if group.problem.id in problems:
            answered.add(group.problem.id)
            rollouts += group.rollouts
        else:
            foreign += 1
    tokens = [rollout.completion.num_tokens for rollout in rollouts if rollout.completion.num_tokens]
    total = max(1, len(rollouts))
    compared = [one for one in rollouts if _decided(one.verdict) and _decided(one.second_verdict)]
    return {
        "policy": part.policy,
        "benchmark": part.entry.row.name,
        "problems": len(answered),
        "unanswered": len(problems) - len(answered),
        "foreign": foreign,
        "responses": len(rollouts),
        "most": part.most,
        "tokens": sum(tokens) / len(tokens) if tokens else None,
        "tokens_known": len(tokens) / total,
        "truncated": sum(one.completion.finish_reason is FinishReason.LENGTH for one in rollouts) / total,
        "unparsable": sum(one.verdict is Verdict.UNPARSABLE for one in rollouts) / total,
        "undecided": sum(one.verdict in (Verdict.TIMEOUT, Verdict.ERROR) for one in rollouts) / total,
        "unverified": sum(one.verdict is None for one in rollouts) / total,
        "compared": len(compared),
        "disputed": sum(one.is_disputed for one in compared) / len(compared) if compared else None,
    }


def _decided(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.is_decided


def _benchmark(part: Part, problems: Mapping[str, Problem] | None, found: Overlap | None) -> dict[str, Any]:
    row = part.entry.row
    return {
        "name": row.name,
        "paper": row.paper,
        "licence": row.licence,
        "metric": row.metric,
        "verifier": row.verifier,
        "problems": len(problems) if problems is not None else None,
        "expected": row.rows if not part.entry.limit else None,
        "overlap": asdict(found) if found else None,
    }


def _listed(path: Path, names: Sequence[str]) -> str:
    """The near-duplicates, a line each, with the benchmark's name."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return "".join(json.dumps({"benchmark": names[row.pop("set")], **row}) + "\n" for row in rows)


def _folders(part: Part) -> list[Path]:
    return [part.votes, *(folder for folder in part.chosen.values() if folder is not None)]


def _names(parts: Sequence[Part]) -> list[list[str]]:
    return [[part.policy, part.entry.row.name] for part in parts]


def _seconds(part: Part) -> dict[str, Any]:
    """Seconds of the runs that finished each stage."""
    critics = {}
    for name, folder in part.chosen.items():
        if folder is not None:
            critics[name] = manifest_of(folder.parent / "rewards")["seconds"]
    own = {"responses": manifest_of(part.groups)["seconds"], "verify": manifest_of(part.verified)["seconds"]}
    return {"policy": part.policy, "benchmark": part.entry.row.name, **own, "critics": critics}
