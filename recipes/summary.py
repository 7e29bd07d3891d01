"""Finished run folders → one dictionary of every number that the report and the README show.

A run folder is one seed. A value is first averaged over the seeds for each problem, then bootstrapped over problems,
which are the independent units; `seeds` lists each seed's own mean beside the interval, since the interval does not
cover what another training seed would do. What a run does not have is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from mpo.multimodal.errors import DataError, StageError
from recipes.best_of_n import RESAMPLES, RESULTS, SELECTORS, degenerate_shares, within_problem_aucs
from recipes.groups import read_groups
from recipes.run import MANIFEST, manifest_of, write_atomic
from rewards.curves import Estimate, correctness_of, mean_with_interval, paired_difference
from rewards.degeneration import REASONS
from rewards.types import RolloutGroup

ARM_LABELS = {"policy": "warm start", "mpo": "MPO", "dpo": "DPO", "dpo_lm": "DPO + LM", "rft": "RFT"}
BASELINE, TRAINED = "policy", "mpo"
LARGEST_CLAIM_K = 8

Values = dict[str, float]  # problem id → value


@dataclass(frozen=True)
class Measure:
    """One quantity: a value a problem, for each seed (by index) that has it."""

    by_seed: Mapping[int, Values]

    def averaged(self, seeds: Sequence[int] | None = None) -> Values:
        """Problem → mean over the seeds that have a value for it."""
        chosen = [self.by_seed[seed] for seed in (self.by_seed if seeds is None else seeds)]
        ids = dict.fromkeys(identifier for values in chosen for identifier in values)
        return {i: fmean(values[i] for values in chosen if i in values) for i in ids}

    def estimate(self, *, resamples: int = 9999) -> dict[str, Any]:
        """Mean, low, high and n over problems, and each seed's mean."""
        return _with_seeds(mean_with_interval(list(self.averaged().values()), resamples=resamples), self)


def runs_of(folder: str | Path) -> list[Path]:
    """The run folders behind a path: itself, or the `seed…` folders of an evidence folder.

    Raises:
        StageError: neither holds test results.
    """
    folder = Path(folder)
    runs = [folder] if (folder / "test").is_dir() else sorted(p.parent for p in folder.glob("seed*/test") if p.is_dir())
    if not runs:
        raise StageError(f"{folder} is no run: expected a folder test/ or seed folders that have one; run the pipeline")
    return sorted(runs, key=lambda run: (len(run.name), run.name))


def summarise(runs: Sequence[Path]) -> dict[str, Any]:
    """Read finished runs, one a seed, over the same test problems; write nothing.

    Raises:
        StageError: no runs, or none with test results.
        DataError: the runs' test problems differ.
    """
    runs = [run for path in runs for run in runs_of(path)]
    if not runs:
        raise StageError("no run folders to summarise: expected at least one")
    names = _arm_names(runs)
    sampled = {arm: _sampled(runs, arm) for arm in names}
    greedy = {arm: _measure(runs, f"test/{arm}/greedy", _accuracy) for arm in names}
    curves = {arm: _curves(runs, arm) for arm in names}
    ks = [int(k) for k in next((curve["prm"] for curve in curves.values() if curve), {})]
    k = max((k for k in ks if k <= LARGEST_CLAIM_K), default=None)
    claims, comparisons = _claims(sampled, greedy, curves, k), _comparisons(sampled, greedy)
    return {
        "seeds": [run.name for run in runs],
        "problems": max((len(m.averaged()) for m in [*sampled.values(), *greedy.values()] if m), default=0),
        "samples": _samples(runs, names),
        "k": k,
        "ks": ks,
        "arms": [_arm(runs, arm, greedy[arm], sampled[arm]) for arm in names],
        "best_of_n": [
            {"arm": arm, "label": label(arm), "selector": name, "k": int(at), **measure.estimate(resamples=RESAMPLES)}
            for arm, curve in curves.items()
            for name, by_k in curve.items()
            for at, measure in by_k.items()
        ],
        "candidates": {arm: [r for run in runs if (r := _results(run, arm, ["problems", "samples", *_DIAGNOSES]))] for arm in names},
        "prm": [row for arm in names if (row := _prm(runs, arm))],
        "claims": claims,
        "comparisons": comparisons,
        "pairs": [json.loads(p.read_text()) for run in runs if (p := run / "pairs" / "report.json").exists()],
        "stages": _stages(runs),
    }


