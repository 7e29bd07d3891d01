"""Packed rows without their padding: for the model's call alone they are joined into one row.

A micro-batch's rows are padded to the longest of them, and every linear layer computes the padding: a third of all
tokens where rows with images are cut at random (`benchmarks/packing.py`). Attention knows from the layout where rows
begin; norms, projections and the LM head read token by token. So log-probs are those of the padded rows, and whoever
made the batch or reads the log-probs sees rows.

Only with plain causal attention: a window, or a block of image tokens that see each other, needs a mask, and of one
long row it would be as large as the square of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mpo.multimodal.packing import LAYOUT, PackedLayout

POSITIONS = "position_ids"
ROW_IDS = "row_ids"  # key of the padded rows' ids (B, T) in the inputs of one row


class Unpadded(NamedTuple):
    """Inputs of one row, and the way back.

    Attributes:
        inputs: for the model; those of the padded rows where nothing is gained.
        places: (N,) int64, the places of its tokens among the B·T of the padded rows; None: they are the padded rows.
        shape: (B, T).
    """

    inputs: dict[str, Any]
    places: Tensor | None
    shape: torch.Size

    def positions(self, positions: Sequence[Sequence[int]]) -> list[list[int]]:
        """Positions in rows, ascending, as positions in the rows of `inputs`."""
        if self.places is None:
            return [list(row) for row in positions]
        begins = self.inputs[LAYOUT].begins
        return [[begin + place for begin, row in zip(begins, positions, strict=True) for place in row]]

    def rows(self, values: Tensor) -> Tensor:
        """One value per token, (1, N) → (B, T), 0 where a row is padded."""
        if self.places is None:
            return values
        return values.new_zeros(self.shape.numel()).index_copy(0, self.places, values[0]).view(self.shape)


def without_padding(model: Any, inputs: Mapping[str, Any]) -> Unpadded:
    """Join the rows of a packed batch.

    Args:
        model: without PEFT or DDP around it.
        inputs: packed, with position ids (`shared_inputs`); or others, which stay.
    """
    layout: PackedLayout | None = inputs.get(LAYOUT)
    shape = inputs["input_ids"].shape
    lengths = [ends[-1] for ends in layout.ends] if layout is not None else []
    if layout is None or sum(lengths) == shape.numel() or not _plainly_causal(model, inputs):
        return Unpadded(dict(inputs), None, shape)
    begins = [sum(lengths[:row]) for row in range(len(lengths))]
    places = torch.cat([torch.arange(length) + row * shape[1] for row, length in enumerate(lengths)])
    places = places.to(inputs["input_ids"].device)
    joined = PackedLayout(layout.prefixes, layout.ends, layout.per_token)
    joined.varlen, joined.begins = layout.varlen, tuple(begins)
    flat = {name: inputs[name].flatten(-2)[..., places].unsqueeze(-2)
            for name in (POSITIONS, *layout.per_token) if name in inputs}  # fmt: skip
    return Unpadded({**inputs, **flat, LAYOUT: joined, ROW_IDS: inputs["input_ids"]}, places, shape)


def _plainly_causal(model: Any, inputs: Mapping[str, Any]) -> bool:
    text = model.config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    no_window = set(kinds) == {"full_attention"} if kinds else getattr(text, "sliding_window", None) is None
    return no_window and "token_type_ids" not in inputs
