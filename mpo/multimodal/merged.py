"""Split attention in inference on a CPU: all responses of a row attend to its prefix in one call.

A response's softmax over the prefix and itself is the average of the two softmaxes, weighted with their sums of
exponentials; the kernel returns the logarithms of these sums (as in FlashAttention, arXiv 2205.14135, and in cascade
attention over a shared prefix). So prefix keys and values are read where they are, and no call needs a mask:

    o = σ(l_prefix − l_own) · o_prefix + (1 − σ(l_prefix − l_own)) · o_own

Exact, but the kernel has no gradient for l. Dimension legend: B rows, T tokens of a row, H heads, D head size.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mpo.multimodal.packing import PackedLayout


def can_merge(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, dropout: float, window: int | None
) -> bool:
    """Whether `merged_attention` computes this layer: a CPU in inference mode, no dropout, a window that hides nothing.

    Inference mode, and not any forward pass without gradients: a policy and its reference are to round alike.
    """
    if query.device.type != "cpu" or not torch.is_inference_mode_enabled() or dropout > 0.0:
        return False
    longest = max(p + end - start for row, p in enumerate(layout.prefixes) for start, end in layout.segments(row))
    fits = query.shape[-1] == value.shape[-1] and all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    return fits and (window is None or window >= longest)


def merged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: PackedLayout,
    *,
    scale: float | None,
) -> Tensor:
    """(B, H, T, D) queries, keys and values → (B, T, H, D); zero where a row is padded.

    Args:
        attention_mask: the model's own, of which the prefixes' part counts; None for a causal one.
    """
    left_out = key.shape[2] - query.shape[2]  # the prefix, where an earlier pass has read it
    attend = partial(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, scale=scale)
    out = torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    for row, prefix in enumerate(layout.prefixes):
        q, k, v, into = (layout.row_of(tensor, row) for tensor in (query, key, value, out.transpose(1, 2)))
        before_k, before_v = k[:, :, :prefix], v[:, :, :prefix]
        if not left_out:
            mask = layout.prefix_mask(attention_mask, row)
            into[:, :, :prefix] = scaled_dot_product_attention(
                q[:, :, :prefix], before_k, before_v, attn_mask=mask, is_causal=mask is None, scale=scale
            )
        q, into = q[:, :, prefix - left_out :], into[:, :, prefix - left_out :]  # of all responses
        seen, seen_sum = attend(q, before_k, before_v)
        for start, end in layout.segments(row):
            part = slice(start - prefix, end - prefix)
            own, own_sum = attend(q[:, :, part], k[:, :, start:end], v[:, :, start:end], is_causal=True)
            weight = (seen_sum[:, :, part] - own_sum).sigmoid()[..., None].to(own.dtype)  # (1, H, m, 1)
            torch.lerp(own, seen[:, :, part], weight, out=into[:, :, part])
    return out
