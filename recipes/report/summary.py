"""Finished run folders → one dictionary of every number that the report and the README show.

A run folder is one seed. A value is first averaged over the seeds for each problem, then bootstrapped over problems,
which are the independent units; `seeds` lists each seed's own mean beside the interval, since the interval does not
cover what another training seed would do. What a run does not have is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from mpo.multimodal.errors import StageError
from mpo.multimodal.files import read_json, write_atomic
from recipes.report.breakdown import breakdown
from recipes.report.measures import Measure, difference, measures_of, of_accuracy, of_samples, same_problems
from recipes.stage.folder import MANIFEST, RESULTS, manifest_of
from recipes.stage.numbers import columns
from recipes.stage.order import stages_in
from rewards.choosing.evaluation import RESAMPLES, SELECTORS
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
    "grpo": "GRPO",
    "mpo_grpo": "MPO → GRPO",
    "mpo_first_error_grpo": "MPO, first error, no filter → GRPO",
    "rft_grpo": "RFT → GRPO",
}
BASELINE, TRAINED = "policy", "mpo"
WORLD, WARM_START = "world", "warm start"  # a run with that folder starts from an embedded world, and a warm start
_baseline: ContextVar[str] = ContextVar("baseline", default=ARM_LABELS[BASELINE])  # its name in the runs that are shown
# arms that answer a question together, beside MPO against each of the others
COMPARED = (
    ("mpo_first_error", "mpo_paper"),
    ("mpo_first_error", "rft"),
    ("mpo_first_error", "rft_filter"),
    ("mpo_first_error", "mpo_random_span"),
    ("rft_filter", "rft"),
    ("mpo_all_wrong", "rft_filter"),
    ("mpo_all_wrong", "rft_all_wrong"),
    ("mpo_grpo", "mpo"),
    ("mpo_grpo", "grpo"),
    ("mpo_grpo", "rft_grpo"),
    ("mpo_first_error_grpo", "mpo_first_error"),
    ("mpo_first_error_grpo", "mpo_grpo"),
    ("mpo_first_error_grpo", "grpo"),
    ("grpo", "rft"),
)
# not held against MPO one by one: they have seen more responses
AFTER_TRAINED = ("grpo", "mpo_grpo", "mpo_first_error_grpo", "rft_grpo")
Measures = dict[str, Measure]  # quantity → measure
Curves = dict[str, dict[str, Measure]]  # selector → k → measure
PRM_MEASURES = ("auc", "auc_swapped", "swap_drop", "dependence_right", "dependence_wrong")
LARGEST_CLAIM_K = 8
LEADING = ("prm", "vote_prod")  # held against the majority vote at every k
# Selectors that need no reference answer.
CHOOSING = ("prm", "lower_bound", "weighted_vote", "vote_prod", "vote_min", "vote_min_4", "majority", "orm")


def runs_of(folder: str | Path, *, holding: str = "test") -> list[Path]:
    """The run folders behind a path: itself, or the `seed…` folders of an evidence folder.

    Args:
        folder: of a run, or of several.
        holding: folder that each run has to have; `test` holds the test results.

    Raises:
        StageError: neither has it.
    """
    folder = Path(folder)
    seeds = (path.parent for path in folder.glob(f"seed*/{holding}") if path.is_dir())
    runs = [folder] if (folder / holding).is_dir() else list(seeds)
    if not runs:
        raise StageError(
            f"{folder} is no run: expected a folder {holding}/ or seed folders that have one; run the pipeline"
        )
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
    arms = {arm: measures_of_arm(runs, arm) for arm in arm_names(runs)}
    curves = {arm: curves_of_arm(runs, arm) for arm in arms}
    ks = sorted({int(k) for curve in curves.values() if curve for k in curve["prm"]})
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
        "in_full": [arm for arm, curve in curves.items() if curve and str(ks[-1]) in curve["prm"]],
        "best_selector": _best_selector(curves, k),
        "leads": _leads(curves),
        "claims": _claims(arms, curves, k),
        "comparisons": _comparisons(arms),
        "breakdown": breakdown(runs, {arm: arms[arm] for arm in (BASELINE, TRAINED) if arm in arms}),
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


def arm_names(runs: Sequence[Path]) -> list[str]:
    """Arms of any run, the first policy first, then MPO, then the known baselines, then the rest by name."""
    found = {path.name for run in runs for path in (run / "test").iterdir() if path.is_dir()}
    known = list(ARM_LABELS)
    return sorted(found, key=lambda arm: (known.index(arm) if arm in known else len(known), arm))


def measures_of_arm(runs: Sequence[Path], arm: str) -> Measures:
    """Everything that the arm's groups tell; each folder is read once."""
    test = f"test/{arm}"
    measures = measures_of(runs, [f"{test}/scored", f"{test}/verified"], of_samples)
    for name in ("greedy", "swapped"):
        measures |= measures_of(runs, [f"{test}/{name}"], partial(of_accuracy, name))
    return measures


