"""Images of a data set in one folder, each decoded once and kept under the hash of its pixels."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mpo.multimodal.errors import ImageError
from mpo.multimodal.files import opened_atomically
from mpo.multimodal.images import image_sha256, load_image, png_bytes

if TYPE_CHECKING:
    from rewards.types import ImageLike


class Pictures:
    """Each image is decoded once, so that a damaged one costs its own rows and no training run, and kept.

    Args:
        folder: where they are kept.
        encode: as PNG, under the hash of their pixels. Without it, a file is kept as it is, by a hard link where the
            file system has one: 400,000 JPEG files would grow fivefold.
    """

    def __init__(self, folder: Path, *, encode: bool = False) -> None:
        self.folder, self.encode = folder, encode
        self._known: dict[Path, Path | ImageError] = {}

    def kept(self, image: ImageLike) -> Path:
        """The image's place in the folder.

        Raises:
            ImageError: it cannot be decoded.
        """
        if not isinstance(image, str | Path):
            return self._encoded(image)
        path = Path(image).resolve()
        if path not in self._known:
            try:
                self._known[path] = self._encoded(path) if self.encode else self._as_it_is(path)
            except ImageError as error:
                self._known[path] = error
        found = self._known[path]
        if isinstance(found, ImageError):
            raise found
        return found

    def _encoded(self, image: ImageLike) -> Path:
        decoded = load_image(image)
        place = self.folder / f"{image_sha256(decoded)[:32]}.png"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            with opened_atomically(place, "wb") as file:
                file.write(png_bytes(decoded))
        return place

    def _as_it_is(self, path: Path) -> Path:
        name = image_sha256(load_image(path))[:32]
        place = self.folder / f"{name}{path.suffix}"
        self.folder.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copyfile(path, place)
        return place
