"""A problem with images that are not its own: blank ones, or another problem's. Who looks at them must notice.

The other problem's images are never the same pixels as the problem's own, under whatever file name: a policy that
answers the same to its own image would stand accused of not looking. Where no problem has images of exactly the same
sizes, the most similar ones are resized, so that the number of image tokens stays the same.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image

from mpo.multimodal.images import image_sha256, image_size, load_image
from rewards.types import Problem

if TYPE_CHECKING:
    from rewards.types import ImageLike

NEIGHBOURS = 64  # problems of similar image area that are compared for the most similar shape

Sizes = tuple[tuple[int, int], ...]


def blanked(problem: Problem) -> Problem:
    """The problem with a white image of the same size in place of each of its own."""
    sizes = [image_size(image) for image in problem.images]
    return replace(problem, images=tuple(Image.new("RGB", size, "white") for size in sizes))


def partners(problems: Sequence[Problem]) -> list[int | None]:
    """For each problem the place of the problem whose images it may be shown instead of its own.

    It is the next problem with images of exactly the same sizes; else the one, with as many images, whose sizes are the
    most similar. A partner shares no image with the problem, by decoded pixels.

    Returns:
        `None` for a problem without images, and where every other problem with as many images shares one.

    Example:
        >>> red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (9, 8), "blue")
        >>> partners([Problem("a", "?", (red,)), Problem("b", "?", (blue,)), Problem("c", "?")])
        [1, 0, None]
    """
    digest = cache(lambda place: _pixels(problems[place].images))
    sizes: list[Sizes] = [tuple(image_size(image) for image in problem.images) for problem in problems]
    alike: dict[Sizes, list[int]] = defaultdict(list)
    as_many: dict[int, list[int]] = defaultdict(list)
    for place, own in enumerate(sizes):
        alike[own].append(place)
        as_many[len(own)].append(place)
    for places in as_many.values():
        places.sort(key=lambda place: (_area(sizes[place]), place))
    turn = {place: index for places in alike.values() for index, place in enumerate(places)}
    rank = {place: index for places in as_many.values() for index, place in enumerate(places)}

    def candidates(place: int) -> Iterator[int]:
        same = alike[sizes[place]]
        yield from (same[(turn[place] + step) % len(same)] for step in range(1, len(same)))
        others, at = as_many[len(sizes[place])], rank[place]
        near = [p for p in others[max(0, at - NEIGHBOURS) : at + NEIGHBOURS + 1] if sizes[p] != sizes[place]]
        yield from sorted(near, key=lambda p: (_distance(sizes[place], sizes[p]), (p - place) % len(problems)))

    def partner(place: int) -> int | None:
        if not sizes[place]:
            return None
        return next((p for p in candidates(place) if digest(place).isdisjoint(digest(p))), None)

    return [partner(place) for place in range(len(problems))]


def showing(problem: Problem, other: Problem) -> Problem:
    """The problem with the other one's images, resized to the sizes of its own where these differ.

    Args:
        problem: with images.
        other: its partner, with as many images (`partners`).
    """
    pairs = zip(problem.images, other.images, strict=True)
    return replace(problem, images=tuple(_sized(image, image_size(own)) for own, image in pairs))


def _sized(image: ImageLike, size: tuple[int, int]) -> ImageLike:
    return image if image_size(image) == size else load_image(image).resize(size)


def _pixels(images: Sequence[ImageLike]) -> frozenset[str]:
    return frozenset(image_sha256(load_image(image)) for image in images)


def _area(sizes: Sizes) -> float:
    return sum(math.log(width * height) for width, height in sizes)


def _distance(own: Sizes, other: Sizes) -> float:
    """How far images must be stretched: |log of the factor| in width and in height, over all of them."""
    pairs = zip(own, other, strict=True)
    return sum(abs(math.log(a[0] / b[0])) + abs(math.log(a[1] / b[1])) for a, b in pairs)
