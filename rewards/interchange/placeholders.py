"""Where a row's images stand: `<image>` before the question, inside it, behind it, or nowhere.

Our problems' images precede the question unless it is `placed`. So placeholders that open a text go, and a text that
holds them anywhere else keeps them, in the order of its images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpo.multimodal.errors import DataError
from mpo.multimodal.messages import PLACEHOLDER

if TYPE_CHECKING:
    from rewards.types import ImageLike

DIFFER = "placeholders and images differ in number"
_LEADING = re.compile(rf"(?:{PLACEHOLDER}\n?)*")
_NUMBERED = re.compile(r"<image ?(\d{1,3})>")


def placed_question(text: str, num_images: int) -> tuple[str, bool]:
    r"""The question, and whether it holds its images (`Problem.placed`).

    Raises:
        DataError: there are placeholders, but not one for each image.

    Example:
        >>> placed_question("<image>\nWhat is it?", 1), placed_question("Is <image> it?", 1), placed_question("A?", 1)
        (('What is it?', False), ('Is <image> it?', True), ('A?', False))
    """
    count = text.count(PLACEHOLDER)
    if count not in (0, num_images):
        raise DataError(f"{count} {PLACEHOLDER} for {num_images} images; expected as many, or none", reason=DIFFER)
    leading = _LEADING.match(text)
    assert leading is not None  # the pattern matches the empty text
    rest = text[leading.end() :]
    return (text, True) if PLACEHOLDER in rest else (rest, False)


def with_placeholders(question: str, num_images: int, *, placed: bool) -> str:
    """The text that `placed_question` reads: one placeholder per image.

    Raises:
        DataError: the question holds `<image>` as text, which would claim an image.

    Example:
        >>> with_placeholders("What is it?", 1, placed=False)
        '<image>\\nWhat is it?'
    """
    if placed:
        return question
    if PLACEHOLDER in question:
        raise DataError(f"the question holds the text {PLACEHOLDER}", reason="image placeholder in a text")
    return f"{PLACEHOLDER}\n" * num_images + question


def by_number(text: str, images: Sequence[ImageLike]) -> tuple[str, tuple[ImageLike, ...]]:
    """MMMU's `<image 1>` as `<image>`, the images in the order in which the text names them; others come first.

    Raises:
        DataError: it names an image that there is none of.

    Example:
        >>> by_number("Is <image 2> larger than <image 1>?", ["a.png", "b.png", "c.png"])
        ('<image>Is <image> larger than <image>?', ('c.png', 'b.png', 'a.png'))
    """
    named = [int(number) for number in _NUMBERED.findall(text)]
    if not named:
        return text, tuple(images)
    if out := [number for number in named if not 1 <= number <= len(images)]:
        raise DataError(f"<image {out[0]}> of {len(images)} images", reason=DIFFER)
    unnamed = [image for number, image in enumerate(images, start=1) if number not in named]
    text = PLACEHOLDER * len(unnamed) + _NUMBERED.sub(PLACEHOLDER, text)
    return text, (*unnamed, *(images[number - 1] for number in named))
