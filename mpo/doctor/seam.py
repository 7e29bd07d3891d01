"""Where prompt and response meet in the tokens that are trained on, shown on a row."""

from __future__ import annotations

from dataclasses import dataclass

from mpo.collator import PreferenceCollator
from mpo.multimodal.turn import seam_of
from mpo.row_forms import Row

SHOWN = 40  # characters


@dataclass(frozen=True)
class ShownSeam:
    """The text around the start and the end of one chosen response.

    Attributes:
        prompt: the prompt's last characters.
        before: what the chat template writes between prompt and response; a part of y.
        response: the response's first characters.
        end: the token that ends y, or nothing where the response was cut.
        template_ends: whether the template itself writes that token; if not, it is the tokenizer's end of text.
    """

    prompt: str
    before: str
    response: str
    end: str
    template_ends: bool


def seam_of_row(collator: PreferenceCollator, row: Row) -> ShownSeam:
    """The seam of the row's chosen response."""
    processor, pair = collator.processor, collator.check(row)
    ends = not row.get("chosen_truncated")
    text = processor.tokenizer.decode(pair.chosen[:-1] if ends else pair.chosen).removeprefix(pair.before)
    end = processor.tokenizer.decode(pair.chosen[-1:]) if ends else ""
    written = seam_of(processor).after.lstrip().startswith(end)
    return ShownSeam(pair.prompt[-SHOWN:], pair.before, text[:SHOWN], end, written)
