"""Chunked token log-probabilities → one sum and one length per response. The (B, T, V) logits never exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE, _use_triton
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, add_fused_lm_head

from mpo.multimodal.prefix import IGNORED


def enable_chunked_logps(model: Any) -> None:
    """Give `model` TRL's fused LM head, once; call it before PEFT wraps the model.

    Afterwards `model(..., labels=…, fused_lm_head=True).log_probs` holds log p(label) per position, computed in
    tiles of tokens and vocabulary (TRL 1.16, `trl.trainer.utils.add_fused_lm_head`). Any other call is unchanged.
    """
    if not getattr(model, "_chunked_logps", False):
        add_fused_lm_head(model)
        model._chunked_logps = True


def head_bytes(model: Any, labels: Tensor) -> int:
    """What the fused head takes beside what is saved: one tile of logits, and its input's gradient in float32.

    Args:
        model: without PEFT or DDP around it.
        labels: (B, T) on the model's device; with Triton only labelled positions go through the head, else all.
    """
    head, kind = model.get_output_embeddings(), labels.device.type
    positions = int((labels[:, 1:] != IGNORED).sum()) if _use_triton(labels.device) else labels[:, 1:].numel()
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
    vocabulary, width = head.weight.shape
    tile = min(positions, TOKEN_CHUNK_SIZE) * min(vocabulary, _CHUNKED_LOGPROB_CHUNK_SIZE) * dtype.itemsize
    return tile + positions * width * torch.float32.itemsize


def sum_logps(token_logps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the scored positions of each row.

    Args:
        token_logps: (B, T-1), log p(labels[:, 1:]), zero where ignored.
        labels: (B, T), -100 where not scored.

    Returns:
        Sums, float32 (B,), and numbers of scored tokens, int64 (B,).
    """
    return token_logps.float().sum(dim=1), (labels[:, 1:] != IGNORED).sum(dim=1)
