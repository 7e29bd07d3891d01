"""The only decoder of images: format allowlist, pixel cap before decoding, EXIF turn, transparent on white.

Datasets are untrusted: a path never leaves its root folder, nothing is fetched, and no decoder outside
`FORMATS` runs (Pillow would otherwise start Ghostscript for an EPS file).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mpo.multimodal.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 40_000_000
LONGEST_NAME = 255  # bytes of one part of a path
SHOWN = 200  # characters of a path or an error in a message
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)  # of the web; "C:/" is a disk


ImageSource = str | Path | bytes | Mapping[str, Any] | Image.Image


def load_image(image: ImageSource, *, root: str | Path | None = None) -> Image.Image:
    """Decode one image to RGB.

    Args:
        image: a local path, encoded bytes, an undecoded `datasets` image `{"bytes", "path"}` (its path is never
            opened), or a PIL image (which is only converted).
        root: folder that a path must stay inside; relative paths are resolved against it.

    Returns:
        The first frame as mode RGB, EXIF orientation applied, transparency composited on white, 16-bit grey
        scaled to 8 bits.

    Raises:
        ImageError: missing, outside `root`, not one of `FORMATS`, over `MAX_PIXELS`, or damaged.

    Example:
        >>> load_image(Image.new("RGBA", (2, 1), (0, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    with _opened(image, root) as opened:
        opened.load()
        return _to_rgb(opened)


def image_size(image: ImageSource, *, root: str | Path | None = None) -> tuple[int, int]:
    """Width and height of what `load_image` returns, from the file's header: the pixels are not decoded.

    Args:
        image, root: as in `load_image`.

    Raises:
        ImageError: as `load_image`, except for damage behind the header.
    """
    if isinstance(image, Image.Image):
        return _upright_size(image)
    with _opened(image, root) as opened:
        return _upright_size(opened)


@contextmanager
def _opened(image: str | Path | bytes | Mapping[str, Any], root: str | Path | None) -> Iterator[Image.Image]:
    """An image whose header was read and found acceptable; every fault is an ImageError."""
    if not isinstance(image, str | Path | bytes | Mapping):
        raise ImageError(
            f"expected an image (a PIL image, a path, encoded bytes or {{'bytes': …}}), got {type(image).__name__}: "
            f"{str(image)[:60]!r}"
        )
    if isinstance(image, Mapping):
        image = _embedded(image)
    source, path = (
        (io.BytesIO(image), Path("<bytes>")) if isinstance(image, bytes) else (None, resolve_inside(image, root))
    )
    try:
        if source is None and path.exists() and not path.is_file():  # opening a pipe would wait for its other end
            raise ImageError(f"image {path.name!r} cannot be decoded: it is not a regular file")
        with Image.open(source or path, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise ImageError(f"image {path.name!r} has {width}x{height} pixels, over the cap of {MAX_PIXELS}")
            yield opened
    except FileNotFoundError as error:
        raise ImageError(f"image {path.name!r} does not exist in {str(path.parent)!r}") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        said = _without_path(error) if isinstance(error, OSError) else str(error)[:SHOWN]
        raise ImageError(
            f"image {path.name[:SHOWN]!r} cannot be decoded ({said}); allowed formats: {', '.join(FORMATS)}"
        ) from error


def _embedded(image: Mapping[str, Any]) -> bytes:
    if not isinstance(image.get("bytes"), bytes):
        raise ImageError(
            "an image row holds no bytes; expected embedded bytes, since a path inside a data file is not opened"
        )
    return image["bytes"]


def resolve_inside(path: str | Path, root: str | Path | None) -> Path:
    """The real path of a file; with `root`, refuse one that leaves it (`..`, absolute, symlink)."""
    text = str(path)
    shown = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    if "\0" in text or _ADDRESS.match(text):
        raise ImageError(f"image path {shown!r} is not a local path; nothing is fetched, so download it first")
    if root is None:
        return Path(path)
    try:
        base = Path(root).resolve()
        resolved = (base / path).resolve()
        too_long = max(map(len, map(os.fsencode, resolved.parts))) > LONGEST_NAME
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, letters that a disk cannot name
        raise ImageError(f"image path {shown!r} cannot be followed ({_without_path(error)})") from error
    if too_long:
        raise ImageError(f"image path {shown!r} has a name of over {LONGEST_NAME} bytes, which no disk can hold")
    if not resolved.is_relative_to(base):
        raise ImageError(f"image path {shown!r} leaves the image root {base}; move the file inside it")
    return resolved


def _without_path(error: Exception) -> str:
    """What went wrong, without the path, which the message has already."""
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__


def png_bytes(image: Image.Image) -> bytes:
    """The image's pixels as PNG, the only bytes that we ever export; no profile or text of its source is with them."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", icc_profile=None)  # else Pillow writes the source's own, whatever is in it
    return buffer.getvalue()


def image_sha256(image: Image.Image) -> str:
    """Content key of the decoded pixels (mode, size and bytes), independent of the file's encoding."""
    header = f"{image.mode}:{image.width}x{image.height}:".encode()
    return hashlib.sha256(header + image.tobytes()).hexdigest()


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the EXIF turn."""
    # Not `image.getexif()`: a PNG without EXIF in its header would be decoded.
    lies_on_its_side = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (image.height, image.width) if lies_on_its_side else image.size


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        scaled = np.asarray(image, dtype=np.float64) * (255.0 / 65535.0)
        return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:  # not `"A" in getbands()`: CIELAB has a band A too
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
