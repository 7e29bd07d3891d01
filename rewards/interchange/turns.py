"""Conversations in the two ways in which rows spell them: ShareGPT's `from`/`value`, and chat's `role`/`content`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mpo.multimodal.errors import DataError
from mpo.multimodal.messages import PLACEHOLDER

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
MOST_TURNS = 1000


class Turn(NamedTuple):
    """One turn; an image block of its content is `<image>` in the text."""

    role: str
    text: str


class Asked(NamedTuple):
    """The turns before a response: a system message, or none, and the question."""

    system: str
    question: str


def turns_of(messages: Any, what: str) -> list[Turn]:
    """The turns of a conversation.

    Raises:
        DataError: it is no list of turns, or a turn is of nobody that we know.

    Example:
        >>> turns_of([{"from": "human", "value": "<image>\\nWhat?"}], "conversations")
        [Turn(role='user', text='<image>\\nWhat?')]
        >>> turns_of([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}], "messages")
        [Turn(role='user', text='<image>What?')]
    """
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_TURNS:
        raise DataError(f"{what} is {messages!r:.60}; expected a list of turns", reason=f"{what} is no conversation")
    return [turn_of(message, what) for message in messages]


def turn_of(message: Any, what: str) -> Turn:
    """One turn; raises as `turns_of`."""
    if not isinstance(message, Mapping):
        raise DataError(f"{what} holds {message!r:.60}; expected a turn", reason=f"{what} is no conversation")
    who = message.get("role") or message.get("from")
    if who not in ROLES:
        raise DataError(
            f"{what} holds a turn of {who!r:.40}; expected one of {', '.join(ROLES)}", reason="foreign role"
        )
    content = message.get("content") if message.get("content") is not None else message.get("value")
    return Turn(ROLES[who], _text(content, what))


def text_of(said: Any, what: str) -> str:
    """A response: a text, one turn, or a conversation that ends with it.

    Raises:
        DataError: it is none of them, or holds an image.
    """
    if isinstance(said, str):
        return said
    turn = turns_of(said, what)[-1] if isinstance(said, list) else turn_of(said, what)
    if turn.role != "assistant":
        raise DataError(f"{what} ends with a turn of the {turn.role}; expected the assistant", reason="foreign role")
    return turn.text


def asked_by(turns: list[Turn], what: str) -> Asked:
    """The one question that a conversation asks.

    Raises:
        DataError: several questions, or none: a problem of ours is one question.
    """
    system = turns[0].text if turns[0].role == "system" else ""
    rest = turns[1:] if turns[0].role == "system" else turns
    if [turn.role for turn in rest] != ["user"]:
        roles = ", ".join(turn.role for turn in rest[:6])
        raise DataError(f"{what} has the turns {roles}; expected one of the user", reason="more than one turn")
    return Asked(system, rest[0].text)


def _text(content: Any, what: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{what} holds {content!r:.60}; expected a text or a list of blocks", reason="foreign content")
    return "".join(_block(block, what) for block in content)


def _block(block: Any, what: str) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind in ("image", "image_url"):
        return PLACEHOLDER
    if kind == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    raise DataError(f"{what} holds a block of type {kind!r:.40}; expected text or image", reason="foreign content")
