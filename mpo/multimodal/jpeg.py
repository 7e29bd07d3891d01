"""Random JPEG compression of training images, as InternVL2.5 trains on them (arXiv 2412.05271 §3.4).

The quality is drawn uniformly from 75 to 100 at every visit, so that a model does not learn one camera's artefacts. The
draw is a function of seed, epoch and image: neither workers nor a resume change it, and the pairs of one prompt still
share one image.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any, Literal

import torch
from PIL import Image
from transformers import TrainerCallback

from mpo.multimodal.images import load_image

QUALITIES = (75, 100)  # the lowest and the highest
Jpeg = Literal["none", "marked", "all"]


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """The image after JPEG compression.

    Args:
        image: RGB.
        quality: of Pillow's encoder, 1 to 100.

    Example:
        >>> compressed(Image.new("RGB", (8, 8), (255, 0, 0)), 75).size
        (8, 8)
    """
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return load_image(buffer.getvalue())


class JpegAugmentation:
    """Which images are compressed, and how strongly in this epoch.

    Args:
        which: "all" images, or those of rows that are "marked" (`data_augment`, of MMPR's `meta.json`); "none" is off.
        seed: of the run.

    Example:
        >>> augmentation = JpegAugmentation("marked", seed=0)
        >>> augmentation.quality(False, "p7"), 75 <= augmentation.quality(True, "p7") <= 100
        (0, True)
        >>> first = [augmentation.quality(True, str(i)) for i in range(20)]
        >>> augmentation.set_epoch(1)
        >>> first == [augmentation.quality(True, str(i)) for i in range(20)]
        False
    """

    def __init__(self, which: Jpeg, *, seed: int) -> None:
        self.which, self.seed = which, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers live from one epoch to the next

    def set_epoch(self, epoch: int) -> None:
        """Draw anew from here on, in the workers of a data loader too."""
        self._epoch.fill_(epoch)

    def quality(self, marked: Any, identity: str) -> int:
        """Quality for the images of one prompt; 0 where they stay as they are.

        Args:
            marked: whether the row asks for it.
            identity: what the prompt and its images are, the same in every epoch.
        """
        if self.which == "none" or (self.which == "marked" and not marked):
            return 0
        drawn = hashlib.sha256(f"{self.seed}\0{int(self._epoch)}\0{identity}".encode("utf-8", "backslashreplace"))
        low, high = QUALITIES
        return low + int.from_bytes(drawn.digest()[:8], "big") % (high - low + 1)


class JpegEpochs(TrainerCallback):
    """Tells the augmentation which epoch begins."""

    def __init__(self, augmentation: JpegAugmentation) -> None:
        self.augmentation = augmentation

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The epoch in which the run is, from 0; after a resume too."""
        self.augmentation.set_epoch(int((state.epoch or 0) + 1e-6))
