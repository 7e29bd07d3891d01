"""Where the images of a published set lie: a folder as it was unpacked, or the archive beside it.

The released sets differ in what their paths start at. VisualPRM400K-v1.1-Raw names
`VisualPRM400K-v1.1-Raw/Geometry3K/…`, and its archive unpacks to `images/` or to a folder of the set's own name,
depending on who unpacks it; VisualProcessBench names `images/…` inside its `images.zip`.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mpo.multimodal.errors import ImageError
from mpo.multimodal.images import load_image, resolve_inside
from rewards.interchange.archives import ZipImages, parts_of

if TYPE_CHECKING:
    from rewards.types import ImageLike

IMAGES_ZIP = "images.zip"
IMAGES = "images"


class ImagePlaces:
    """Finds images by the names that rows give them.

    Args:
        root: folder of the set; no image outside it is opened.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        archive = root / IMAGES_ZIP
        self._archive = ZipImages(archive) if parts_of(archive) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._archive is not None:
            self._archive.__exit__(kind, error, traceback)

    def find(self, name: str, folder: str = "") -> ImageLike:
        """The file, or the decoded image where it lies in the archive.

        Args:
            name: as a row gives it.
            folder: that names start at, such as `images/M3CoT` (`root` of a `meta.json`).

        Raises:
            ImageError: it is in neither, or its name leads out of the folder.
        """
        resolve_inside(name, self.root / folder)
        names = _names(name, folder)
        for one in names:
            path = resolve_inside(one, self.root)
            if path.is_file():
                return path
        if self._archive is not None:
            found = next((one for one in names if one in self._archive), names[0])
            return load_image(self._archive.read(found))
        raise ImageError(f"image {name[:200]!r} does not exist in {str(self.root)!r}, nor in {IMAGES_ZIP} there")


def _names(name: str, folder: str) -> list[str]:
    """As it is; without its first folder; and both inside `images/`."""
    full = f"{folder}/{name}" if folder else name
    later = [one.partition("/")[2] for one in dict.fromkeys((full, name))]
    starts = dict.fromkeys([full, name, *(one for one in later if one)])
    return list(dict.fromkeys([*starts, *(f"{IMAGES}/{one}" for one in starts)]))
