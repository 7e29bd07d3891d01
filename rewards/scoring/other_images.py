"""A problem with images that are not its own: blank ones, or another problem's. Who looks at them must notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from mpo.multimodal.images import image_size
from rewards.types import Problem


def blanked(problem: Problem) -> Problem:
    """The problem with a white image of the same size in place of each of its own."""
    sizes = [image_size(image) for image in problem.images]
    return replace(problem, images=tuple(Image.new("RGB", size, "white") for size in sizes))


def swapped(problems: Sequence[Problem]) -> list[Problem]:
    """Each problem with the images of the next problem whose images have the same sizes.

    Number and sizes are kept, so only what the images show changes. A problem without such a partner, or without
    images, keeps its own.
    """
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for index, problem in enumerate(problems):
        alike.setdefault(tuple(image_size(image) for image in problem.images), []).append(index)
    partner = {i: group[(place + 1) % len(group)] for group in alike.values() for place, i in enumerate(group)}
    return [replace(problem, images=problems[partner[i]].images) for i, problem in enumerate(problems)]
