"""The arms of a run: what is held against what, on the same samples, with the same steps.

An arm is loss weights and a kind of pairs; those of `reinforced.py` end with GRPO. The section `arms` of a settings
file may give an arm candidates, e.g. `rft: [{learning_rate: 0.0002}, {learning_rate: 0.0006}]`: each is trained, and
the best on the development problems is kept. All arms that are tuned must have as many candidates: none is better for
having been tried more often.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.files import write_atomic
from recipes import config as stages
from recipes.loop.reinforced import REINFORCED, check_reinforced, words_of
from recipes.loop.settings import Settings
from rewards.types import correctness_of

if TYPE_CHECKING:
    from recipes.loop.chains import Do
    from recipes.loop.start import Start

DEVELOPMENT_SAMPLES = 4  # a problem, to choose between candidates
MPO, RFT = (0.8, 0.2, 1.0), (0.0, 0.0, 1.0)
PAPER = {"rejected_span": "full", "min_step_score": 0.0}
FIRST_ERROR = {"rejected_span": "first_bad_step", "min_step_score": 0.0}

# folder of the pairs → how they differ from what the section `pairs` says
PAIRS: dict[str, dict[str, Any]] = {
    "pairs": {},
    "pairs_paper": PAPER,
    "pairs_filter": PAPER | {"min_step_score": 0.5},
    "pairs_first_error": FIRST_ERROR,
    "pairs_random_span": FIRST_ERROR | {"span_source": "random"},
    "pairs_mc_span": FIRST_ERROR | {"span_source": "mc"},
    "pairs_exact_span": FIRST_ERROR | {"span_source": "exact"},
    "pairs_all_wrong": {},  # and step pairs of problems with only wrong samples
}


@dataclass(frozen=True)
class Arm:
    """Loss weights (w_p, w_q, w_g), and a row of `PAIRS`."""

    weights: tuple[float, float, float]
    pairs: str


ARMS: dict[str, Arm] = {
    "mpo": Arm(MPO, "pairs"),  # what the settings say: by the PRM rules' default, first error and filter
    "mpo_paper": Arm(MPO, "pairs_paper"),
    "mpo_first_error": Arm(MPO, "pairs_first_error"),
    "mpo_all_wrong": Arm(MPO, "pairs_all_wrong"),
    "dpo": Arm((1.0, 0.0, 0.0), "pairs_paper"),
    "dpo_lm": Arm((1.0, 0.0, 1.0), "pairs_paper"),
    "rft": Arm(RFT, "pairs_paper"),
    "rft_filter": Arm(RFT, "pairs_filter"),
    "rft_all_wrong": Arm(RFT, "pairs_all_wrong"),
    # what the first bad step is worth, by who finds it; the random step is the control
    "mpo_random_span": Arm(MPO, "pairs_random_span"),
    "mpo_mc_span": Arm(MPO, "pairs_mc_span"),
    "mpo_exact_span": Arm(MPO, "pairs_exact_span"),
}


def check_arms(names: Sequence[str], settings: Settings, *, development: bool) -> None:
    """Refuse arms that cannot run, before anything does.

    Args:
        names: asked for.
        settings: of the run.
        development: whether there are development problems.

    Raises:
        ConfigError: an unknown arm, exact labels outside the digits world, GRPO without its settings, or candidates
            that cannot be told apart fairly.
    """
    known = [*ARMS, *REINFORCED]
    if unknown := sorted(({*names} | {*settings.arms}) - {*known}):
        raise ConfigError(f"unknown arm {unknown[0]!r}: expected some of {', '.join(known)}")
    check_reinforced(names, settings)
    if "mpo_exact_span" in names and settings.world != "world":
        raise ConfigError("arm mpo_exact_span needs exact step labels, which only the digits world has; leave it out")
    tuned = {name: len(settings.arms[name]) for name in names if len(settings.arms.get(name, [])) > 1}
    if tuned and not development:
        raise ConfigError(f"arm {min(tuned)} has {tuned[min(tuned)]} candidates, and there are no development problems")
    if len(set(tuned.values())) > 1:
        raise ConfigError(f"arms need as many candidates each, got {tuned}: give all the same tuning budget")


def pairs_of(do: Do, settings: Settings, start: Start, run: Path, kind: str, prm: Path, seed: int) -> Path:
    """The pairs of one kind, from the scored preference samples of the run."""
    scored, given = run / "preference" / "scored", dict(PAIRS[kind])
    groups = {"pairs_mc_span": _counted, "pairs_exact_span": _exact}.get(kind, _as_scored)(
        do, settings, start, run, seed
    )
    if kind == "pairs_all_wrong":
        given["continued"] = _continued(do, settings, start, run, scored, prm, seed)
    pairing = replace(settings.build("pairs", groups=groups, out=run / kind), **given)
    return do("pairs", pairing, f"chosen and rejected, as {kind.removeprefix('pairs_')} has them")


def train_arm(
    do: Do,
    settings: Settings,
    start: Start,
    run: Path,
    arm: str,
    train: Callable[[Path, dict[str, Any]], Path],
    seed: int,
) -> Path:
    """The trained policy of an arm, in the run's folder of that name; of several candidates, the best.

    Args:
        do, settings, start, run, seed: of the loop.
        arm: its name.
        train: a folder and a candidate's changes → the policy trained there.
    """
    candidates = settings.arms.get(arm) or [{}]
    if len(candidates) == 1:
        return train(run / arm, candidates[0])
    folder = run / "tuning" / arm
    found = []
    for index, candidate in enumerate(candidates):
        model = train(folder / str(index), candidate)
        found.append(_on_development(do, settings, start, folder / f"{index}_development", model, seed))
    if do.planning:
        return run / arm
    best = found.index(max(found))
    result = {"candidates": candidates, "development_accuracy": found, "chosen": best}
    write_atomic(folder / "tuning.json", json.dumps(result, indent=2) + "\n")
    return _linked(run / arm, folder / str(best))


def prefer(
    do: Do, settings: Settings, start: Start, arm: str, made: Path, seed: int, out: Path, candidate: dict[str, Any]
) -> Path:
    """A policy trained on pairs with the arm's loss weights."""
    names = ("preference_weight", "quality_weight", "generation_weight")
    weights = dict(zip(names, ARMS[arm].weights, strict=True))
    config = settings.build("train_mpo", policy=start.policy, pairs=made, out=out, seed=seed, **weights)
    return do("train-mpo", replace(config, **candidate), f"{arm}{words_of(candidate, out, arm)}")


