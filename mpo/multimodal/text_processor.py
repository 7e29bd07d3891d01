"""A tokenizer that is called like a processor, for models without images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import DataError
from mpo.multimodal.messages import Message


class TextProcessor:
    """What this project asks of a processor, for a text-only model; images are refused, not dropped."""

    image_processor = None

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, *, text: Sequence[str], images: Any = None, **how: Any) -> Any:
        """Tokenise.

        Raises:
            DataError: there are images.
        """
        _refuse(bool(images))
        return self.tokenizer(text=list(text), **how)

    def apply_chat_template(self, messages: Sequence[Message], **how: Any) -> Any:
        """The tokenizer's chat template; contents that are lists of text blocks are joined, as it expects strings.

        Raises:
            DataError: an image block.
        """
        return self.tokenizer.apply_chat_template([{**m, "content": _joined(m["content"])} for m in messages], **how)

    def save_pretrained(self, folder: str | Path, **how: Any) -> Any:
        """Write the tokenizer."""
        return self.tokenizer.save_pretrained(str(folder), **how)


def _joined(content: Any) -> str:
    if isinstance(content, str):
        return content
    _refuse(any(block["type"] != "text" for block in content))
    return "".join(block["text"] for block in content)


def _refuse(images: bool) -> None:
    if images:
        raise DataError(
            "a problem has images, but the model is text-only; expected a multimodal model or problems without images",
            reason="images for a text-only model",
        )
