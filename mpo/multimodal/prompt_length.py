"""How many tokens a prompt has, without decoding its images where the processor can tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpo.multimodal.images import ImageSource, image_size, load_image
from mpo.multimodal.prefix import encode_prompt, one_bos

CHECKED = 16  # new combinations of image sizes on which the processor's count is compared with its real encoding


class PromptTokens(NamedTuple):
    """Tokens of a prompt, and those among them that its images added: placeholders and what frames them."""

    total: int
    image: int


class PromptLength:
    """Rendered prompt and images → `PromptTokens`.

    Processors of transformers can compute from an image's size how many tokens it becomes
    (`_get_num_multimodal_tokens`, made for vLLM and not a public name). So that count is compared with the real
    encoding on the first `CHECKED` new combinations of image sizes. If it is missing or ever differs, every prompt
    with images is really encoded: as exact, and slower by the decoding and resizing of its images.

    Args:
        processor: of the model that will read the prompt.
        image_root: folder that image paths must stay inside.
    """

    def __init__(self, processor: Any, *, image_root: str | Path | None = None) -> None:
        self.processor, self.image_root = processor, image_root
        self.trusts_count = hasattr(processor, "_get_num_multimodal_tokens")
        self._compared: set[tuple[tuple[int, int], ...]] = set()

    def __call__(self, text: str, images: Sequence[ImageSource]) -> PromptTokens:
        """Count the tokens of one prompt.

        Raises:
            DataError: an image that cannot be used; where it is really encoded, a prompt that the processor refuses.
        """
        ids = self.processor.tokenizer(text, **one_bos(self.processor, text))["input_ids"]
        if not images:
            return PromptTokens(len(ids), 0)
        words = len(ids) - len(images)  # one placeholder per image
        sizes = tuple(image_size(image, root=self.image_root) for image in images)
        try:
            counted = self._counted(sizes) if self.trusts_count else None
        except ValueError:
            counted = None
        is_new = sizes not in self._compared and len(self._compared) < CHECKED
        if counted is not None and not is_new:
            return PromptTokens(words + counted, counted)
        decoded = [load_image(image, root=self.image_root) for image in images]
        total = len(encode_prompt(self.processor, text, decoded).input_ids)
        self._compared.add(sizes)
        self.trusts_count = counted == total - words
        return PromptTokens(total, total - words)

    def check(self, text: str, images: Sequence[ImageSource]) -> None:
        """Raise DataError for images that cannot be used; one is decoded only where the processor refuses its size.

        Qwen-VL's takes no image that is 200 times as long as wide.
        """
        sizes = tuple(image_size(image, root=self.image_root) for image in images)
        try:
            if sizes:
                self._counted(sizes)
        except ValueError:
            encode_prompt(self.processor, text, [load_image(image, root=self.image_root) for image in images])

    def _counted(self, sizes: Sequence[tuple[int, int]]) -> int | None:
        """Tokens of images, if the processor can tell; a ValueError of its own if it takes none of such a size."""
        try:
            counts = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in sizes])
        except (AttributeError, KeyError, NotImplementedError, TypeError):
            return None  # another signature, or an image processor that cannot tell
        return sum(counts.num_image_tokens) if counts.num_image_tokens is not None else None
