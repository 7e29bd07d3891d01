"""The part of a rejected response that counts in L_p and L_q: a span of its characters, as a range of its tokens.

MPO as published counts every token of the rejected response, also the right steps before an error and the sound ones
behind it. A row's optional column `rejected_span`, [start, end) in characters of the rejected response, restricts
π_r and ρ_r to one part of it, e.g. to the first bad step that a process reward model has found. Who fills the column
is free: the trainer only reads it. Related: Mask-DPO (arXiv 2503.02846) masks by sentence, Step-DPO (arXiv 2406.18629)
compares single steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpo.multimodal.errors import ConfigError, DataError

Span = tuple[int, int]  # [start, end) of characters, or of tokens

SPAN_COLUMN = "rejected_span"


def checked_span(given: Any, text: str) -> Span | None:
    """The span of a row, as two whole numbers inside its text.

    Args:
        given: two numbers, `[start, end]`, or None: the whole response.
        text: of the rejected response.

    Raises:
        DataError: anything else, or not 0 ≤ start < end ≤ len(text).

    Example:
        >>> checked_span([0, 4], "2 + 2 = 5"), checked_span(None, "2 + 2 = 5")
        ((0, 4), None)
    """
    if given is None:
        return None
    pair = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if len(pair) != 2 or not all(isinstance(number, int) and not isinstance(number, bool) for number in pair):
        raise DataError(
            f"{SPAN_COLUMN}: expected [start, end] in characters of the rejected response, or null; got {given!r:.80}",
            reason=f"bad {SPAN_COLUMN}",
        )
    start, end = pair
    if not 0 <= start < end <= len(text):
        raise DataError(
            f"{SPAN_COLUMN}: expected 0 <= start < end <= {len(text)}, the rejected response's characters; got {pair}",
            reason=f"bad {SPAN_COLUMN}",
        )
    return start, end


def tokens_of_span(processor: Any, text: str, span: Span, ids: Sequence[int], *, before: str = "") -> Span | None:
    """The tokens of a response that a span of its characters covers.

    A token counts if it has at least one character in the span, so one that lies across a border counts whole; a token
    without characters of its own counts where it stands inside. What follows the text, its end-of-turn token, counts
    if nothing but whitespace lies between the span and the end of the text.

    Args:
        processor: a Hugging Face processor whose tokenizer knows where its tokens stand (a "fast" one).
        text: of the response.
        span: 0 ≤ start < end ≤ len(text).
        ids: of the response, as `mpo.multimodal.messages.response_ids` gives them.
        before: what the chat template writes before it, a part of the ids; it counts with the text's first character.

    Returns:
        [start, end) of tokens; None where every token counts, which is the same as no span.

    Raises:
        ConfigError: a tokenizer that does not know where its tokens stand.
        DataError: the span covers no token, e.g. since it holds only whitespace that the tokenizer drops.
    """
    if not getattr(processor.tokenizer, "is_fast", False):
        raise ConfigError(
            f"{SPAN_COLUMN} needs a tokenizer that knows where its tokens stand (a fast one), got "
            f"{type(processor.tokenizer).__name__}: convert it, or leave the column out"
        )
    encoded = processor.tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True)
    places: list[Span] = [*map(tuple, encoded["offset_mapping"])]
    assert list(ids[: len(places)]) == list(encoded["input_ids"]), "ids are of another text"
    start, end = (len(before) + place if place else 0 for place in span)
    counted = [index for index, (a, b) in enumerate(places) if a < end and max(b, a + 1) > start]
    if not text[span[1] :].strip():
        counted += range(len(places), len(ids))
    if not counted:
        raise DataError(
            f"{SPAN_COLUMN}: {list(span)} covers no token of the rejected response ({text[slice(*span)]!r:.40}); drop "
            "the row or widen the span",
            reason=f"{SPAN_COLUMN} that covers no token",
        )
    found = counted[0], counted[-1] + 1
    return None if found == (0, len(ids)) else found
