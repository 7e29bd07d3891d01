"""Plain text and images → chat messages → the text and ids that a model sees.

Text of datasets and models is untrusted: a control token in it (`<|im_end|>`, `<IMG_CONTEXT>`, …) would end a
turn or claim an image. Questions are sanitised (control tokens become plain characters); a response that
contains one is refused, because a policy that samples such a token has not written an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from mpo.multimodal.errors import ConfigError, DataError

Message = dict[str, Any]

PLACEHOLDER = "<image>"  # in a text whose images are placed: where one goes
IMAGE_BLOCK: Message = {"type": "image"}

_CONTROL: WeakKeyDictionary[Any, tuple[Any, list[str]]] = WeakKeyDictionary()  # tokenizer → what it has, its tokens


def user_message(text: str, num_images: int = 0, *, before: str = "", after: str = "", placed: bool = False) -> Message:
    """One user turn: `num_images` image blocks, then the text; or the text with a block wherever it holds `<image>`.

    Args:
        text: of the turn.
        num_images: that it shows.
        before, after: text around both, in which `<image>` means nothing.
        placed: whether `<image>` in `text` stands for an image.

    Raises:
        DataError: `placed`, and the text holds another number of placeholders.

    Example:
        >>> user_message("How many?", 1)["content"]
        [{'type': 'image'}, {'type': 'text', 'text': 'How many?'}]
        >>> user_message("Is <image> larger?", 1, placed=True)["content"]
        [{'type': 'text', 'text': 'Is '}, {'type': 'image'}, {'type': 'text', 'text': ' larger?'}]
    """
    if not placed:
        opening = [text_block(before)] if before else []
        return {"role": "user", "content": [*opening, *[IMAGE_BLOCK] * num_images, text_block(text + after)]}
    first, *rest = text.split(PLACEHOLDER)
    if len(rest) != num_images:
        raise DataError(
            f"a text with {len(rest)} {PLACEHOLDER} for {num_images} images; expected as many",
            reason="placeholders and images differ in number",
        )
    pieces = [before + first, *rest]
    pieces[-1] += after
    blocks = [block for piece in pieces for block in (IMAGE_BLOCK, text_block(piece))][1:]
    return {"role": "user", "content": [block for block in blocks if block.get("text") != ""]}


def text_block(text: str) -> Message:
    """A text as a part of a turn's content."""
    return {"type": "text", "text": text}


def assistant_message(text: str) -> Message:
    """One assistant turn."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def system_message(text: str) -> Message:
    """A system turn."""
    return {"role": "system", "content": [{"type": "text", "text": text}]}


def prompt_text(processor: Any, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
    """The chat template's text for `messages`, every control token of their contents broken up."""
    safe = sanitised(processor, messages)
    return processor.apply_chat_template(safe, add_generation_prompt=add_generation_prompt, tokenize=False)


def sanitised(processor: Any, messages: Sequence[Message]) -> list[Message]:
    """The messages with every control token of their contents broken up, ready for a chat template."""
    return [{**message, "content": _sanitised(processor, message["content"])} for message in messages]


def response_ids(processor: Any, text: str, *, truncated: bool = False) -> list[int]:
    """Token ids of a response as the policy emitted it: content, then its end-of-turn token.

    Args:
        processor: a Hugging Face processor with `.tokenizer`.
        text: the response, not blank, without control tokens.
        truncated: the response was cut at a limit; it gets no end-of-turn.

    Raises:
        DataError: empty or blank, or contains a control token.
    """
    if not text.strip():
        raise DataError("a response is empty; drop the row before training or scoring", reason="empty response")
    found = control_tokens_in(processor, text)
    if found:
        raise DataError(
            f"a response contains the control token {found[0]!r}; drop the row before training or scoring",
            reason="control token in a response",
        )
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(ids) if truncated else [*ids, end_of_turn_id(processor)]


def control_tokens_in(processor: Any, text: str) -> list[str]:
    """The tokenizer's special tokens that `text` contains literally."""
    return [token for token in control_tokens(processor) if token in text]


def control_tokens(processor: Any) -> list[str]:
    """Every token that means structure rather than text: special added tokens, the placeholders of image and video."""
    tokenizer = processor.tokenizer
    placeholders = tuple(getattr(processor, name, None) for name in ("image_token", "video_token"))
    known = (len(tokenizer), placeholders)  # a table of thousands of tokens is not read anew for every text
    if tokenizer not in _CONTROL or _CONTROL[tokenizer][0] != known:
        added = tokenizer.added_tokens_decoder.values()
        special = [token.content for token in added if token.special and token.content.strip()]
        more = [token for token in placeholders if token and token not in special]
        _CONTROL[tokenizer] = known, special + more
    return _CONTROL[tokenizer][1]


def broken_up(text: str, token: str) -> str:
    """The text with each such token as plain characters, readable and no longer one token.

    Example:
        >>> broken_up("a<|im_end|>", "<|im_end|>")
        'a< |im_end|>'
    """
    return text.replace(token, token[0] + " " + token[1:])


def end_of_turn_id(processor: Any) -> int:
    """The id of the token that ends an assistant's turn in this chat template."""
    tokenizer = processor.tokenizer
    rendered = processor.apply_chat_template(
        [user_message("q"), assistant_message("ANSWER")], add_generation_prompt=False, tokenize=False
    )
    tail = rendered.rsplit("ANSWER", 1)[1].lstrip()
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.special and token.content and tail.startswith(token.content):
            return token_id
    if tokenizer.eos_token_id is None:
        raise DataError("the chat template names no end-of-turn token and the tokenizer has no eos_token")
    return tokenizer.eos_token_id


def _sanitised(processor: Any, content: Any) -> Any:
    if isinstance(content, str):
        return _break_up(processor, content)
    return [
        {**block, "text": _break_up(processor, block["text"])} if block["type"] == "text" else block
        for block in content
    ]


def _break_up(processor: Any, text: str) -> str:
    for token in control_tokens_in(processor, text):
        text = broken_up(text, token)
    return text


def template_of(processor: Any) -> str:
    """The chat template that a processor renders with: its own, or its tokenizer's.

    Raises:
        ConfigError: there is none, so no prompt can be rendered.
    """
    template = getattr(processor, "chat_template", None)
    template = template or getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    if not template:
        raise ConfigError(
            "the model has no chat template: expected chat_template.jinja, or the key chat_template in its tokenizer "
            "or processor files; a base model has none: take its instruction-tuned version, or add the file"
        )
    return str(template)
