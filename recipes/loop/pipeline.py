"""`mpo pipeline` and `mpo evidence`: the loop as one paragraph of stages.

The policy's own samples are verified and continued step by step, the counts train a process reward model, that
model picks chosen and rejected answers, MPO trains the policy on them, and the same model picks the best of N.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mpo.multimodal.errors import ConfigError, StageError
from mpo.multimodal.files import read_json
from recipes.config import EvidenceArguments, PipelineArguments
from recipes.loop.arms import ARMS, check_arms, pairs_of, train_arm
from recipes.loop.chains import paired, scored
from recipes.loop.settings import Settings
from recipes.stage.processes import run_together

if TYPE_CHECKING:
    from recipes.loop.start import Start

BASELINE_SAMPLES = 4  # a problem, for arms of which only pass@1 is shown


def pipeline(arguments: PipelineArguments) -> Path:
    """Run every stage that is not yet complete, then summarise and write the page."""
    settings = Settings(arguments.settings)
    check_arms(arguments.arms, settings, development=settings.world != "own")
    loop(settings, arguments.run_dir, arguments.seed, arguments.arms)
    return _publish([arguments.run_dir], arguments.run_dir)


def loop(settings: Settings, run: Path, seed: int, arms: Sequence[str]) -> None:
    """One seed, from the first policy to Best-of-N on held-out problems."""
    from recipes.loop.start import start_of

    start = start_of(settings, run, seed)
    policy, prm = start.policy, start.prm or _trained_prm(settings, start, run, seed)
    made = {
        "pairs": paired(
            settings, run / "preference", run / "pairs", policy, prm, seed, **start.asking(start.preference)
        )
    }

    trained = {"policy": policy}
    for arm in arms:
        kind = ARMS[arm].pairs
        made[kind] = made.get(kind) or pairs_of(settings, start, run, kind, prm, seed)
        trained[arm] = train_arm(settings, start, run, arm, made[kind], seed)
    for arm, model in trained.items():
        answer(settings, start, run / "test" / arm, model, prm, seed, rerank=arm in ("policy", "mpo"))


def _trained_prm(settings: Settings, start: Start, run: Path, seed: int) -> Path:
    """A PRM from Monte-Carlo labels of the policy's own samples."""
    from recipes.data.label_steps import label
    from recipes.data.sample import sample
    from recipes.data.verify import verify
    from recipes.training.train_prm import train_prm

    drawn = sample(
        settings.build(
            "prm_sample", policy=start.policy, out=run / "prm_samples", seed=seed, **start.asking(start.prm_problems)
        )
    )
    verified = verify(settings.build("verify", groups=drawn, out=run / "prm_verified"))
    labelled = label(
        settings.build("label_steps", groups=verified, policy=start.policy, out=run / "prm_labelled", seed=seed)
    )
    return train_prm(settings.build("train_prm", groups=labelled, model=start.prm_model, out=run / "prm", seed=seed))


def answer(settings: Settings, start: Start, out: Path, model: Path, prm: Path, seed: int, *, rerank: bool) -> None:
    """Greedy, sampled and blind answers of one policy; with `rerank`, the PRM's choice among the samples."""
    from recipes.answering.best_of_n import best_of_n
    from recipes.data.sample import sample
    from recipes.data.verify import verify

    given = {"policy": model, "seed": seed, **start.asking(start.test)}
    greedy = settings.build("test_sample", out=out / "greedy_samples", **given)
    greedy = replace(greedy, temperature=0.0, num_samples=1)
    swapped = replace(greedy, out=out / "swapped_samples", swap_images=True)
    verify(settings.build("verify", groups=sample(greedy), out=out / "greedy"))
    verify(settings.build("verify", groups=sample(swapped), out=out / "swapped"))
    drawn = settings.build("test_sample", out=out / "samples", **given)
    if rerank:
        groups = scored(settings, out, drawn, prm, visual_dependence=True)
        best_of_n(settings.build("best_of_n", groups=groups, out=out / "best_of_n"))
    else:
        drawn = replace(drawn, num_samples=min(drawn.num_samples, BASELINE_SAMPLES))
        verify(settings.build("verify", groups=sample(drawn), out=out / "verified"))


def evidence(arguments: EvidenceArguments) -> Path:
    """Every arm, every seed, one table; seeds run in their own processes, `jobs` at a time."""
    settings = Settings(arguments.settings)
    arms: Sequence[str] = arguments.arms or [
        arm for arm in ARMS if arm != "mpo_exact_span" or settings.world == "world"
    ]
    check_arms(arms, settings, development=settings.world != "own")
    if arguments.jobs < 1 or len(set(arguments.seeds)) < len(arguments.seeds):
        raise ConfigError(f"expected jobs >= 1 and different seeds, got {arguments.jobs} and {arguments.seeds}")
    runs = [arguments.run_dir / f"seed{seed}" for seed in arguments.seeds]
    commands = [_command(arguments.settings, run, seed, arms) for seed, run in zip(arguments.seeds, runs, strict=True)]
    # our own path, so that the seeds import what we do, whatever the working folder holds
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
    codes = run_together(commands, jobs=arguments.jobs, environment=environment)
    if any(codes):
        failed = [str(run) for run, code in zip(runs, codes, strict=True) if code]
        raise StageError(f"these runs failed, see above; run the same command again to continue: {', '.join(failed)}")
    return _publish(runs, arguments.run_dir)


def _publish(runs: list[Path], folder: Path) -> Path:
    """`summary.json`, the page, and the tables in the terminal."""
    from recipes.report.page import report
    from recipes.report.summary import write_summary
    from recipes.report.tables import print_summary

    summary = write_summary(runs, folder / "summary.json")
    page = report(folder)
    print_summary(read_json(summary))
    print(f"report: {page}")
    return page


def _command(settings: Path, run: Path, seed: int, arms: Sequence[str]) -> list[str]:
    flags = {"--settings": settings, "--run_dir": run, "--seed": seed}
    words = [str(word) for pair in flags.items() for word in pair]
    return [sys.executable, "-P", "-m", "recipes.cli", "pipeline", *words, "--arms", *arms]
