"""Chains of stages that `mpo pipeline` and `mpo rounds` share: sample → verify → score, and on to pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recipes import config as stages
from recipes.loop.settings import Settings

if TYPE_CHECKING:
    pass


def paired(settings: Settings, folder: Path, out: Path, policy: Path, problems: Path, prm: Path, seed: int) -> Path:
    """A policy's own samples of the preference problems, in `folder`, and the pairs that they give, in `out`."""
    from recipes.data.pairs import pairs

    pairing = settings.build("pairs", groups=folder / "scored", out=out)
    drawing = settings.build("preference_sample", policy=policy, problems=problems, out=folder / "samples", seed=seed)
    scored(settings, folder, drawing, prm, visual_dependence=pairing.min_visual_dependence is not None)
    return pairs(pairing)


def scored(settings: Settings, folder: Path, drawing: stages.SampleConfig, prm: Path, **flags: bool) -> Path:
    """Samples, verified and scored: three folders in `folder`; `flags` are of the scoring."""
    from recipes.data.sample import sample
    from recipes.data.score import score
    from recipes.data.verify import verify

    verified = verify(settings.build("verify", groups=sample(drawing), out=folder / "verified"))
    return score(settings.build("score", groups=verified, prm=prm, out=folder / "scored", **flags))