def _arm(arm: str, measures: Measures) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm, "label": label(arm)}
    row |= {name: measures[name].estimate() for name in ("greedy", "sampled", "swapped") if name in measures}
    shares = {name: measures[name].estimate(resamples=RESAMPLES) for name in REASONS if name in measures}
    return {**row, "image_gain": _image_gain(measures), "degenerate": shares}


def _image_gain(measures: Measures) -> dict[str, Any] | None:
    """Greedy accuracy with a problem's own image minus with another's, on the problems that have both."""
    if not {"greedy", "swapped"} <= measures.keys():
        return None
    sides = [measures[name] for name in ("greedy", "swapped")]
    shared = set(sides[0].averaged()) & set(sides[1].averaged())
    own, other = (side.only(shared) for side in sides)
    return difference(own, other)


def _prm(arm: str, measures: Measures) -> dict[str, Any]:
    """Within-problem AUC with the right and with another problem's image, and what depends on the image."""
    row: dict[str, Any] = {name: measures[name].estimate() for name in PRM_MEASURES if name in measures}
    return {"arm": arm, "label": label(arm), **row} if row else {}


def curves_of_arm(runs: Sequence[Path], arm: str) -> Curves:
    """Selector → k → measure; empty without results."""
    results = {seed: r for seed, run in enumerate(runs) if (r := _results(run, arm))}
    if not results:
        return {}
    same_problems({seed: dict.fromkeys(r["problem_ids"]) for seed, r in results.items()}, f"test/{arm}/best_of_n")
    ks = [k for k in map(str, next(iter(results.values()))["ks"]) if all(int(k) in r["ks"] for r in results.values())]
    curves: Curves = {}
    for name in [name for name in SELECTORS if all(name in r["values"] for r in results.values())]:
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


def _best_selector(curves: Mapping[str, Curves], k: int | None) -> dict[str, Any] | None:
    """The selector with the highest accuracy at k, of the trained policy if there is one, else of the policy before.

    Among equals the first of `CHOOSING` wins; its gain is over one random response of the same policy. That the best
    of several was picked is not corrected for.
    """
    arm = next((arm for arm in (TRAINED, BASELINE) if curves.get(arm)), None)
    if arm is None or k is None:
        return None
    at = {name: curves[arm][name][str(k)] for name in CHOOSING if name in curves[arm]}
    means = {name: fmean(measure.averaged().values()) for name, measure in at.items()}
    name = max(means, key=lambda one: means[one])
    gain = _claim("", at[name], curves[arm].get("random", {}).get(str(k)))
    return {"arm": arm, "selector": name, "mean": means[name], "gain": gain}


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
        (f"PRM lower bound@{k} > PRM best@{k} ({first})", at_k(base, "lower_bound"), at_k(base, "prm")),
        (f"PRM lower bound@{k} > PRM best@{k} (MPO)", at_k(mpo, "lower_bound"), at_k(mpo, "prm")),
        (f"weighted vote@{k} > majority@{k} ({first})", at_k(base, "weighted_vote"), at_k(base, "majority")),
        (f"weighted vote@{k} > majority@{k} (MPO)", at_k(mpo, "weighted_vote"), at_k(mpo, "majority")),
        (f"vote by product@{k} > majority@{k} ({first})", at_k(base, "vote_prod"), at_k(base, "majority")),
        (f"vote by product@{k} > majority@{k} (MPO)", at_k(mpo, "vote_prod"), at_k(mpo, "majority")),
        (f"MPO + PRM best@{k} > {first} + PRM best@{k}", at_k(mpo, "prm"), at_k(base, "prm")),
    ]
    return [claim for row in rows if (claim := _claim(*row))]


def _leads(curves: Mapping[str, Curves]) -> list[dict[str, Any]]:
    """What the PRM's choice, and the vote that it weighs, are above the plain vote, at the k of the tables."""
    rows = []
    for arm, curve in curves.items():
        for name in (name for name in LEADING if {name, "majority"} <= curve.keys()):
            for k in columns([int(k) for k in curve[name]]):
                if k > 1 and (found := difference(curve[name][str(k)], curve["majority"][str(k)])):
                    rows.append({"arm": arm, "label": label(arm), "selector": name, "k": k, "difference": found})
    return rows


def _comparisons(arms: Mapping[str, Measures]) -> list[dict[str, Any]]:
    """MPO against each optional arm, and `COMPARED`; empty if there is only the first policy beside it."""
    others = [arm for arm in arms if arm not in (BASELINE, TRAINED, *AFTER_TRAINED)] if TRAINED in arms else []
    both = [(TRAINED, other) for other in others] + [pair for pair in COMPARED if {*pair} <= arms.keys()]
    rows = [
        (f"{label(one)} > {label(other)} ({how})", arms[one].get(how), arms[other].get(how))
        for one, other in both
        for how in ("sampled", "greedy")
    ]
    return [claim for row in rows if (claim := _claim(*row))]


def _claim(name: str, left: Measure | None, right: Measure | None) -> dict[str, Any] | None:
    found = difference(left, right)
    return {"name": name, "difference": found, "holds": found["verdict"] == "holds"} if found else None


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
