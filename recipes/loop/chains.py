"""Chains of stages that `mpo pipeline` and `mpo rounds` share: sample → verify → score, and on to pairs."""

from __future__ import annotations

from pathlib import Path

from recipes import config as stages
from recipes.loop.settings import Settings
from recipes.loop.stages import Plan, Stages

Do = Plan | Stages


def paired(
    do: Do, settings: Settings, folder: Path, out: Path, policy: Path, prm: Path, seed: int, **asked: Path | None
) -> Path:
    """A policy's own samples of `problems` (with `image_root`), in `folder`, and the pairs that they give, in `out`."""
    pairing = settings.build("pairs", groups=folder / "scored", out=out)
    drawing = settings.build("preference_sample", policy=policy, out=folder / "samples", seed=seed, **asked)
    whose = "the policy's responses to the preference problems"
    scored(do, settings, folder, drawing, prm, whose, visual_dependence=pairing.min_visual_dependence is not None)
    return do("pairs", pairing, f"chosen and rejected of {whose}")


def scored(
    do: Do, settings: Settings, folder: Path, drawing: stages.SampleConfig, prm: Path, whose: str, **flags: bool
) -> Path:
    """Samples, verified and scored: three folders in `folder`; `whose` says of what, and `flags` are of the scoring."""
    drawn = do("sample", drawing, whose)
    verified = do("verify", settings.build("verify", groups=drawn, out=folder / "verified"), whose)
    return do("score", settings.build("score", groups=verified, prm=prm, out=folder / "scored", **flags), whose)
