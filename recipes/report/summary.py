"""Finished run folders → one dictionary of every number that the report and the README show.

A run folder is one seed. A value is first averaged over the seeds for each problem, then bootstrapped over problems,
which are the independent units; `seeds` lists each seed's own mean beside the interval, since the interval does not
cover what another training seed would do. What a run does not have is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from mpo.multimodal.errors import DataError, StageError
from mpo.multimodal.files import read_json, write_atomic
from recipes.stage.folder import MANIFEST, RESULTS, manifest_of
from recipes.stage.groups import read_groups
from recipes.stage.order import stages_in
from rewards.choosing.evaluation import RESAMPLES, SELECTORS, degenerate_shares, within_problem_aucs
from rewards.scoring.visual_dependence import of_group
from rewards.statistics import mean_with_interval, paired_difference
from rewards.types import RolloutGroup, correctness_of
from rewards.verifying.degeneration import REASONS

ARM_LABELS = {
    "policy": "policy",
    "mpo": "MPO",
    "mpo_paper": "MPO (paper)",
    "mpo_first_error": "MPO, first error, no filter",
    "mpo_all_wrong": "MPO + all-wrong problems",
    "dpo": "DPO",
    "dpo_lm": "DPO + LM",
    "rft": "RFT",
    "rft_filter": "RFT + filter",
    "rft_all_wrong": "RFT + filter + all-wrong problems",
    "mpo_random_span": "MPO, random step (control)",
    "mpo_mc_span": "MPO, first error by counts",
    "mpo_exact_span": "MPO, first error by exact labels",
}
BASELINE, TRAINED = "policy", "mpo"
WORLD, WARM_START = "world", "warm start"  # a run with that folder starts from an embedded world, and a warm start
_baseline: ContextVar[str] = ContextVar("baseline", default=ARM_LABELS[BASELINE])  # its name in the runs that are shown
# arms that answer a question together, beside MPO against each of the others
COMPARED = (
    ("mpo_first_error", "mpo_paper"),
    ("mpo_first_error", "rft"),
    ("mpo_first_error", "mpo_random_span"),
    ("rft_filter", "rft"),
    ("mpo_all_wrong", "rft_filter"),
    ("mpo_all_wrong", "rft_all_wrong"),
)
PRM_MEASURES = ("auc", "auc_swapped", "swap_drop", "dependence_right", "dependence_wrong")
LARGEST_CLAIM_K = 8

Values = dict[str, float]  # problem id → value
Row = dict[str, float | None]  # quantity → value of one problem; None is "has none"


@dataclass(frozen=True)
class Measure:
    """One quantity: a value per problem, for each seed (by index) that has it."""

    by_seed: Mapping[int, Values]

    def averaged(self, seeds: Sequence[int] | None = None) -> Values:
        """Problem → mean over the seeds that have a value for it."""
        chosen = [self.by_seed[seed] for seed in (self.by_seed if seeds is None else seeds)]
        ids = dict.fromkeys(identifier for values in chosen for identifier in values)
        return {i: fmean(values[i] for values in chosen if i in values) for i in ids}

    def estimate(self, *, resamples: int = 9999) -> dict[str, Any]:
        """Mean, low, high and n over problems, and each seed's mean."""
        estimate = mean_with_interval(list(self.averaged().values()), resamples=resamples)
        return {**asdict(estimate), "seeds": [fmean(values.values()) for values in self.by_seed.values()]}


Measures = dict[str, Measure]  # quantity → measure
Curves = dict[str, dict[str, Measure]]  # selector → k → measure


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
    """Read finished runs, one per seed, over the same test problems; write nothing.

    Raises:
        StageError: no runs, or none with test results.
        DataError: the runs' test problems differ.
    """
    runs = [run for path in runs for run in runs_of(path)]
    if not runs:
        raise StageError("no run folders to summarise: expected at least one")
    _baseline.set(WARM_START if (runs[0] / WORLD).is_dir() else ARM_LABELS[BASELINE])
    arms = {arm: _measures_of(runs, arm) for arm in _arm_names(runs)}
    curves = {arm: _curves(runs, arm) for arm in arms}
    ks = [int(k) for k in next((curve["prm"] for curve in curves.values() if curve), {})]
    k = max((k for k in ks if k <= LARGEST_CLAIM_K), default=None)
    sizes = [measures["samples"].averaged() for measures in arms.values() if "samples" in measures]
    return {
        "seeds": [run.name for run in runs],
        "problems": max((len(values) for values in sizes), default=0),
        "samples": int(min((min(values.values()) for values in sizes), default=0)),
        "most_samples": int(max((max(values.values()) for values in sizes), default=0)),
        "k": k,
        "ks": ks,
        "arms": [_arm(arm, measures) for arm, measures in arms.items()],
        "best_of_n": [
            {"arm": arm, "label": label(arm), "selector": name, "k": int(at), **measure.estimate(resamples=RESAMPLES)}
            for arm, curve in curves.items()
            for name, by_k in curve.items()
            for at, measure in by_k.items()
        ],
        "candidates": {arm: rows for arm in arms if (rows := _candidates(runs, arm))},
        "prm": [row for arm, measures in arms.items() if (row := _prm(arm, measures))],
        "claims": _claims(arms, curves, k),
        "comparisons": _comparisons(arms),
        "pairs": [{"seed": run.name, **found} for run in runs if (found := _pairing(run))],
        "stages": _stages(runs),
    }


