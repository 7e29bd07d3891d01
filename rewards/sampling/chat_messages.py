"""Chat messages as an OpenAI-compatible server takes them: images as `data:` URIs of PNG bytes that we encoded.

So a server fetches nothing, and sees the pixels that a model in this process would see.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpo.multimodal.images import image_sha256, load_image, png_bytes
from mpo.multimodal.messages import Message

KEPT_CHARACTERS = 32 << 20  # of the URIs of images that were sent last


@dataclass(frozen=True)
class SentImage:
    """An image as a server gets it.

    Attributes:
        uri: `data:` URI of PNG bytes that we decoded and encoded again.
        pixels: its `image_sha256`.
    """

    uri: str
    pixels: str


def sent_image(image: Any) -> SentImage:
    """Decode an image and encode it for a server.

    Raises:
        ImageError: it cannot be decoded.
    """
    decoded = load_image(image)
    uri = f"data:image/png;base64,{base64.b64encode(png_bytes(decoded)).decode('ascii')}"
    return SentImage(uri, image_sha256(decoded))


class SentImages:
    """Images for requests, those sent last kept: several requests about one file decode and encode it once."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, SentImage] = OrderedDict()
        self._characters = 0

    def __call__(self, image: Any) -> SentImage:
        """`sent_image`, of a path at most once while it is among the last."""
        if not isinstance(image, str | Path):
            return sent_image(image)
        path = str(image)
        if path not in self._kept:
            self._kept[path] = made = sent_image(image)
            self._characters += len(made.uri)
        self._kept.move_to_end(path)
        found = self._kept[path]
        while self._characters > KEPT_CHARACTERS:
            self._characters -= len(self._kept.popitem(last=False)[1].uri)
        return found


def with_pictures(messages: Sequence[Message], uris: Sequence[str]) -> list[Message]:
    """The messages with an image in each of their image placeholders, in order.

    Example:
        >>> turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}
        >>> with_pictures([turn], ["data:x"])[0]["content"][0]
        {'type': 'image_url', 'image_url': {'url': 'data:x'}}
    """
    pictures = iter(uris)
    return [
        {
            **message,
            "content": [
                block if block["type"] == "text" else {"type": "image_url", "image_url": {"url": next(pictures)}}
                for block in message["content"]
            ],
        }
        for message in messages
    ]