def write_summary(runs: Sequence[Path], out: Path) -> Path:
    """Write `summary.json` into the folder `out`, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "summary.json"
    write_atomic(path, json.dumps(summarise(runs), indent=2) + "\n")
    return path


def label(arm: str) -> str:
    """What a table calls an arm."""
    return ARM_LABELS.get(arm, arm)


_DIAGNOSES = ("distinct_candidates", "verdicts", "degenerate", "unscored")


def _arm_names(runs: Sequence[Path]) -> list[str]:
    """Arms of any run, the warm start first, then MPO, then the known baselines, then the rest by name."""
    found = {path.name for run in runs for path in (run / "test").iterdir() if path.is_dir()}
    known = list(ARM_LABELS)
    return sorted(found, key=lambda arm: (known.index(arm) if arm in known else len(known), arm))


def _measure(runs: Sequence[Path], stage: str, of: Callable[[RolloutGroup], float | None]) -> Measure | None:
    """A value a problem from a groups folder; None if no seed has finished it."""
    by_seed = {}
    for seed, run in enumerate(runs):
        if (run / stage / MANIFEST).exists():
            values = {group.problem.id: of(group) for group in read_groups(run / stage)}
            by_seed[seed] = {i: value for i, value in values.items() if value is not None}
    return _checked(by_seed, stage)


def _checked(by_seed: dict[int, Values], stage: str) -> Measure | None:
    """The seeds must share their problems, else a mean over seeds would compare different tests."""
    by_seed = {seed: values for seed, values in by_seed.items() if values}
    kinds = {frozenset(values) for values in by_seed.values()}
    if len(kinds) > 1:
        sizes = sorted(len(kind) for kind in kinds)
        raise DataError(f"{stage}: the seeds have different test problems ({sizes} ids); expected the same in every seed")
    return Measure(by_seed) if by_seed else None


def _accuracy(group: RolloutGroup) -> float:
    return fmean(correctness_of(group))


def _sampled_stage(run: Path, arm: str) -> str:
    return next((s for s in ("scored", "verified") if (run / "test" / arm / s / MANIFEST).exists()), "verified")


def _sampled(runs: Sequence[Path], arm: str, of: Callable[[RolloutGroup], float | None] = _accuracy) -> Measure | None:
    """As `_measure`, of the N rollouts: scored ones where there are, else verified ones."""
    parts = [_measure([run], f"test/{arm}/{_sampled_stage(run, arm)}", of) for run in runs]
    return _checked({seed: part.by_seed[0] for seed, part in enumerate(parts) if part}, f"test/{arm}")


def _samples(runs: Sequence[Path], names: Sequence[str]) -> int | None:
    for run in runs:
        for arm in names:
            folder = run / "test" / arm / _sampled_stage(run, arm)
            if (folder / MANIFEST).exists():
                return min(len(group.rollouts) for group in read_groups(folder))
    return None


def _arm(runs: Sequence[Path], arm: str, greedy: Measure | None, sampled: Measure | None) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm, "label": label(arm)}
    swapped = _measure(runs, f"test/{arm}/swapped", _accuracy)
    for name, measure in (("greedy", greedy), ("sampled", sampled), ("swapped", swapped)):
        if measure:
            row[name] = measure.estimate()
    for reason in REASONS if sampled else ():
        share = _sampled(runs, arm, partial(_degenerate_share, reason=reason))
        assert share is not None
        row.setdefault("degenerate", {})[reason] = share.estimate(resamples=RESAMPLES)
    return row


def _degenerate_share(group: RolloutGroup, *, reason: str) -> float:
    return degenerate_shares(group.rollouts)[reason]


def _curves(runs: Sequence[Path], arm: str) -> dict[str, dict[str, Measure]]:
    """Selector → k → measure; empty without results."""
    results = {seed: r for seed, run in enumerate(runs) if (r := _results(run, arm, None))}
    if not results:
        return {}
    ks = [k for k in map(str, next(iter(results.values()))["ks"]) if all(int(k) in r["ks"] for r in results.values())]
    curves: dict[str, dict[str, Measure]] = {}
    for name in SELECTORS:
        for k in ks:
            by_seed = {s: dict(zip(r["problem_ids"], r["values"][name][k], strict=True)) for s, r in results.items()}
            measure = _checked(by_seed, f"test/{arm}/best_of_n")
            assert measure is not None
            curves.setdefault(name, {})[k] = measure
    return curves


def _results(run: Path, arm: str, keys: Sequence[str] | None) -> dict[str, Any]:
    path = run / "test" / arm / "best_of_n" / RESULTS
    if not (path.parent / MANIFEST).exists():
        return {}
    results = json.loads(path.read_text())
    return results if keys is None else {key: results[key] for key in keys}


def _prm(runs: Sequence[Path], arm: str) -> dict[str, Any]:
    """Within-problem AUC with the right and with another problem's picture, and how far rewards fall with the latter."""
    row: dict[str, Any] = {}
    for name, stage in (("auc", "scored"), ("auc_swapped", "scored_swapped")):
        folders = {seed: run / "test" / arm / stage for seed, run in enumerate(runs)}
        found = {s: within_problem_aucs(read_groups(f)) for s, f in folders.items() if (f / MANIFEST).exists()}
        if any(found.values()):
            row[name] = Measure({seed: values for seed, values in found.items() if values}).estimate()
    right, swapped = (_measure(runs, f"test/{arm}/{stage}", _mean_reward) for stage in ("scored", "scored_swapped"))
    if right and swapped:
        row["swap_drop"] = _difference(right, swapped)
    return {"arm": arm, "label": label(arm), **row} if row else {}