def write_summary(runs: Sequence[Path], out: Path) -> Path:
    """Write the summary as JSON to the file `out`, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, json.dumps(summarise(runs), indent=2) + "\n")
    return out


def label(arm: str) -> str:
    """The name of an arm in tables; that of the first policy is the one in the runs that were summarised last."""
    return _baseline.get() if arm == BASELINE else ARM_LABELS.get(arm, arm)


def _arm_names(runs: Sequence[Path]) -> list[str]:
    """Arms of any run, the first policy first, then MPO, then the known baselines, then the rest by name."""
    found = {path.name for run in runs for path in (run / "test").iterdir() if path.is_dir()}
    known = list(ARM_LABELS)
    return sorted(found, key=lambda arm: (known.index(arm) if arm in known else len(known), arm))


def _measures_of(runs: Sequence[Path], arm: str) -> Measures:
    """Everything that the arm's groups tell; each folder is read once."""
    test = f"test/{arm}"
    measures = _measures(runs, [f"{test}/scored", f"{test}/verified"], _of_samples)
    for name in ("greedy", "swapped"):
        measures |= _measures(runs, [f"{test}/{name}"], partial(_of_accuracy, name))
    return measures


def _measures(runs: Sequence[Path], stages: Sequence[str], of: Callable[[RolloutGroup], Row]) -> Measures:
    """Name → measure, from the first of `stages` that a run has finished; a run without them is left out."""
    rows: dict[int, dict[str, Row]] = {}
    for seed, run in enumerate(runs):
        if folder := next((run / stage for stage in stages if (run / stage / MANIFEST).exists()), None):
            rows[seed] = {group.problem.id: of(group) for group in read_groups(folder)}
    _same_problems(rows, stages[0])
    names = dict.fromkeys(name for by_id in rows.values() for row in by_id.values() for name in row)
    by_name = {name: {seed: _column(by_id, name) for seed, by_id in rows.items()} for name in names}
    kept = {name: {s: values for s, values in by_seed.items() if values} for name, by_seed in by_name.items()}
    return {name: Measure(by_seed) for name, by_seed in kept.items() if by_seed}


def _column(rows: Mapping[str, Row], name: str) -> Values:
    return {i: value for i, row in rows.items() if (value := row[name]) is not None}


def _same_problems(rows: Mapping[int, Mapping[str, Any]], stage: str) -> None:
    """The seeds must share their problems, else a mean over seeds would compare different tests."""
    kinds = {frozenset(by_id) for by_id in rows.values()}
    if len(kinds) > 1:
        raise DataError(
            f"{stage}: the seeds have different test problems ({sorted(map(len, kinds))} ids); "
            "expected the same in every seed"
        )


def _of_accuracy(name: str, group: RolloutGroup) -> Row:
    return {name: _accuracy(group)}


def _of_samples(group: RolloutGroup) -> Row:
    counts = {"sampled": _accuracy(group), "samples": float(len(group.rollouts))}
    return {**counts, **degenerate_shares(group.rollouts), **_of_rewards(group), **of_group(group)}


def _of_rewards(group: RolloutGroup) -> Row:
    """AUC with the problem's image and with another's, and the mean fall of the reward."""
    other = replace(
        group, rollouts=tuple(r.with_(reward=r.swapped.reward if r.swapped else None) for r in group.rollouts)
    )
    falls = [r.reward - r.swapped.reward for r in group.rollouts if r.reward is not None and r.swapped is not None]
    return {
        "auc": within_problem_aucs([group]).get(group.problem.id),
        "auc_swapped": within_problem_aucs([other]).get(group.problem.id),
        "swap_drop": fmean(falls) if falls else None,
    }


def _accuracy(group: RolloutGroup) -> float:
    return fmean(correctness_of(group))


def _arm(arm: str, measures: Measures) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm, "label": label(arm)}
    row |= {name: measures[name].estimate() for name in ("greedy", "sampled", "swapped") if name in measures}
    shares = {name: measures[name].estimate(resamples=RESAMPLES) for name in REASONS if name in measures}
    return {**row, "degenerate": shares}


def _prm(arm: str, measures: Measures) -> dict[str, Any]:
    """Within-problem AUC with the right and with another problem's image, and what depends on the image."""
    row: dict[str, Any] = {name: measures[name].estimate() for name in PRM_MEASURES if name in measures}
    return {"arm": arm, "label": label(arm), **row} if row else {}


