"""`mpo pipeline` and `mpo evidence`: the loop as one paragraph of stages.

The policy's own samples are verified and continued step by step, the counts train a process reward model, that
model picks chosen and rejected answers, MPO trains the policy on them, and the same model picks the best of N.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mpo.multimodal.errors import ConfigError, StageError
from mpo.multimodal.files import read_json
from recipes.config import EvidenceArguments, PipelineArguments
from recipes.loop.arms import ARMS, check_arms, pairs_of, prefer, train_arm
from recipes.loop.chains import Do, paired, scored
from recipes.loop.reinforced import REINFORCED, reinforce, with_origins
from recipes.loop.settings import Settings
from recipes.loop.stages import Plan, Stages
from recipes.loop.start import Start, own_start, world_start
from recipes.stage.processes import run_together

HEADLINE = ("policy", "mpo")  # the arms that are sampled and reranked up to the largest k, with another image as well
OTHER_SAMPLES = 8  # per problem, for the other arms


def pipeline(arguments: PipelineArguments) -> Path:
    """Run every stage that is not yet complete, then summarise and write the page."""
    settings = Settings(arguments.settings)
    check_arms(arguments.arms, settings, development=settings.world != "own")
    own = own_start(settings, arguments.run_dir) if settings.world == "own" else None
    plan = Plan()
    for do in (plan, Stages(plan.stages)):
        loop(do, settings, arguments.run_dir, arguments.seed, arguments.arms, own)
    return _publish([arguments.run_dir], arguments.run_dir)


def loop(do: Do, settings: Settings, run: Path, seed: int, arms: Sequence[str], own: Start | None) -> None:
    """One seed, from the first policy to Best-of-N on held-out problems; without a start, from an embedded world."""
    start = own or world_start(do, settings, run, seed)
    policy, prm = start.policy, start.prm or _trained_prm(do, settings, start, run, seed)
    preference = start.asking(start.preference)
    made = {"pairs": paired(do, settings, run / "preference", run / "pairs", policy, prm, seed, **preference)}

    trained = {"policy": policy}
    for arm in with_origins(arms):
        if arm in REINFORCED:
            train = partial(reinforce, do, settings, start, arm, trained[REINFORCED[arm]], prm, seed)
        else:
            kind = ARMS[arm].pairs
            made[kind] = made.get(kind) or pairs_of(do, settings, start, run, kind, prm, seed)
            train = partial(prefer, do, settings, start, arm, made[kind], seed)
        trained[arm] = train_arm(do, settings, start, run, arm, train, seed)
    for arm, model in trained.items():
        answer(do, settings, start, run / "test" / arm, model, prm, seed, headline=arm in HEADLINE)


def _trained_prm(do: Do, settings: Settings, start: Start, run: Path, seed: int) -> Path:
    """A PRM from Monte-Carlo labels of the policy's own samples."""
    whose = "the policy's responses to the PRM problems"
    given = {"policy": start.policy, "seed": seed}
    drawing = settings.build("prm_sample", out=run / "prm_samples", **given, **start.asking(start.prm_problems))
    verifying = settings.build("verify", groups=do("sample", drawing, whose), out=run / "prm_verified")
    verified = do("verify", verifying, whose)
    labelling = settings.build("label_steps", groups=verified, out=run / "prm_labelled", **given)
    labelled = do("label-steps", labelling, f"steps of {whose}, continued by the policy")
    training = settings.build("train_prm", groups=labelled, model=start.prm_model, out=run / "prm", seed=seed)
    return do("train-prm", training, "on these steps")


def answer(
    do: Do, settings: Settings, start: Start, out: Path, model: Path, prm: Path, seed: int, *, headline: bool
) -> None:
    """Greedy, sampled and blind answers of one policy, and the PRM's choice among the samples."""
    given = {"policy": model, "seed": seed, **start.asking(start.test)}
    drawn = settings.build("test_sample", out=out / "samples", **given)
    greedy = replace(drawn, out=out / "greedy_samples", temperature=0.0, num_samples=1)
    swapped = replace(greedy, out=out / "swapped_samples", swap_images=True)
    whose = f"responses of {out.name} to the test problems"
    for name, drawing in (("greedy", greedy), ("swapped", swapped)):
        told = f"greedy {whose}" + ", asked with another problem's image" * (name == "swapped")
        verifying = settings.build("verify", groups=do("sample", drawing, told), out=out / name)
        do("verify", verifying, told)
    measuring = settings.build("best_of_n", groups=out / "scored", out=out / "best_of_n")
    if not headline:
        drawn = replace(drawn, num_samples=min(drawn.num_samples, OTHER_SAMPLES))
        measuring = replace(measuring, ks=[k for k in measuring.ks if k <= drawn.num_samples])
    scored(do, settings, out, drawn, prm, f"sampled {whose}", visual_dependence=headline)
    if measuring.ks:
        do("best-of-n", measuring, f"every selector on the sampled {whose}")


def evidence(arguments: EvidenceArguments) -> Path:
    """Every arm, every seed, one table; seeds run in their own processes, `jobs` at a time."""
    settings = Settings(arguments.settings)
    arms: Sequence[str] = arguments.arms or [
        *(arm for arm in ARMS if arm != "mpo_exact_span" or settings.world == "world"),
        *(REINFORCED if settings.sections["train_grpo"] else ()),
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

    summary = read_json(write_summary(runs, folder / "summary.json"))
    page = report(folder, summary=summary)
    print_summary(summary)
    print(f"report: {page}")
    return page


def _command(settings: Path, run: Path, seed: int, arms: Sequence[str]) -> list[str]:
    flags = {"--settings": settings, "--run_dir": run, "--seed": seed}
    words = [str(word) for pair in flags.items() for word in pair]
    return [sys.executable, "-P", "-m", "recipes.cli", "pipeline", *words, "--arms", *arms]
