"""`mpo split`: one file of questions in parts that share no image, for a PRM, for pairs, and to test on.

Problems that share an image, by its pixels, stay together; so do problems without images that ask the same. Which part
they go to depends on their content and the seed alone, not on the order of the lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mpo.multimodal.errors import ConfigError, DataError
from recipes.config import SplitConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import read_problems, write_problems
from recipes.stage.kept_images import KeptImages
from recipes.stage.quarantine import Quarantine, readable
from rewards.types import Problem

PARTS = ("prm", "preference", "development", "test")


def split(config: SplitConfig) -> Path:
    """Write `PART.jsonl` for every part with a share; images go to `images/`, or stay below `image_root`.

    Raises:
        ConfigError: the shares are not 1 in all, or leave one part.
        DataError: there are fewer groups of problems without a common image than parts.
    """
    shares = shares_of(config)
    stage = open_stage("split", config, inputs=[config.problems])
    if stage.complete:
        return stage.out
    quarantine = Quarantine()
    every = read_problems(config.problems, image_root=config.image_root, on_bad=quarantine.add).values()
    problems, digests = readable(every, quarantine)
    if not problems:
        details = "; ".join(row["detail"] for row in quarantine.rows[:3])
        raise DataError(f"no line of {config.problems} is a problem: {quarantine.counts()}: {details}")
    names = {problem.id: _names(problem, [digests[image] for image in problem.images]) for problem in problems}
    together = components(names)
    if len(together) < len(shares):
        raise DataError(
            f"{config.problems}: {len(together)} group{'s' * (len(together) != 1)} of problems that share no image "
            f"with another; expected at least {len(shares)}, one for each part ({', '.join(shares)})"
        )
    part_of = assigned(together, shares, seed=config.seed)
    images = None if config.image_root else KeptImages(stage.out / "images")
    kept = {part: [problem for problem in problems if part_of[problem.id] == part] for part in shares}
    for part, some in kept.items():
        moved = (_kept(problem, images) for problem in some)
        write_problems(stage.out / f"{part}.jsonl", moved, image_root=config.image_root)
    quarantine.write(stage.out)
    rejected, sizes = quarantine.counts(), {part: len(some) for part, some in kept.items()}
    counts = {"in": len(problems) + sum(rejected.values()), "out": len(problems), "rejected": rejected, "parts": sizes}
    number = len({digests[image] for problem in problems for image in problem.images})
    said = ", ".join(f"{part} {size}" for part, size in sizes.items())
    return stage.finish(counts, note=f"{said}; {number} different images, none in two parts")


def shares_of(config: SplitConfig) -> dict[str, float]:
    """Part → share of the problems, of the parts that get any.

    Raises:
        ConfigError: the shares are not 1 in all, or leave one part.
    """
    shares = {part: getattr(config, part) for part in PARTS if getattr(config, part)}
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(f"shares of {sum(shares.values()):g} in all; expected 1, got {shares}")
    if len(shares) < 2:
        raise ConfigError(f"expected at least two parts with a share, got {shares}")
    return shares


def components(names: Mapping[str, Sequence[str]]) -> list[tuple[str, list[str]]]:
    """Problems that are tied by a common name, directly or through others: the group's own name, and its ids.

    Args:
        names: id → what the problem shows or asks, at least one.

    Example:
        >>> components({"a": ["x"], "b": ["x", "y"], "c": ["z"]})
        [('x', ['a', 'b']), ('z', ['c'])]
    """
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = name = above[above[name]]
        return name

    for some in names.values():
        for name in some:
            low, high = sorted((top(some[0]), top(name)))
            above[high] = low  # the smallest name leads, whatever the order of the rows
    groups: dict[str, list[str]] = {}
    for id, some in names.items():
        groups.setdefault(top(some[0]), []).append(id)
    return sorted(groups.items())


def assigned(together: Sequence[tuple[str, list[str]]], shares: Mapping[str, float], *, seed: int) -> dict[str, str]:
    """Id → part. Groups come in an order drawn from their names and the seed; each goes where most is missing."""
    total = sum(len(ids) for _, ids in together)
    missing = {part: share * total for part, share in shares.items()}
    part_of: dict[str, str] = {}
    for _, ids in sorted(together, key=lambda group: hashlib.sha256(f"{seed}:{group[0]}".encode()).digest()):
        part = max(missing, key=lambda name: missing[name] / shares[name])
        missing[part] -= len(ids)
        part_of |= dict.fromkeys(ids, part)
    return part_of


def _names(problem: Problem, digests: Sequence[str]) -> list[str]:
    """The problem's images by their pixels; without any, its question."""
    return [*digests] or [hashlib.sha256(problem.question.encode("utf-8", "replace")).hexdigest()]


def _kept(problem: Problem, images: KeptImages | None) -> Problem:
    return problem if images is None else replace(problem, images=tuple(map(images.kept, problem.images)))
