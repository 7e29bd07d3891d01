"""Chains of stages that `mpo pipeline` and `mpo rounds` share: sample → verify → score, and on to pairs."""

from __future__ import annotations

from pathlib import Path

from recipes import config as stages
from recipes.loop.settings import Settings


def paired(
    settings: Settings, folder: Path, out: Path, policy: Path, prm: Path, seed: int, **asked: Path | None
) -> Path:
    """A policy's own samples of `problems` (with `image_root`), in `folder`, and the pairs that they give, in `out`."""
    from recipes.data.pairs import pairs

    pairing = settings.build("pairs", groups=folder / "scored", out=out)
    drawing = settings.build("preference_sample", policy=policy, out=folder / "samples", seed=seed, **asked)
    scored(settings, folder, drawing, prm, visual_dependence=pairing.min_visual_dependence is not None)
    return pairs(pairing)


def scored(settings: Settings, folder: Path, drawing: stages.SampleConfig, prm: Path, **flags: bool) -> Path:
    """Samples, verified and scored: three folders in `folder`; `flags` are of the scoring."""
    from recipes.data.sample import sample
    from recipes.data.score import score
    from recipes.data.verify import verify

    verified = verify(settings.build("verify", groups=sample(drawing), out=folder / "verified"))
    return score(settings.build("score", groups=verified, prm=prm, out=folder / "scored", **flags))
