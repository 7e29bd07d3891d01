"""From a row's tokens and read positions back to its steps: the inverse of rendering, checked on every row.

A score that is read one token off is a plausible number of the wrong thing. So the text between two read positions
is decoded, freed of the layout's own text, and compared with the step that was rendered there. A tokenizer that
normalises text (NFC) gives back what it reads, and some do not keep white space beside control tokens: both sides are
compared as the tokenizer reads them, without white space. What white space could hide, a tag or sign one token off, is
compared as tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewards.errors import StepAlignmentError


@dataclass(frozen=True)
class OneTurnFrame:
    """Around steps inside one assistant turn: `start` tokens in front, `tag` behind each, then `gap`."""

    start: int
    tag: tuple[int, ...]
    gap: tuple[int, ...]

    def read_back(self, tokenizer: Any, ids: list[int], positions: Sequence[int], *, where: str) -> list[str]:
        """The texts of the steps, without white space.

        Raises:
            StepAlignmentError: a marker is not at its position; names `where` and the marker.
        """
        texts, start = [], self.start
        for marker, position in enumerate(positions):
            end = position + 1 - len(self.tag)
            following = position + 1 + len(self.gap)
            if end < start or tuple(ids[end:following]) != self.tag + self.gap:
                raise StepAlignmentError(f"{where}, marker {marker}: no step ends at position {position}")
            texts.append(_decoded(tokenizer, ids[start:end]))
            start = following
        return texts


@dataclass(frozen=True)
class TurnsFrame:
    """Around one user turn per step: `head` before the first, `before` each later one, `after` each, then `sign`.

    The texts are those that `as_read` gives.
    """

    head: str
    before: str
    after: str
    sign: int

    def read_back(self, tokenizer: Any, ids: list[int], positions: Sequence[int], *, where: str) -> list[str]:
        """The texts of the steps, without white space.

        Raises:
            StepAlignmentError: a position is not the last before a sign, or the frame is not there; names `where` and
                the marker.
        """
        texts, start = [], 0
        for marker, position in enumerate(positions):
            last = marker + 1 == len(positions)
            if position + 1 != len(ids) if last else ids[position + 1 : position + 2] != [self.sign]:
                raise StepAlignmentError(
                    f"{where}, marker {marker}: position {position} is not the one directly before the sign"
                )
            piece = _decoded(tokenizer, ids[start : position + 1])
            left, found, rest = piece.partition(self.before if marker else self.head)
            if not found or (marker and left) or not rest.endswith(self.after):
                raise StepAlignmentError(
                    f"{where}, marker {marker}: the turn around the step is not what the chat template writes: "
                    f"{piece!r}"
                )
            texts.append(rest.removesuffix(self.after))
            start = position + 1
        return texts


Frame = OneTurnFrame | TurnsFrame


def check_row(
    tokenizer: Any, frame: Frame, ids: list[int], positions: Sequence[int], steps: Sequence[str], *, where: str
) -> None:
    """Compare a row, read back, with the steps that it was made of.

    Args:
        tokenizer: that made the ids.
        frame: what surrounds the steps.
        ids: the row's tokens.
        positions: one per step, ascending.
        steps: their texts.
        where: problem and rollout, for the message.

    Raises:
        StepAlignmentError: another number of positions, or another text at one; names `where` and the marker.
    """
    if len(positions) != len(steps):
        raise StepAlignmentError(f"{where}: {len(steps)} steps, {len(positions)} read positions")
    found = frame.read_back(tokenizer, ids, positions, where=where)
    for marker, (came, step) in enumerate(zip(found, steps, strict=True)):
        if came != "".join(step.split()) and came != (expected := as_read(tokenizer, step)):
            raise StepAlignmentError(
                f"{where}, marker {marker}: expected the step {expected[-60:]!r} to end there, got {came[-60:]!r}"
            )


def as_read(tokenizer: Any, text: str) -> str:
    """The text of its tokens, without white space."""
    return _decoded(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return "".join(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False).split())
