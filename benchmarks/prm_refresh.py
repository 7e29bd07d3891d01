"""What a refresh of the PRM on the trained policy's own responses is worth, on a finished run of the digits world.

The trained policy's responses to the run's PRM problems get step labels by its own continuations, at most --budget of
them, and the run's PRM continues on these and on the labels that it has learned from (`mpo rounds --refresh_budget`
does the same). The control is the same PRM continued for as many steps on its earlier labels alone. Both score the
run's held-out responses of the trained policy, which nothing here is chosen on. Each step is a stage folder below
--out, so a killed run continues where it was.

    python benchmarks/prm_refresh.py runs/evidence                    # every seed, about 15 CPU minutes each
    python benchmarks/prm_refresh.py runs/evidence/seed0 --budget 5000 --steps 100
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.answering.best_of_n import best_of_n
from recipes.config import BestOfNConfig, LabelConfig, SampleConfig, ScoreConfig, TrainPRMConfig
from recipes.data.label_steps import label
from recipes.data.sample import sample
from recipes.data.score import score
from recipes.data.verify import verify
from recipes.loop.settings import Settings
from recipes.report.measures import Measure, difference
from recipes.report.summary import TRAINED, runs_of
from recipes.stage.folder import RESULTS, manifest_of
from recipes.stage.groups import read_groups
from recipes.stage.numbers import signed
from recipes.training.train_prm import train_prm
from rewards.choosing.evaluation import within_problem_aucs
from rewards.statistics import mean_with_interval

SELECTORS = ("prm", "vote_prod")
KS = (2, 4, 8, 16, 32)
WAYS = ("before training", "after it, as it was", "after it, earlier labels", "after it, refreshed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `mpo evidence` (seed0, seed1, …) or of `mpo pipeline`")
    parser.add_argument("--settings", type=Path, default=Path("recipes/configs/digits.yaml"), help="those of the run")
    parser.add_argument("--arm", default=TRAINED, help="the trained policy")
    parser.add_argument("--budget", type=int, default=25_000, help="continuations, at most")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of the PRM")
    parser.add_argument("--out", type=Path, default=Path("runs/prm_refresh"))
    args = parser.parse_args()
    settings = Settings(args.settings)
    runs = runs_of(args.run, holding="policy")
    found = [_ways(settings, run, args.out / run.name, args) for run in runs]
    for way in WAYS:
        aucs = Measure({seed: one[way]["aucs"] for seed, one in enumerate(found)}).averaged()
        auc = mean_with_interval(list(aucs.values()))
        print(f"{way}: AUC within a problem {100 * auc.mean:.1f} [{100 * auc.low:.1f}, {100 * auc.high:.1f}]")
        for selector in SELECTORS:
            cells = []
            for k in KS:
                ours, votes = (
                    Measure({seed: one[way][name][k] for seed, one in enumerate(found)})
                    for name in (selector, "majority")
                )
                cells.append(f"k={k} {signed(difference(ours, votes) or {})}")
            print(f"  {selector} - majority: {'  '.join(cells)}", flush=True)


def _ways(settings: Settings, run: Path, out: Path, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Way → selector → k → problem → accuracy, and the AUC of each problem."""
    seed, policy = manifest_of(run / "prm_init")["fingerprint"]["settings"]["seed"], run / args.arm
    earlier, tested = run / "prm_labelled", run / "test" / args.arm
    drawing: SampleConfig = settings.build(
        "prm_sample", policy=policy, problems=run / "world" / "prm.jsonl", out=out / "samples", seed=seed
    )
    drawn = verify(settings.build("verify", groups=sample(drawing), out=out / "verified"))
    labelling: LabelConfig = settings.build("label_steps", groups=drawn, policy=policy, out=out / "labelled", seed=seed)
    labelled = label(replace(labelling, max_continuations=args.budget))
    folders = {WAYS[0]: run / "test" / "policy", WAYS[1]: tested}
    for way, groups, more in ((WAYS[2], earlier, []), (WAYS[3], labelled, [earlier])):
        folder = out / way.split(", ")[1].replace(" ", "_")
        training: TrainPRMConfig = settings.build(
            "train_prm", groups=groups, model=run / "prm", out=folder / "prm", seed=seed + 1
        )
        prm = train_prm(replace(training, max_steps=args.steps, earlier=more))
        scored = score(ScoreConfig(groups=tested / "verified", prm=prm, out=folder / "scored"))
        best_of_n(BestOfNConfig(scored, folder / "best_of_n", ks=[*KS]))
        folders[way] = folder
    return {way: _measured(folder) for way, folder in folders.items()}


def _measured(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "best_of_n" / RESULTS).read_text())
    at = {
        name: {k: dict(zip(results["problem_ids"], results["values"][name][str(k)], strict=True)) for k in KS}
        for name in (*SELECTORS, "majority")
    }
    return {**at, "aucs": within_problem_aucs(read_groups(folder / "scored"))}


if __name__ == "__main__":
    main()
