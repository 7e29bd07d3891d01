"""One row in TRL's vision preference format, checked: what is wrong with it, or what the collator needs of it.

A row is `{images | image, prompt, chosen, rejected}` and may carry `chosen_truncated`, `rejected_truncated`,
`rejected_span`, `problem_id`, `weight` and `data_augment`. Rows are never changed. A row that breaks the format raises
a DataError with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from mpo.multimodal.errors import DataError
from mpo.multimodal.images import ImageSource
from mpo.multimodal.messages import PLACEHOLDER, Message, prompt_text, response_ids, user_message
from mpo.spans import SPAN_COLUMN, Span, checked_span, tokens_of_span

Row = Mapping[str, Any]

_VIDEO = "video, and MPO trains on images"


@dataclass(frozen=True)
class CheckedPair:
    """A row without a fault that can be found without looking at its images.

    Attributes:
        prompt: rendered by the chat template, one placeholder per image.
        images: not decoded.
        chosen: token ids y_c.
        rejected: token ids y_r.
        weight: of the pair's loss, finite, ≥ 0.
        counted: [start, end) of the tokens of y_r that count in L_p and L_q; None: all of them.
    """

    prompt: str
    images: Sequence[ImageSource]
    chosen: list[int]
    rejected: list[int]
    weight: float
    counted: Span | None = None

    @property
    def rejected_tokens(self) -> int:
        """How many tokens of y_r count in L_p and L_q, at least 1."""
        start, end = self.counted or (0, len(self.rejected))
        return end - start

    def check_length(self, prompt_tokens: int, max_length: int | None) -> None:
        """Refuse a pair whose prompt with its longer response has more than `max_length` tokens; nothing is cut."""
        tokens = prompt_tokens + max(len(self.chosen), len(self.rejected))
        if max_length is not None and tokens > max_length:
            raise DataError(
                f"prompt and longer response have {tokens} tokens ({prompt_tokens} of them prompt and images), over "
                f"max_length={max_length}: raise it, or give the processor a smaller image size",
                reason=f"longer than max_length={max_length}",
            )


def check_row(processor: Any, row: Row) -> CheckedPair:
    """Everything of a row but its images: rendered, tokenised and found usable; cheap, for a look at all rows.

    Raises:
        DataError: what is wrong, and by its `reason` the kind of fault.
    """
    _refuse_columns(row)
    images = _images(row)
    messages = _prompt_messages(_required(row, "prompt"), num_images=len(images))
    try:
        prompt = prompt_text(processor, messages)
    except TemplateError as error:
        raise DataError(
            f"prompt: the chat template refuses it: {error}", reason="prompt that the chat template refuses"
        ) from error
    chosen, rejected = _response(processor, row, "chosen"), _response(processor, row, "rejected")
    if chosen == rejected:
        raise DataError("chosen and rejected are the same response; drop the row", reason="two equal responses")
    return CheckedPair(prompt, images, chosen, rejected, _weight(row), _counted(processor, row, rejected))


def _response(processor: Any, row: Row, column: str) -> list[int]:
    with naming(column):
        text = _response_text(_required(row, column))
        return response_ids(processor, text, truncated=bool(row.get(f"{column}_truncated")))


def _counted(processor: Any, row: Row, rejected: list[int]) -> Span | None:
    text = _response_text(row["rejected"])
    span = checked_span(row.get(SPAN_COLUMN), text)
    return None if span is None else tokens_of_span(processor, text, span, rejected)


def _refuse_columns(row: Row) -> None:
    for column in ("tools", "chat_template_kwargs"):
        if row.get(column):
            raise DataError(
                f"the column {column!r} is not supported; render it into the prompt's text", reason=f"column {column!r}"
            )
    for column in ("video", "videos"):
        if row.get(column):
            raise DataError(
                f"the column {column!r} is not supported: MPO trains on images; drop the row", reason=_VIDEO
            )


def _required(row: Row, column: str) -> Any:
    if row.get(column) is None:
        raise DataError(f"expected a column {column!r}, got {sorted(row)}", reason=f"no {column!r}")
    return row[column]


def _images(row: Row) -> list[ImageSource]:
    """`images` (a list, maybe empty), else `image`, else none: a text-only row."""
    if row.get("images") is not None:
        if not isinstance(row["images"], list | tuple):
            raise DataError(f"images: expected a list, got {row['images']!r:.80}")
        return list(row["images"])
    return [row["image"]] if row.get("image") is not None else []


def _prompt_messages(prompt: Any, *, num_images: int) -> list[Message]:
    """Typed blocks throughout; without image blocks, images go where the user's texts hold `<image>`, else in front."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        raise DataError(f"prompt: expected a list of messages {{role, content}}, got {prompt!r:.80}")
    messages = [{"role": _key(message, "role"), "content": _blocks(_key(message, "content"))} for message in prompt]
    placeholders = sum(block["type"] == "image" for message in messages for block in message["content"])
    named = sum(block["text"].count(PLACEHOLDER) for block in _user_blocks(messages) if block["type"] == "text")
    if placeholders == 0 and num_images and named:
        if named != num_images:
            raise DataError(
                f"prompt: expected one {PLACEHOLDER} per image, got {named} of them, {num_images} images",
                reason="placeholders and images differ in number",
            )
        for message in messages:
            if message["role"] == "user":
                message["content"] = [piece for block in message["content"] for piece in _placed(block)]
    elif placeholders == 0 and num_images:
        first_user = next((message for message in messages if message["role"] == "user"), None)
        if first_user is None:
            raise DataError("prompt: expected a user message to put the images in")
        first_user["content"] = [{"type": "image"}] * num_images + first_user["content"]
    elif placeholders != num_images:
        raise DataError(
            f"prompt: expected one image block per image, got {placeholders} blocks, {num_images} images",
            reason="image blocks and images differ in number",
        )
    return messages


