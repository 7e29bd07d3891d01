"""What the embedded worlds share: images on disk, and splits that are the same for every seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mpo.multimodal.images import image_sha256, load_image
from rewards.types import Problem

# Held-out images must not change when a run changes its seed: tables of several seeds share one test set.
FIXED_SEED = {"development": 0, "test": 0}


def on_disk(problem: Problem, root: Path) -> Problem:
    """The problem with its image saved in `root / "images"`, under the hash of its pixels."""
    picture = load_image(problem.images[0])
    path = root / "images" / f"{image_sha256(picture)[:24]}.png"
    if not path.exists():
        picture.save(path)
    return replace(problem, images=(path,))
