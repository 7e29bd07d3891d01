"""Chat messages as an OpenAI-compatible server takes them: images as `data:` URIs of PNG bytes that we encoded.

So a server fetches nothing, and sees the pixels that a model in this process would see.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from mpo.multimodal.images import load_image, png_bytes
from mpo.multimodal.messages import Message


def data_uri(image: Any) -> str:
    """An image as a `data:` URI of PNG bytes that we decoded and encoded again."""
    return f"data:image/png;base64,{base64.b64encode(png_bytes(load_image(image))).decode('ascii')}"


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
