"""What step labels cost and buy, on a digits run that is past its PRM samples: one PRM per recipe, held side by side.

Every recipe labels responses to the run's PRM problems (or some of them), trains a PRM from the same start in the same
number of steps, and ranks the same 8 samples of each development problem. So only labels and loss differ. `random
quarter` and `random half` are the controls: they say what the plain recipe buys for fewer continuations. Each label,
training and scoring is a stage folder below --out, so a killed run continues where it was.

    python benchmarks/label_recipes.py runs/evidence
    python benchmarks/label_recipes.py runs/evidence --recipes full bisect --steps 300

Nothing here reads the held-out problems.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from recipes.answering.best_of_n import best_of_n
from recipes.config import BestOfNConfig, ScoreConfig, TrainPRMConfig
from recipes.data.label_steps import label
from recipes.data.sample import sample
from recipes.data.score import score
from recipes.data.verify import verify
from recipes.loop.settings import Settings
from recipes.report.measures import Measure, Values, difference
from recipes.report.summary import runs_of
from recipes.stage.folder import RESULTS, manifest_of
from recipes.stage.groups import read_groups
from recipes.stage.numbers import interval, signed
from recipes.training.train_prm import train_prm
from rewards.choosing.evaluation import within_problem_aucs

K = 8  # responses to choose among
COMPARED = ("prm", "vote_prod", "lower_bound")  # each against the majority vote
OTHER_DRAW = 1000  # added to the seed of the second source


class Recipe(NamedTuple):
    """Changes of the run's sections `label_steps` and `train_prm`; a second source labels the same responses again."""

    labels: dict[str, Any]
    training: dict[str, Any]
    second: bool = False


RECIPES = {
    "full": Recipe({}, {}),
    "random half": Recipe({"choose": "random", "choose_fraction": 0.5}, {}),
    "random quarter": Recipe({"choose": "random", "choose_fraction": 0.25}, {}),
    "middle quarter": Recipe({"choose": "middle", "choose_fraction": 0.25}, {}),
    "mixed quarter": Recipe({"choose": "mixed", "choose_fraction": 0.25}, {}),
    "sequential": Recipe({"budget": "sequential"}, {}),
    "bisect": Recipe({"budget": "bisect"}, {}),
    "full, shares": Recipe({}, {"soft_labels": True}),
    "full, middle ignored": Recipe({}, {"good_above": 0.3, "bad_below": 0.2}),
    "full, counts": Recipe({}, {"loss": "binomial"}),
    "full, counts and spread": Recipe({}, {"loss": "binomial", "concentration_head": True}),
    "consensus of two": Recipe({"num_continuations": 2}, {}, second=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `mpo evidence` (seed0, seed1, …) or of `mpo pipeline`")
    parser.add_argument("--settings", type=Path, default=Path("recipes/configs/digits.yaml"), help="those of the run")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=[*RECIPES], help="in this order")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of every PRM")
    parser.add_argument("--out", type=Path, default=Path("runs/label_recipes"))
    args = parser.parse_args()
    settings = Settings(args.settings)
    runs = runs_of(args.run, holding="policy")
    reference: Measure | None = None
    print(
        f"{'recipe':25}{'continuations':>14}{'tokens':>11}  {'AUC in a problem':23}{f'best@{K} - majority@{K}':26}"
        f"{f'vote by product@{K} - majority@{K}':37}{'best minus that of the first':28}",
        flush=True,
    )
    for name in args.recipes:
        arms = [_arm(settings, run, args.out / run.name, name, args.steps) for run in runs]
        best = _measure(arm["prm"] for arm in arms)
        reference = reference or best
        cells = [f"{name:25}", f"{_mean(arms, 'continuations'):>14,}", f"{_mean(arms, 'tokens'):>11,}", "  "]
        cells += [f"{interval(_measure(arm['aucs'] for arm in arms).estimate()):23}"]
        for selector, width in (("prm", 26), ("vote_prod", 37)):
            ours, votes = (_measure(arm[which] for arm in arms) for which in (selector, "majority"))
            cells += [f"{signed(difference(ours, votes) or {}):{width}}"]
        cells += [f"{signed(difference(best, reference) or {}):28}"]
        if all("lower_bound" in arm for arm in arms):
            bound = _measure(arm["lower_bound"] for arm in arms)
            cells += [f"lower bound minus best: {signed(difference(bound, best) or {})}"]
        print("".join(cells).rstrip(), flush=True)


def _arm(settings: Settings, run: Path, out: Path, name: str, steps: int) -> dict[str, Any]:
    """What a recipe's labels cost, and what its PRM does with the samples of the development problems, by problem."""
    recipe, folder = RECIPES[name], out / name.replace(" ", "_").replace(",", "")
    seed = manifest_of(run / "prm_init")["fingerprint"]["settings"]["seed"]
    own = settings.build("label_steps", groups=run / "prm_verified", policy=run / "policy", out=run, seed=seed)
    sources = [_labelled(run, folder / "labels", replace(own, **recipe.labels))]
    if recipe.second:
        other = replace(own, **recipe.labels, seed=seed + OTHER_DRAW)
        sources.append(_labelled(run, folder / "other_labels", other))
    training: TrainPRMConfig = settings.build(
        "train_prm", groups=sources[0], model=run / "prm_init", out=folder / f"prm_{steps}", seed=seed
    )
    changes: dict[str, Any] = {"max_steps": steps, "injected": 0, "consensus": sources[1] if recipe.second else None}
    prm = train_prm(replace(training, **changes, **recipe.training))
    scored = score(ScoreConfig(groups=_development(settings, run, out, seed), prm=prm, out=folder / f"scored_{steps}"))
    results = json.loads(
        (best_of_n(BestOfNConfig(scored, folder / f"best_of_n_{steps}", ks=[K])) / RESULTS).read_text()
    )
    at_k = {
        selector: dict(zip(results["problem_ids"], by_k[str(K)], strict=True))
        for selector, by_k in results["values"].items()
        if selector in (*COMPARED, "majority")
    }
    spent = [manifest_of(source)["counts"]["drawn"] for source in sources]
    costs = {what: sum(counts[what] for counts in spent) for what in ("continuations", "tokens")}
    return {**at_k, "aucs": within_problem_aucs(read_groups(scored)), **costs}


def _labelled(run: Path, out: Path, config: Any) -> Path:
    """The run's own labels where they are these, or labels in a folder of their own."""
    own, theirs = run / "prm_labelled", vars(replace(config, out=run)).items()
    if (own / "manifest.json").exists():
        settings = manifest_of(own)["fingerprint"]["settings"]
        same = [str(value) == str(settings[name]) for name, value in theirs if name in settings]
        if same and all(same):
            return own
    return label(replace(config, out=out))


def _development(settings: Settings, run: Path, out: Path, seed: int) -> Path:
    """The policy's samples of the development problems, verified; all recipes share them."""
    problems = run / "world" / "development.jsonl"
    drawing = settings.build("test_sample", policy=run / "policy", problems=problems, out=out / "samples", seed=seed)
    drawn = sample(replace(drawing, num_samples=K))
    return verify(settings.build("verify", groups=drawn, out=out / "verified"))


def _mean(arms: list[dict[str, Any]], name: str) -> int:
    return round(fmean(arm[name] for arm in arms))


def _measure(seeds: Iterable[Values]) -> Measure:
    """By problem and seed, so that an interval is over problems after averaging the seeds."""
    return Measure(dict(enumerate(seeds)))


if __name__ == "__main__":
    main()