def _mean_reward(group: RolloutGroup) -> float | None:
    rewards = [rollout.reward for rollout in group.rollouts if rollout.reward is not None]
    return fmean(rewards) if rewards else None


def _claims(
    sampled: Mapping[str, Measure | None],
    greedy: Mapping[str, Measure | None],
    curves: Mapping[str, Mapping[str, Mapping[str, Measure]]],
    k: int | None,
) -> list[dict[str, Any]]:
    """The claims of the project, each a paired difference; one whose sides are missing is left out."""

    def at_k(arm: str, selector: str) -> Measure | None:
        return curves.get(arm, {}).get(selector, {}).get(str(k))

    base, mpo = BASELINE, TRAINED
    rows = [
        ("MPO > warm start (sampled)", sampled.get(mpo), sampled.get(base)),
        ("MPO > warm start (greedy)", greedy.get(mpo), greedy.get(base)),
        ("warm start + PRM best@{k} > warm start pass@1", at_k(base, "prm"), at_k(base, "random")),
        ("MPO + PRM best@{k} > MPO pass@1", at_k(mpo, "prm"), at_k(mpo, "random")),
    ]
    for arm in (base, mpo):
        rows.append((f"PRM best@{{k}} > majority@{{k}} ({label(arm)})", at_k(arm, "prm"), at_k(arm, "majority")))
        votes = at_k(arm, "weighted_vote"), at_k(arm, "majority")
        rows.append((f"weighted vote@{{k}} > majority@{{k}} ({label(arm)})", *votes))
    rows.append(("MPO + PRM best@{k} > warm start + PRM best@{k}", at_k(mpo, "prm"), at_k(base, "prm")))
    return [_claim(name.format(k=k), left, right) for name, left, right in rows if left and right]


def _comparisons(sampled: Mapping[str, Measure | None], greedy: Mapping[str, Measure | None]) -> list[dict[str, Any]]:
    """MPO against each optional arm; empty where only the warm start stands beside it."""
    others = [arm for arm in sampled if arm not in (BASELINE, TRAINED)]
    rows = [(f"MPO > {label(o)} ({how})", m.get(TRAINED), m.get(o)) for o in others for how, m in (("sampled", sampled), ("greedy", greedy))]
    return [_claim(name, left, right) for name, left, right in rows if left and right]


def _claim(name: str, left: Measure, right: Measure) -> dict[str, Any]:
    difference = _difference(left, right)
    return {"name": name, "difference": difference, "holds": difference["low"] > 0}


def _difference(left: Measure, right: Measure) -> dict[str, Any]:
    """Paired over problems, on the seeds that have both sides."""
    seeds = [seed for seed in left.by_seed if seed in right.by_seed]
    a, b = left.averaged(seeds), right.averaged(seeds)
    ids = [identifier for identifier in a if identifier in b]
    if not ids:
        raise DataError("a comparison has no problem in common on both sides; expected the same test problems")
    own = Measure({s: {i: left.by_seed[s][i] - right.by_seed[s][i] for i in ids} for s in seeds})
    return _with_seeds(paired_difference([a[i] for i in ids], [b[i] for i in ids]), own)


def _with_seeds(estimate: Estimate, measure: Measure) -> dict[str, Any]:
    return {**asdict(estimate), "seeds": [fmean(values.values()) for values in measure.by_seed.values()]}


def _stages(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Every finished stage with its counts and seconds in each seed, in the order in which a run made them."""
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        for path in sorted(run.rglob(MANIFEST), key=lambda p: p.stat().st_mtime):
            manifest, name = manifest_of(path.parent), str(path.parent.relative_to(run))
            row = rows.setdefault(name, {"folder": name, "stage": manifest["stage"], "counts": [], "seconds": []})
            row["counts"].append({key: value for key, value in manifest["counts"].items() if key != "problems"})
            row["seconds"].append(manifest["seconds"])
    return list(rows.values())