def _curves(runs: Sequence[Path], arm: str) -> Curves:
    """Selector → k → measure; empty without results."""
    results = {seed: r for seed, run in enumerate(runs) if (r := _results(run, arm))}
    if not results:
        return {}
    _same_problems({seed: dict.fromkeys(r["problem_ids"]) for seed, r in results.items()}, f"test/{arm}/best_of_n")
    ks = [k for k in map(str, next(iter(results.values()))["ks"]) if all(int(k) in r["ks"] for r in results.values())]
    curves: Curves = {}
    for name in SELECTORS:
        for k in ks:
            by_seed = {s: dict(zip(r["problem_ids"], r["values"][name][k], strict=True)) for s, r in results.items()}
            curves.setdefault(name, {})[k] = Measure(by_seed)
    return curves


def _results(run: Path, arm: str) -> dict[str, Any]:
    folder = run / "test" / arm / "best_of_n"
    return read_json(folder / RESULTS) if (folder / MANIFEST).exists() else {}


def _candidates(runs: Sequence[Path], arm: str) -> list[dict[str, Any]]:
    """What each seed's responses were: distinct answers at each k, verdicts, unscored ones."""
    keys = ("problems", "samples", "distinct_answers", "verdicts", "unscored")
    return [{key: results[key] for key in keys} for run in runs if (results := _results(run, arm))]


def _claims(arms: Mapping[str, Measures], curves: Mapping[str, Curves], k: int | None) -> list[dict[str, Any]]:
    """The claims of the project, each a paired difference; one whose sides are missing is left out."""

    def of(arm: str, name: str) -> Measure | None:
        return arms.get(arm, {}).get(name)

    def at_k(arm: str, selector: str) -> Measure | None:
        return curves.get(arm, {}).get(selector, {}).get(str(k))

    base, mpo, first = BASELINE, TRAINED, label(BASELINE)
    rows = [
        (f"MPO > {first} (sampled)", of(mpo, "sampled"), of(base, "sampled")),
        (f"MPO > {first} (greedy)", of(mpo, "greedy"), of(base, "greedy")),
        (f"{first} + PRM best@{k} > {first} pass@1", at_k(base, "prm"), at_k(base, "random")),
        (f"MPO + PRM best@{k} > MPO pass@1", at_k(mpo, "prm"), at_k(mpo, "random")),
        (f"PRM best@{k} > majority@{k} ({first})", at_k(base, "prm"), at_k(base, "majority")),
        (f"PRM best@{k} > majority@{k} (MPO)", at_k(mpo, "prm"), at_k(mpo, "majority")),
        (f"weighted vote@{k} > majority@{k} ({first})", at_k(base, "weighted_vote"), at_k(base, "majority")),
        (f"weighted vote@{k} > majority@{k} (MPO)", at_k(mpo, "weighted_vote"), at_k(mpo, "majority")),
        (f"vote by product@{k} > majority@{k} ({first})", at_k(base, "vote_prod"), at_k(base, "majority")),
        (f"vote by product@{k} > majority@{k} (MPO)", at_k(mpo, "vote_prod"), at_k(mpo, "majority")),
        (f"MPO + PRM best@{k} > {first} + PRM best@{k}", at_k(mpo, "prm"), at_k(base, "prm")),
    ]
    return [claim for row in rows if (claim := _claim(*row))]


def _comparisons(arms: Mapping[str, Measures]) -> list[dict[str, Any]]:
    """MPO against each optional arm, and `COMPARED`; empty if there is only the first policy beside it."""
    others = [arm for arm in arms if arm not in (BASELINE, TRAINED)] if TRAINED in arms else []
    both = [(TRAINED, other) for other in others] + [pair for pair in COMPARED if {*pair} <= arms.keys()]
    rows = [
        (f"{label(one)} > {label(other)} ({how})", arms[one].get(how), arms[other].get(how))
        for one, other in both
        for how in ("sampled", "greedy")
    ]
    return [claim for row in rows if (claim := _claim(*row))]


def _claim(name: str, left: Measure | None, right: Measure | None) -> dict[str, Any] | None:
    difference = _difference(left, right)
    return {"name": name, "difference": difference, "holds": difference["low"] > 0} if difference else None


def _difference(left: Measure | None, right: Measure | None) -> dict[str, Any] | None:
    """Paired over problems, on the seeds and problems that have both sides; None if there are none."""
    both = [seed for seed in left.by_seed if seed in right.by_seed] if left and right else []
    if not left or not right or not both:
        return None
    a, b = left.averaged(both), right.averaged(both)
    if a.keys() != b.keys():
        raise DataError(f"a comparison has {len(a)} problems on one side and {len(b)} on the other; expected the same")
    per_seed = [fmean(left.by_seed[seed].values()) - fmean(right.by_seed[seed].values()) for seed in both]
    return {**asdict(paired_difference([a[i] for i in a], [b[i] for i in a])), "seeds": per_seed}


def _pairing(run: Path) -> dict[str, Any]:
    path = run / "pairs" / "report.json"
    return read_json(path) if path.exists() else {}


def _stages(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Every finished stage with its counts and seconds in each seed, in the order in which a run made them."""
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        for folder in stages_in(run):
            manifest, name = manifest_of(folder), str(folder.relative_to(run))
            row = rows.setdefault(name, {"folder": name, "stage": manifest["stage"], "counts": [], "seconds": []})
            row["counts"].append(manifest["counts"])
            row["seconds"].append(manifest["seconds"])
    return list(rows.values())
