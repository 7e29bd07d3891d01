"""Chunked token log-probabilities → one sum and one length per response. The (B, T, V) logits never exist."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from mpo.multimodal.prefix import IGNORED


def enable_chunked_logps(model: Any) -> None:
    """Give `model` TRL's fused LM head, once; call it before PEFT wraps the model.

    Afterwards `model(..., labels=…, fused_lm_head=True).log_probs` holds log p(label) per position, computed in
    tiles of tokens and vocabulary (TRL 1.16, `trl.trainer.utils.add_fused_lm_head`). Any other call is unchanged.
    """
    if not getattr(model, "_chunked_logps", False):
        add_fused_lm_head(model)
        model._chunked_logps = True


def sum_logps(token_logps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the scored positions of each row.

    Args:
        token_logps: (B, T-1), log p(labels[:, 1:]), zero where ignored.
        labels: (B, T), -100 where not scored.

    Returns:
        Sums, float32 (B,), and numbers of scored tokens, int64 (B,).
    """
    return token_logps.float().sum(dim=1), (labels[:, 1:] != IGNORED).sum(dim=1)
