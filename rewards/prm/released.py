"""Rows as the released VisualPRM was trained on: true signs in the history, and a sign is a token like any other.

VisualPRM's own code (InternVL, `internvl_chat`) trains the chat of a labelled response as any conversation: each
assistant's turn is the label's sign with its end of turn, and the loss is the cross-entropy of both over the whole
vocabulary. Our `turns` rows differ on purpose: the history always holds `+`, as in their scoring code, and the loss
compares the label tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.messages import end_of_turn_id
from rewards.prm.formats import PRMFormat
from rewards.prm.rendering import RenderedSolution


def check_released(prm_format: PRMFormat, *, text_weight: float, class_weights: object) -> None:
    """Raise ConfigError where such rows do not exist, or a loss of ours goes with them."""
    if prm_format.layout != "turns" or text_weight or class_weights:
        raise ConfigError(
            "as_released trains VisualPRM's rows: it needs a format with the layout turns, and neither text_weight nor "
            f"class_weights; got the format {prm_format.name!r}, {text_weight} and {class_weights}"
        )


def as_released(
    processor: Any, prm_format: PRMFormat, row: RenderedSolution, labels: Sequence[float | None]
) -> RenderedSolution:
    """The row with the labels' own signs, the last one with its end of turn as well; `text` are those tokens.

    A step without a label keeps the placeholder and is not learned.

    Raises:
        ConfigError: a soft label, or a chat template that does not end a turn behind its sign.
    """
    start, end = len(row.prompt.input_ids), end_of_turn_id(processor)
    positive, negative, *neutral = prm_format.label_ids(processor.tokenizer)
    signs: dict[float | None, int] = {1.0: positive, 0.0: negative, None: positive}
    signs |= {0.5: neutral[0]} if neutral else {}
    if soft := [label for label in labels if label not in signs]:
        raise ConfigError(f"as_released needs hard labels, which have a sign; got {soft[0]}: leave soft_labels out")
    ids, learned = [*row.continuation, positive, end], []
    for position, label in zip(row.read_positions, labels, strict=True):
        place = position + 1 - start
        if ids[place + 1] != end:
            raise ConfigError(
                f"as_released: the chat template writes the token {ids[place + 1]} behind a sign, and not its end of "
                f"turn ({end})"
            )
        ids[place] = signs[label]
        learned += [] if label is None else [position + 1, position + 2]
    return replace(row, continuation=tuple(ids), text=tuple(learned))
