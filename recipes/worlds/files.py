"""What the embedded worlds share: images on disk, and splits that are the same for every seed."""

from __future__ import annotations

from collections.abc import Mapping
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


def said_counts(counts: Mapping[str, int]) -> str:
    """Problems per split, in words.

    Example:
        >>> said_counts({"warm_start": 2, "test": 1})
        'problems: warm start 2, test 1'
    """
    return "problems: " + ", ".join(f"{split.replace('_', ' ')} {number}" for split, number in counts.items())