def _on_development(do: Do, settings: Settings, start: Start, out: Path, model: Path, seed: int) -> float:
    """Mean accuracy of samples of the development problems."""
    from recipes.stage.groups import read_groups

    given = {"policy": model, "out": out / "samples", "seed": seed, **start.asking(start.development)}
    drawing = replace(settings.build("test_sample", **given), num_samples=DEVELOPMENT_SAMPLES)
    whose = f"responses of {model.parent.name}, candidate {model.name}, to the development problems"
    verifying = settings.build("verify", groups=do("sample", drawing, whose), out=out / "verified")
    verified = do("verify", verifying, whose)
    return 0.0 if do.planning else fmean(fmean(correctness_of(group)) for group in read_groups(verified))


def _linked(link: Path, folder: Path) -> Path:
    """A link to the chosen candidate, so that the run has the arm where it has every other one."""
    target = os.path.relpath(folder, link.parent)
    if link.is_symlink() and os.readlink(link) != target:
        link.unlink()
    if not link.is_symlink():
        link.symlink_to(target, target_is_directory=True)
    return link


def _as_scored(do: Do, settings: Settings, start: Start, run: Path, seed: int) -> Path:
    return run / "preference" / "scored"


def _counted(do: Do, settings: Settings, start: Start, run: Path, seed: int) -> Path:
    """The scored samples with Monte-Carlo counts, of every response."""
    out, every = run / "preference" / "counted", _every(settings)
    config = settings.build(
        "label_steps", groups=run / "preference" / "scored", policy=start.policy, out=out, seed=seed
    )
    return do("label-steps", replace(config, budget="bisect", **every), "steps of every scored response, for its span")


def _exact(do: Do, settings: Settings, start: Start, run: Path, seed: int) -> Path:
    """The scored samples with the world's own labels, of every response."""
    out, every = run / "preference" / "exact", _every(settings)
    config = stages.ExactLabelConfig(run / "preference" / "scored", start.policy, out, seed=seed, **every)
    return do("label-exact", config, "steps of every scored response, for its span")


def _every(settings: Settings) -> dict[str, Any]:
    """Label all responses: so many right ones and as many wrong ones as there are samples."""
    return {"responses": 2 * settings.preference_samples, "mixed_only": False}


def _continued(do: Do, settings: Settings, start: Start, run: Path, scored: Path, prm: Path, seed: int) -> Path:
    """Continuations of the sound beginnings, scored."""
    folder = run / "preference"
    drawing = settings.build("continue", groups=scored, policy=start.policy, out=folder / "continued", seed=seed)
    drawn = do("continue", drawing, "sound beginnings where every response is wrong, continued by the policy")
    scoring = settings.build("score", groups=drawn, prm=prm, out=folder / "continued_scored")
    return do("score", scoring, "these continuations")
