"""The images of a row, in every way in which a table holds them: bytes, base64, a `data:` address, or a local path.

`{"bytes", "path"}` is what `datasets` keeps (its path is never opened), base64 is VLMEvalKit's
(`vlmeval/dataset/image_base.py`: one text, or a list of them in one field). A path stays inside its folder, and an
address of the web is never fetched.
"""

from __future__ import annotations

import ast
import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpo.multimodal.errors import ImageError
from mpo.multimodal.images import load_image, resolve_inside

if TYPE_CHECKING:
    from rewards.types import ImageLike

MAX_BYTES = 64 << 20  # of one image file
MAX_IMAGES = 64  # of one row
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # of the formats that we decode


def images_of(value: Any, *, root: Path | None) -> tuple[ImageLike, ...]:
    """Every image of a field, decoded; one that is a file in the folder stays a path, and is not opened.

    Args:
        value: one image, a list of them, or the text of such a list; nothing is no image.
        root: folder that paths start at and stay inside; None where only embedded images are allowed.

    Raises:
        ImageError: one of them is none, too large, damaged, outside the folder, or there are more than `MAX_IMAGES`.
    """
    several = _listed(value)
    if len(several) > MAX_IMAGES:
        raise ImageError(f"a row of {len(several)} images; expected at most {MAX_IMAGES}")
    return tuple(_image(one, root) for one in several)


def _listed(value: Any) -> list[Any]:
    if value is None or (isinstance(value, str | bytes) and not value):
        return []
    if isinstance(value, str) and value.startswith("[") and value.endswith("]") and len(value) <= MAX_BYTES * 2:
        return literal_list(value) or [value]
    if isinstance(value, list | tuple):
        return [one for one in value if one is not None]
    return [value]


def literal_list(text: str) -> list[Any] | None:
    """The list that a text spells, in JSON or in Python's way; None if it spells none. Nothing is run.

    Example:
        >>> literal_list("['a', 'b']"), literal_list("[1]"), literal_list("[1")
        (['a', 'b'], [1], None)
    """
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _image(value: Any, root: Path | None) -> ImageLike:
    if isinstance(value, Mapping):
        return load_image(value)
    if isinstance(value, bytes):
        return load_image(_bounded(value))
    if not isinstance(value, str | Path):
        raise ImageError(f"an image is {type(value).__name__}; expected bytes, base64 or a path")
    text = str(value)
    if text.startswith("data:"):
        _, _, text = text.partition(",")
        return load_image(_decoded(text))
    if _is_encoded(text):
        return load_image(_decoded(text))
    if root is None:
        raise ImageError(f"image {text[:80]!r} is no embedded image, and a source of the Hub has no folder for paths")
    return _existing(text, root)


def _existing(text: str, root: Path) -> Path:
    path = resolve_inside(text, root)
    if not path.is_file():
        raise ImageError(f"image {text[:80]!r} does not exist in {str(root)!r}, and it is no base64 of an image")
    return path


def _is_encoded(text: str) -> bool:
    """Whether it opens as the base64 of one of our formats: "/9j/…" is a JPEG, and no path of anybody's."""
    try:
        return base64.b64decode(text[:16].encode("ascii"), validate=True).startswith(MAGIC)
    except (binascii.Error, UnicodeEncodeError):
        return False


def _decoded(text: str) -> bytes:
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise ImageError(f"an image of {len(text)} characters in base64; expected at most {MAX_BYTES} bytes")
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ImageError(f"image {text[:40]!r}… is damaged base64") from error


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise ImageError(f"an image of {len(data)} bytes; expected at most {MAX_BYTES}")
    return data
