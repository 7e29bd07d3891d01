"""One row in TRL's vision preference format, checked: what is wrong with it, or what the collator needs of it.

A row is `{images | image, prompt, chosen, rejected}` (`mpo/row_forms.py` has its other forms) and may carry
`chosen_truncated`, `rejected_truncated`, `rejected_span`, `problem_id`, `weight` and `data_augment`. Rows are never
changed. A row that breaks the format raises a DataError with a reason; what is odd about a row that can be trained on
is noted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from mpo.multimodal.errors import DataError
from mpo.multimodal.images import ImageSource
from mpo.multimodal.messages import TEMPLATE_FAILURES, Message, check_response, prompt_text, response_ids, sanitised
from mpo.multimodal.turn import turn_of
from mpo.row_forms import ReadRow, Row, read_row
from mpo.spans import SPAN_COLUMN, Span, checked_span, tokens_of_span

WRITTEN = re.compile(r"<image(?:[ _-]?\d+)?>")
WRITTEN_IMAGE = "a literal <image> in the text beside a real image: remove it, the chat template marks the image"


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
        notes: what is odd about the row, in words that are the same for every such row.
        before: what the chat template writes between the prompt and y_c's text, a part of y_c.
    """

    prompt: str
    images: Sequence[ImageSource]
    chosen: list[int]
    rejected: list[int]
    weight: float
    counted: Span | None = None
    notes: tuple[str, ...] = ()
    before: str = ""

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
    read = read_row(row)
    prompt = _rendered(processor, read)
    sides = [_response(processor, row, read, prompt, column) for column in ("chosen", "rejected")]
    chosen, rejected = (side.ids for side in sides)
    if chosen == rejected:
        raise DataError("chosen and rejected are the same response; drop the row", reason="two equal responses")
    written = read.images and WRITTEN.search(" ".join([*_texts_of(read.messages), read.chosen, read.rejected]))
    notes = [*([WRITTEN_IMAGE] if written else []), *(side.kept for side in sides if side.kept)]
    counted = _counted(processor, row, read.rejected, sides[1])
    return CheckedPair(
        _behind(processor, read, prompt),
        read.images,
        chosen,
        rejected,
        _weight(row),
        counted,
        tuple(dict.fromkeys(notes)),
        sides[0].before,
    )


class _Side(NamedTuple):
    """One response: its ids, what precedes its text in them, and why it is not what the template writes (or None)."""

    ids: list[int]
    before: str
    kept: str | None


def _rendered(processor: Any, read: ReadRow) -> str:
    try:
        return prompt_text(processor, read.messages)
    except TEMPLATE_FAILURES as error:
        raise DataError(
            f"prompt: the chat template refuses it: {error}", reason="prompt that the chat template refuses"
        ) from error


def _behind(processor: Any, read: ReadRow, prompt: str) -> str:
    """What comes before responses: the generation prompt, and the opening of their turn if the row gives one."""
    if not read.opening:
        return prompt
    (message,) = sanitised(processor, [{"role": "assistant", "content": read.opening}])
    return prompt + turn_of(processor, read.messages, prompt, message["content"]).before + message["content"]


def _response(processor: Any, row: Row, read: ReadRow, prompt: str, column: str) -> _Side:
    """The tokens that the chat template writes for a response behind the prompt, or behind the opening of its turn."""
    text, truncated = getattr(read, column), bool(row.get(f"{column}_truncated"))
    with naming(column):
        check_response(processor, text)
        before, kept = turn_of(processor, read.messages, prompt, read.opening + text, truncated=truncated)
        before = "" if read.opening else before
        return _Side(response_ids(processor, text, truncated=truncated, before=before), before, kept)


def _texts_of(messages: Sequence[Message]) -> list[str]:
    return [block["text"] for message in messages for block in message["content"] if block["type"] == "text"]


def _counted(processor: Any, row: Row, text: str, side: _Side) -> Span | None:
    span = checked_span(row.get(SPAN_COLUMN), text)
    return None if span is None else tokens_of_span(processor, text, span, side.ids, before=side.before)


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
    return f"row {index} of its batch, prompt {row.get('prompt') or row.get('chosen')!r:.80}"


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put `where` in front of a DataError's message."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{where}: {error}", reason=error.reason) from error
