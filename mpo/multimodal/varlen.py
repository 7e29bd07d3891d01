"""Split attention as one call of a variable-length kernel (`torch.nn.attention.varlen`), for CUDA in half precision.

Every part of a packed row becomes a sequence: the prefix, whose keys are its own, and each response, whose keys are the
prefix's and its own. The kernel aligns the causal mask at the end of both, so a response's first token sees the whole
prefix. Keys and values of a prefix are repeated for its responses, for as long as a layer runs.

Dimension legend: B rows, T tokens of a row, H query heads, H' key heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpo.multimodal.packing import PackedLayout


def can_use_varlen(query: Tensor, attention_mask: Tensor | None, dropout: float) -> bool:
    """Whether the kernel can compute this layer: CUDA, half precision, a plain causal prefix, no dropout."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and half and attention_mask is None and dropout == 0.0


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, scale: float | None, window: int | None
) -> Tensor:
    """(B, H, T, D) queries, (B, H', T, D) keys and values → (B, T, H, D); zero where a row is padded.

    Args:
        window: a token sees this many positions, itself included; None for all.
    """
    rows, heads, width, size = query.shape
    if "varlen" not in layout.derived:  # the same in every layer
        queries, keys = _sequences(layout, width)
        layout.derived["varlen"] = *_flat(queries, query.device), *_flat(keys, query.device)
    query_at, query_ends, longest_query, key_at, key_ends, longest_key = layout.derived["varlen"]
    flat_keys, flat_values = (x.transpose(1, 2).reshape(rows * width, -1, size)[key_at] for x in (key, value))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # cuDNN aligns a packed causal mask at its start
        attended = _kernel()(
            query.transpose(1, 2).reshape(rows * width, heads, size)[query_at],
            flat_keys,
            flat_values,
            query_ends,
            key_ends,
            longest_query,
            longest_key,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=heads != key.shape[1],
        )
    out = attended.new_zeros(rows * width, heads, size).index_copy(0, query_at, attended)
    return out.view(rows, width, heads, size)


def _kernel() -> Any:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _sequences(layout: PackedLayout, width: int) -> tuple[list[list[int]], list[list[int]]]:
    """For each sequence the places of its queries and of its keys in the B·T tokens of the batch."""
    queries, keys = [], []
    for row, prefix in enumerate(layout.prefixes):
        before = [*range(row * width, row * width + prefix)]
        queries.append(before)
        keys.append(before)
        for start, end in layout.segments(row):
            own = [*range(row * width + start, row * width + end)]
            queries.append(own)
            keys.append(before + own)
    return queries, keys


def _flat(sequences: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor, int]:
    """All places in one tensor, int64; where each sequence ends, from 0, int32; the longest one's length."""
    places = torch.tensor([place for sequence in sequences for place in sequence], device=device)
    lengths = torch.tensor([0, *map(len, sequences)], device=device)
    return places, lengths.cumsum(0).to(torch.int32), max(map(len, sequences))
