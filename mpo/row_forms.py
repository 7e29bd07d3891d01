"""The forms that TRL takes a vision-preference row in, read into one.

What TRL 1.16 reads is in `trl/data_utils.py` and `trl/trainer/dpo_trainer.py`. Read here as there: messages with text
or blocks as content, `image` or `images`, and an implicit prompt (no `prompt`: the messages that `chosen` and
`rejected` begin with, `extract_prompt`). Beyond it: one image in `images`, a list in `image`, and an image
inside a block. A prompt that ends in an assistant's message opens the response's own turn (transformers'
`continue_final_message`). A prompt that is a plain string is refused: TRL would train on it without a chat template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mpo.multimodal.errors import DataError
from mpo.multimodal.images import ImageSource
from mpo.multimodal.messages import PLACEHOLDER, Message, user_message

Row = Mapping[str, Any]

_VIDEO = "video, and MPO trains on images"
_MESSAGES = "prompt that is no list of messages"
_RESPONSE = "response that is no text and no assistant message"


class ReadRow(NamedTuple):
    """A row in one form.

    `messages` have typed blocks throughout, one image block per image and no image in it; `opening` begins the
    assistant's turn that the responses continue, and is mostly empty.
    """

    images: list[ImageSource]
    messages: list[Message]
    opening: str
    chosen: str
    rejected: str


def read_row(row: Row) -> ReadRow:
    """Images, prompt and responses of a row, whatever its form.

    Raises:
        DataError: what is wrong, and by its `reason` the kind of fault.
    """
    _refuse_columns(row)
    _, chosen, rejected = _parts(row)
    return ReadRow(*read_prompt(row), _response_text(chosen, "chosen"), _response_text(rejected, "rejected"))


def read_prompt(row: Row) -> tuple[list[ImageSource], list[Message], str]:
    """The first three fields of `read_row`; a row with a prompt needs no responses.

    Raises:
        DataError: as `read_row`.
    """
    prompt = row["prompt"] if row.get("prompt") is not None else _parts(row)[0]
    images, messages = _prompt_messages(prompt, _given_images(row))
    if messages[-1]["role"] != "assistant":
        return images, messages, ""
    opening = _texts(messages.pop()["content"], "prompt")
    if not messages:
        raise DataError("prompt: expected a question before the assistant's message, got none", reason=_MESSAGES)
    return images, messages, opening


def _parts(row: Row) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected; an implicit prompt is what both responses begin with."""
    if row.get("prompt") is not None:
        return row["prompt"], _required(row, "chosen"), _required(row, "rejected")
    chosen, rejected = _required(row, "chosen"), _required(row, "rejected")
    if not all(
        isinstance(side, Sequence) and not isinstance(side, str) and len(side) > 1 for side in (chosen, rejected)
    ):
        raise DataError(
            "expected a column 'prompt', or chosen and rejected as whole conversations that begin with it, got "
            f"{sorted(row)}",
            reason="no 'prompt'",
        )
    pairs = [(a, b) for a, b in zip(chosen, rejected, strict=False)]
    shared = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs) - 1)
    if not shared:
        raise DataError(
            "prompt: there is no such column, and chosen and rejected begin with different messages: give the prompt "
            "in a column of its own",
            reason="no 'prompt'",
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


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
        raise DataError(f"{column}: expected a column {column!r}, got {sorted(row)}", reason=f"no {column!r}")
    return row[column]


def _given_images(row: Row) -> list[ImageSource]:
    """`images`, else `image`, else none (a text-only row): an image, or a list of them, maybe empty."""
    given = row["images"] if row.get("images") is not None else row.get("image")
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _prompt_messages(prompt: Any, given: Sequence[ImageSource]) -> tuple[list[ImageSource], list[Message]]:
    """All images in the order of their blocks; without blocks, of `<image>` in users' texts, else before them."""
    if isinstance(prompt, str):
        raise DataError(
            f"prompt: expected a list of messages, got the plain string {prompt!r:.60}: write "
            "[{'role': 'user', 'content': …}], so that the chat template applies",
            reason="prompt that is a plain string",
        )
    if not isinstance(prompt, Sequence) or not prompt:
        raise DataError(f"prompt: expected a list of messages {{role, content}}, got {prompt!r:.80}", reason=_MESSAGES)
    messages: list[Message] = []
    images: list[ImageSource] = []
    blocks, waiting = 0, iter(given)  # blocks without an image of their own take the next one of the column
    for message in prompt:
        content = _content(_key(message, "content"))
        for block in content:
            if block["type"] == "image":
                image = block.pop("image", None)
                blocks += image is None
                images += [] if (found := image if image is not None else next(waiting, None)) is None else [found]
        messages.append({"role": _key(message, "role"), "content": content})
    if not blocks and given:
        first_user = next((message for message in messages if message["role"] == "user"), None)
        if first_user is None:
            raise DataError(
                "prompt: expected a user message to put the images in", reason="no user message for the images"
            )
        if images:
            raise _differ(blocks, len(given), inside=len(images))
        if any(PLACEHOLDER in block["text"] for block in _user_texts(messages)):
            return list(given), _placed(messages, len(given))
        first_user["content"] = [{"type": "image"} for _ in given] + first_user["content"]
        return list(given), messages
    if blocks != len(given):
        raise _differ(blocks, len(given), inside=len(images) - min(blocks, len(given)))
    return images, messages


def _user_texts(messages: Sequence[Message]) -> Iterator[Message]:
    return (block for message in messages if message["role"] == "user" for block in message["content"])


def _placed(messages: Sequence[Message], images: int) -> list[Message]:
    """The messages with an image wherever a user's text says `<image>`, as LLaVA, MMPR and swift write it."""
    named = sum(block["text"].count(PLACEHOLDER) for block in _user_texts(messages))
    if named != images:
        raise DataError(
            f"prompt: expected one {PLACEHOLDER} per image, got {named} of them, {images} images",
            reason="placeholders and images differ in number",
        )
    return [
        {**message, "content": [piece for block in message["content"] for piece in _pieces(block)]}
        if message["role"] == "user"
        else message
        for message in messages
    ]


def _pieces(block: Message) -> list[Message]:
    """A text block as texts and images, in the order of its placeholders."""
    pieces: list[Message] = user_message(block["text"], block["text"].count(PLACEHOLDER), placed=True)["content"]
    return pieces


def _differ(blocks: int, images: int, *, inside: int) -> DataError:
    own = f", besides {inside} blocks that hold their image" if inside else ""
    return DataError(
        f"prompt: expected one image block per image, got {blocks} blocks, {images} images{own}: give each image once, "
        "in the column 'images' or inside its block",
        reason="image blocks and images differ in number",
    )


def _content(content: Any) -> list[dict[str, Any]]:
    """A message's content as new typed blocks, without the null keys that Arrow adds."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise DataError(
            f"expected a message's content to be a string or a list of blocks, got {content!r:.80}",
            reason="content of a message",
        )
    return [_block(block) for block in content]


def _block(block: Any) -> dict[str, Any]:
    kind = _key(block, "type")
    if kind == "image":
        if any(block.get(key) is not None for key in ("url", "base64")):
            raise DataError(
                "expected the image itself in its block, or in the column 'images'; got an address or base64 text, "
                "which is not read: nothing is fetched",
                reason="image block with an address",
            )
        image = block.get("image") if block.get("image") is not None else block.get("path")
        return {"type": "image"} if image is None else {"type": "image", "image": image}
    if kind == "text":
        text = _key(block, "text")
        if not isinstance(text, str):
            raise DataError(f"expected a block's text to be a string, got {text!r:.80}", reason="content of a message")
        return {"type": "text", "text": text}
    raise DataError(
        f"expected a block of type 'text' or 'image', got {kind!r:.80}: put images into blocks of type 'image', or "
        "into the column 'images'",
        reason=_VIDEO if kind == "video" else "block that is no text and no image",
    )


def _key(mapping: Any, key: str) -> Any:
    if not isinstance(mapping, Mapping) or mapping.get(key) is None:
        raise DataError(
            f"expected a mapping with {key!r}, got {mapping!r:.80}", reason=f"message or block without {key!r}"
        )
    return mapping[key]


def _response_text(response: Any, column: str) -> str:
    """A plain string, or the text of exactly one assistant message."""
    if isinstance(response, str):
        return response
    if not isinstance(response, Sequence) or len(response) != 1 or _key(response[0], "role") != "assistant":
        raise DataError(f"{column}: expected a string or one assistant message, got {response!r:.80}", reason=_RESPONSE)
    return _texts(_content(_key(response[0], "content")), column)


def _texts(blocks: Sequence[Mapping[str, Any]], column: str) -> str:
    """The text of an assistant's turn."""
    if any(block["type"] == "image" for block in blocks):
        raise DataError(
            f"{column}: a response contains an image block; images belong to the prompt",
            reason="image block in a response",
        )
    return "".join(block["text"] for block in blocks)
