"""Chains of stages that `mpo pipeline` and `mpo rounds` share: sample → verify → score, and on to pairs."""

from __future__ import annotations

from pathlib import Path

from recipes import config as stages
from recipes.loop.settings import Settings
from recipes.loop.stages import Plan, Stages

Do = Plan | Stages
PREFERENCE = "the policy's responses to the preference problems"


def paired(
    do: Do, settings: Settings, folder: Path, out: Path, policy: Path, prm: Path, seed: int, **asked: Path | None
) -> Path:
    """A policy's own samples of `problems` (with `image_root`), in `folder`, and the pairs that they give, in `out`."""
    pairing = settings.build("pairs", groups=folder / "scored", out=out)
    drawing = preference_drawing(settings, folder, policy, seed, **asked)
    scored(do, settings, folder, drawing, prm, PREFERENCE, visual_dependence=pairing.min_visual_dependence is not None)
    return do("pairs", pairing, f"chosen and rejected of {PREFERENCE}")


def preference_drawing(
    settings: Settings, folder: Path, policy: Path, seed: int, **asked: Path | None
) -> stages.SampleConfig:
    """How the samples of a policy are drawn that pairs are made of."""
    drawing: stages.SampleConfig = settings.build(
        "preference_sample", policy=policy, out=folder / "samples", seed=seed, **asked
    )
    return drawing


def scored(
    do: Do, settings: Settings, folder: Path, drawing: stages.SampleConfig, prm: Path, whose: str, **flags: bool
) -> Path:
    """Samples, verified and scored: three folders in `folder`; `whose` says of what, and `flags` are of the scoring."""
    groups = verified(do, settings, folder, drawing, whose)
    return do("score", settings.build("score", groups=groups, prm=prm, out=folder / "scored", **flags), whose)


def verified(do: Do, settings: Settings, folder: Path, drawing: stages.SampleConfig, whose: str) -> Path:
    """Samples, verified: two folders in `folder`."""
    drawn = do("sample", drawing, whose)
    return do("verify", settings.build("verify", groups=drawn, out=folder / "verified"), whose)
