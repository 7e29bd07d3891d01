"""Which tokens of a rendered row are the response's own words, for the loss on its text (L_text).

A PRM's layout puts signs, tags and the frames of chat turns around steps. A policy never writes them, so the text loss
does not learn them: in every layout it counts the same words, whatever they are grouped with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpo.multimodal.errors import ConfigError
from rewards.errors import StepAlignmentError


def one_turn_text(continuation: range, tags: Sequence[int]) -> tuple[int, ...]:
    """Everything behind the prompt, steps and what separates them, but the tags.

    Example:
        >>> one_turn_text(range(4, 10), [5, 8])
        (4, 6, 7, 9)
    """
    return tuple(position for position in continuation if position not in tags)


def turns_text(
    tokenizer: Any, ids: Sequence[int], read_positions: Sequence[int], turns: Sequence[str], steps: Sequence[str]
) -> tuple[int, ...]:
    """The tokens of each step inside its turn: those with at least one character of it.

    Args:
        tokenizer: a fast one, which knows where its tokens stand.
        ids: of the whole row.
        read_positions: of the row; each turn ends at one.
        turns: the text of each turn with its frame; the first is the whole prompt, images as their placeholders.
        steps: the text of each step.

    Raises:
        ConfigError: a tokenizer that does not know where its tokens stand.
        StepAlignmentError: the row has other tokens at a turn's end than its text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            "text_weight in a layout of turns needs a tokenizer that knows where its tokens stand (a fast one), got "
            f"{type(tokenizer).__name__}: set text_weight to 0, or convert the tokenizer"
        )
    found: list[int] = []
    for position, turn, step in zip(read_positions, turns, steps, strict=True):
        start = turn.rfind(step)
        if start < 0:
            raise StepAlignmentError(f"the chat template rewrites the step {step[:60]!r}, so its tokens are not known")
        encoded = tokenizer(turn, add_special_tokens=False, return_offsets_mapping=True)
        own = [
            (token, first < start + len(step))
            for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if last > start
        ]
        begin = position + 1 - len(own)
        if list(ids[begin : position + 1]) != [token for token, _ in own]:
            raise StepAlignmentError(f"the tokens of the step {step[:60]!r} are not those of its turn alone")
        found += [begin + place for place, (_, is_step) in enumerate(own) if is_step]
    return tuple(found)
