"""Split attention: how a model reads the packed rows of `mpo/multimodal/packing.py`.

In every layer the prefix attends to itself under the model's own mask, and each response to the prefix and,
causally, to itself. Responses do not see each other. It is an attention function of transformers' AttentionInterface;
the layout reaches it as a keyword argument of the model, which gradient checkpointing keeps for its second forward.
Without that argument it is transformers' sdpa. Where they can, `merged.py` and `varlen.py` compute it in fewer calls.

Not exact, so refused: layers that carry a state along the row (recurrent, convolutional). Checked against the paired
layout at a run's first batch (`mpo/layout.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.merged import can_merge, merged_attention
from mpo.multimodal.packing import LAYOUT, PackedLayout
from mpo.multimodal.passes import with_prefix
from mpo.multimodal.positions import RowPositions
from mpo.multimodal.varlen import can_use_varlen, varlen_attention

NAME = "mpo_shared_prefix"
POSITIONAL_LAYERS = {"full_attention", "sliding_attention"}  # a token's output depends on positions, not on the row


def why_not_shared(model: Any) -> str | None:
    """Why the model cannot read packed rows; None if it can.

    Args:
        model: an image-text-to-text model without PEFT around it.
    """
    text = model.config.get_text_config()
    if others := sorted(set(getattr(text, "layer_types", None) or []) - POSITIONAL_LAYERS):
        return f"layers of type {', '.join(others)} carry a state from one response into the next"
    if text._attn_implementation not in ("sdpa", NAME):
        return f"its attention is {text._attn_implementation!r}, and the shared prefix needs 'sdpa'"
    decoder = model.get_decoder()
    if decoder is None or not decoder._can_set_attn_implementation():
        return "its language model does not take its attention from transformers' AttentionInterface"
    return None


def enable_shared_prefix(model: Any) -> None:
    """Let the language model of `model` read packed rows; every other call stays as it was.

    Raises:
        ConfigError: the model cannot, with the reason.
    """
    if reason := why_not_shared(model):
        raise ConfigError(f"{type(model).__name__} cannot share a prefix: {reason}")
    model.config.get_text_config()._attn_implementation_internal = NAME
    decoder = model.get_decoder()
    decoder.config._attn_implementation_internal = NAME


def shared_inputs(model: Any, packed: Mapping[str, Any]) -> dict[str, Any]:
    """A packed batch with the position ids of its rows, ready for `model(**inputs)`; those that it has stay.

    Args:
        model: without PEFT or DDP around it; prepared with `enable_shared_prefix`.
        packed: from `pack_rows`, on the model's device.

    Raises:
        ConfigError: the model would read the row as if it were one long answer.
    """
    if model.config.get_text_config()._attn_implementation != NAME:
        raise ConfigError(f"{type(model).__name__} would misread packed rows: call enable_shared_prefix(model) first")
    inputs = dict(packed)
    if "position_ids" not in inputs:
        inputs |= RowPositions(model.base_model)(inputs)
    # Padding comes last and is read by nobody. All ones, and not None: without a mask, transformers takes positions
    # that start again for the start of another sequence, and would compute a mask for that.
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: (B, H, T, D) queries, (B, H', T, D) keys and values → (B, T, H, D)."""
    layout: PackedLayout | None = kwargs.pop(LAYOUT, None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if kwargs.get("softcap") is not None:
        raise ConfigError("attention with a softcap cannot share a prefix: set layout='paired'")
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotary embeddings leave them in float32
    window = kwargs.get("sliding_window")
    key, value = with_prefix(module, key, value, layout)
    if layout.varlen and can_use_varlen(query, key, attention_mask, dropout):
        return varlen_attention(query, key, value, layout, scale=scaling, window=window), None
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if can_merge(query, key, value, layout, dropout=dropout, window=window):
        return merged_attention(query, key, value, attention_mask, layout, scale=scaling), None
    attend = partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    left_out = key.shape[2] - query.shape[2]  # the prefix, where an earlier pass has read it
    rows = []
    for row, prefix in enumerate(layout.prefixes):
        q, k, v = (layout.row_of(tensor, row) for tensor in (query, key, value))  # (1, H, T, D)
        before_k, before_v = k[:, :, :prefix], v[:, :, :prefix]
        parts = []
        if not left_out:
            own = layout.prefix_mask(attention_mask, row)
            parts.append(attend(q[:, :, :prefix], before_k, before_v, attn_mask=own, is_causal=own is None))
        for start, end in layout.segments(row):
            seen_k = torch.cat([before_k, k[:, :, start:end]], dim=2)  # (1, H, prefix + m, D)
            seen_v = torch.cat([before_v, v[:, :, start:end]], dim=2)
            mask = _response_mask(end - start, prefix, window, q, layout)
            parts.append(attend(q[:, :, start - left_out : end - left_out], seen_k, seen_v, attn_mask=mask))
        padding = k.shape[2] - layout.ends[row][-1]
        rows.append(pad(torch.cat(parts, dim=2), (0, 0, 0, padding)))
    return torch.cat(rows, dim=0 if layout.begins is None else 2).transpose(1, 2).contiguous(), None


def _response_mask(length: int, prefix: int, window: int | None, query: Tensor, layout: PackedLayout) -> Any:
    """(m, prefix + m): all of the prefix and what came before; with a window, its last `window` positions only.

    On a CPU a mask is made once for all layers, and added to the scores: sdpa's fastest way there.
    """
    unlimited = window is None or window >= prefix + length
    if unlimited and query.is_cuda:
        return causal_lower_right(length, prefix + length)
    key = ("mask", length, prefix, None if unlimited else window, query.dtype)
    if key not in layout.derived:
        keys = torch.arange(prefix + length, device=query.device)
        queries = keys[prefix:, None]
        seen = keys <= queries
        if window is not None and not unlimited:
            seen &= keys > queries - window
        layout.derived[key] = torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, -torch.inf)
    return layout.derived[key]


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
