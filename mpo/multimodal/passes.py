"""A packed row that is too long for one forward pass: its prefix once, its responses in several passes.

The first pass reads the prefix, the images and the first responses, and keeps the prefix's keys and values of every
layer; the others read responses alone, behind what was kept. Without gradients: what a later pass sees of the prefix
has none. Attention (`mpo/multimodal/shared_prefix.py`) keeps and joins, not a cache of transformers, so it works for
every model that reads packed rows. Short passes also save time on a CPU: the large tensors of a long row get fresh
memory from the system in every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpo.multimodal.packing import LAYOUT, PackedLayout, within_limit
from mpo.multimodal.vision import IMAGES


def row_passes(inputs: Mapping[str, Any], max_tokens: float) -> Iterator[tuple[dict[str, Any], int]]:
    """Cut one packed row into passes of at most `max_tokens` tokens each; a pass holds at least one response.

    Args:
        inputs: model inputs with position ids. They are one pass if they are no single packed row, or not too long.
        max_tokens: of the row's tokens, the prefix counted in the first pass only.

    Yields:
        The inputs of a pass, to be read in this order; the place of its first token in the row.
    """
    layout: PackedLayout | None = inputs.get(LAYOUT)
    if layout is None or len(layout.prefixes) > 1 or inputs["input_ids"].shape[1] <= max_tokens:
        yield dict(inputs), 0
        return
    prefix, segments = layout.prefixes[0], [*layout.segments(0)]
    cut = {"position_ids", *layout.per_token}
    images = {IMAGES, *inputs[IMAGES].counts} if IMAGES in inputs else set()
    kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    lengths = [end - start - 1 for start, end in segments]
    for some in within_limit(prefix, lengths, max_tokens, repeat_prefix=False):
        first = some.start == 0
        start, end = 0 if first else segments[some.start][0], segments[some.stop - 1][1]
        before = 0 if first else start - prefix  # of the row's responses, tokens that this pass does not see
        ends = [segments[place][1] - before for place in some]
        part = {name: value[..., start:end] if name in cut else value for name, value in inputs.items()}
        part[LAYOUT] = PackedLayout([prefix], [ends], layout.per_token)
        part[LAYOUT].kept = kept
        yield {name: value for name, value in part.items() if first or name not in images}, start


def with_prefix(layer: nn.Module, key: Tensor, value: Tensor, layout: PackedLayout) -> tuple[Tensor, Tensor]:
    """A layer's keys and values of the whole row that a pass sees, (B, H, T, D).

    The first of several passes keeps those of the prefix; the others put them in front of their own.
    """
    if layout.kept is None:
        return key, value
    if layer not in layout.kept:
        prefix = layout.prefixes[0]
        layout.kept[layer] = key[:, :, :prefix].clone(), value[:, :, :prefix].clone()
        return key, value
    before_key, before_value = layout.kept[layer]
    return torch.cat([before_key, key], dim=2), torch.cat([before_value, value], dim=2)