def _user_blocks(messages: Sequence[Message]) -> Iterator[Message]:
    return (block for message in messages if message["role"] == "user" for block in message["content"])


def _placed(block: Message) -> list[Message]:
    """A text block as texts and images, in the order of its placeholders."""
    count = block["text"].count(PLACEHOLDER)
    found: list[Message] = user_message(block["text"], count, placed=True)["content"]
    return found


def _blocks(content: Any) -> list[dict[str, str]]:
    """A message's content as new typed blocks, without the null keys that Arrow adds."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise DataError(f"expected a message's content to be a string or a list of blocks, got {content!r:.80}")
    return [_block(block) for block in content]


def _block(block: Any) -> dict[str, str]:
    kind = _key(block, "type")
    if kind == "image":
        return {"type": "image"}
    if kind == "text":
        text = _key(block, "text")
        if not isinstance(text, str):
            raise DataError(f"expected a block's text to be a string, got {text!r:.80}")
        return {"type": "text", "text": text}
    raise DataError(
        f"expected a block of type 'text' or 'image', got {kind!r:.80}", reason=_VIDEO if kind == "video" else None
    )


def _key(mapping: Any, key: str) -> Any:
    if not isinstance(mapping, Mapping) or mapping.get(key) is None:
        raise DataError(f"expected a mapping with {key!r}, got {mapping!r:.80}")
    return mapping[key]


def _response_text(response: Any) -> str:
    """A plain string, or the text of exactly one assistant message."""
    if isinstance(response, str):
        return response
    if not isinstance(response, Sequence) or len(response) != 1 or _key(response[0], "role") != "assistant":
        raise DataError(f"expected a string or one assistant message, got {response!r:.80}")
    blocks = _blocks(_key(response[0], "content"))
    if any(block["type"] == "image" for block in blocks):
        raise DataError(
            "a response contains an image block; images belong to the prompt", reason="image block in a response"
        )
    return "".join(block["text"] for block in blocks)


def _weight(row: Row) -> float:
    given = row.get("weight")
    try:
        weight = 1.0 if given is None else float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not math.isfinite(weight) or weight < 0:
        raise DataError(f"weight must be finite and >= 0, got {given!r:.80}", reason="bad weight")
    return weight


def row_name(row: Row, index: int) -> str:
    """`problem_id`, or the row's place in its batch with the start of its prompt."""
    if row.get("problem_id") is not None:
        return str(row["problem_id"])
    return f"row {index} of its batch, prompt {row.get('prompt')!r:.80}"


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put `where` in front of a DataError's message."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{where}: {error}", reason=error.reason) from error
