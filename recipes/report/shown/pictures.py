"""A problem's images as data URIs: decoded, re-encoded, and small enough that 500 problems fit on one page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from mpo.multimodal.errors import ImageError
from mpo.multimodal.images import load_image, png_bytes
from rewards.types import Problem

PICTURE_CHARACTERS = 12_000  # of the page, for all images of a problem together
MOST_PICTURES = 6  # of a problem
SIDES = (384, 256, 160, 96, 48, 32)  # pixels of the longer side, the largest that fits is taken
ENLARGE_TO, MOST_ENLARGED = 320, 6  # a small image is shown up to so wide, by a whole factor
_JPEG_QUALITY = 70


@dataclass(frozen=True)
class Picture:
    """A data URI, the width in CSS pixels at which to show it, and whether its pixels are shown enlarged."""

    uri: str
    width: int
    enlarged: bool


def pictures_of(problem: Problem) -> tuple[list[Picture], int]:
    """The first `MOST_PICTURES` images in `PICTURE_CHARACTERS` together, and how many are not shown.

    Not shown is an image that cannot be read, that does not fit at the smallest side, or that is one too many.
    """
    sources = problem.images[:MOST_PICTURES]
    found = []
    for source in sources:
        try:
            picture = picture_of(load_image(source), PICTURE_CHARACTERS // len(sources))
        except ImageError:
            continue
        if picture is not None:
            found.append(picture)
    return found, len(problem.images) - len(found)


def picture_of(image: Image.Image, most: int) -> Picture | None:
    """The largest version of the image whose data URI has at most `most` characters, else None.

    PNG if it fits at the largest side, where drawings and small images do; else JPEG.
    """
    enlarge = max(1, min(MOST_ENLARGED, ENLARGE_TO // max(image.size)))
    width = round(min(1.0, SIDES[0] / max(image.size)) * image.width) or 1
    for side in SIDES:
        small = image.copy()
        small.thumbnail((side, side))
        for kind, encode in _ENCODERS if side == SIDES[0] else _ENCODERS[1:]:
            content = encode(small)
            uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
            if len(uri) <= most:
                return Picture(uri, width * enlarge, enlarge > 1)
    return None


def _jpeg_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


_ENCODERS = (("png", png_bytes), ("jpeg", _jpeg_bytes))
