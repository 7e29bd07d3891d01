"""How best-of-N grows with the number of labelled responses that a PRM was trained on, on a finished digits run.

For each number of problems a PRM is trained anew on that many of the first labelled groups of each seed (same start,
same steps, same settings as the run) and ranks the run's held-out samples; 0 means the run's own PRM, of all problems.
Each training and scoring is a stage folder below --out, so a killed run continues where it was.

    python benchmarks/prm_data_curve.py runs/evidence                            # 3 seeds, about 20 minutes per point
    python benchmarks/prm_data_curve.py runs/demo --settings recipes/configs/digits_demo.yaml --problems 50 100
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from recipes.answering.best_of_n import best_of_n
from recipes.config import BestOfNConfig, ScoreConfig
from recipes.data.score import score
from recipes.loop.settings import Settings
from recipes.report.measures import Measure, Values
from recipes.report.summary import runs_of
from recipes.stage.folder import RESULTS, manifest_of
from recipes.stage.groups import read_groups
from recipes.training.train_prm import train_prm
from rewards.choosing.evaluation import within_problem_aucs
from rewards.statistics import Estimate, mean_with_interval, paired_difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `mpo evidence` (seed0, seed1, …) or of `mpo pipeline`")
    parser.add_argument("--settings", type=Path, default=Path("recipes/configs/digits.yaml"), help="those of the run")
    parser.add_argument("--problems", type=int, nargs="+", default=[75, 300, 600, 0], help="labelled, for the PRM")
    parser.add_argument("--k", type=int, default=8, help="responses")
    parser.add_argument("--out", type=Path, default=Path("runs/prm_data_curve"))
    args = parser.parse_args()
    settings = Settings(args.settings)
    runs = runs_of(args.run)
    print(f"{'problems':>8}{'responses':>10}  {'AUC in a problem':22}{f'best@{args.k}':22}minus majority@{args.k}")
    for problems in args.problems:
        arms = [_arm(settings, run, args.out / run.name / str(problems), problems, args.k) for run in runs]
        best, vote, aucs = (_over_seeds([arm[name] for arm in arms]) for name in ("prm", "majority", "aucs"))
        responses = round(sum(arm["responses"] for arm in arms) / len(arms))
        each = ", ".join(f"{fmean(arm['prm'].values()) - fmean(arm['majority'].values()):+.3f}" for arm in arms)
        print(
            f"{problems or 'all':>8}{responses:>10}  {_shown(mean_with_interval(aucs)):22}"
            f"{_shown(mean_with_interval(best)):22}{_shown(paired_difference(best, vote))}  each seed: {each}",
            flush=True,
        )


def _arm(settings: Settings, run: Path, out: Path, problems: int, k: int) -> dict[str, Any]:
    """One seed's PRM from its first `problems` labelled problems, and what it picks among the held-out samples."""
    prm, scored = run / "prm", run / "test" / "policy" / "scored"
    if problems:
        prm = _trained(settings, run, out / "prm", problems)
        scored = score(ScoreConfig(groups=run / "test" / "policy" / "verified", prm=prm, out=out / "scored"))
    results = json.loads((best_of_n(BestOfNConfig(scored, out / "best_of_n", ks=[k])) / RESULTS).read_text())
    at_k = {
        name: dict(zip(results["problem_ids"], by_k[str(k)], strict=True)) for name, by_k in results["values"].items()
    }
    return {
        "prm": at_k["prm"],
        "majority": at_k["majority"],
        "aucs": within_problem_aucs(read_groups(scored)),
        "responses": manifest_of(prm)["counts"]["in"],
    }


def _trained(settings: Settings, run: Path, out: Path, problems: int) -> Path:
    seed = manifest_of(run / "prm")["fingerprint"]["settings"].get("seed", 0)
    labelled, start = run / "prm_labelled", run / "prm_init"
    given = {"groups": labelled, "model": start, "out": out, "seed": seed, "num_problems": problems}
    return train_prm(settings.build("train_prm", **given))


def _over_seeds(seeds: Sequence[Values]) -> list[float]:
    """Mean a problem, over the seeds that have a value for it, so that an interval is over problems."""
    return list(Measure(dict(enumerate(seeds))).averaged().values())


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


if __name__ == "__main__":
    main()
