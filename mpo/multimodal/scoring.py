"""The only place that calls a model in training and scoring: rows → log-probs, or logits at named positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mpo.multimodal.logps import sum_logps


def response_logps(model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's continuation.

    Args:
        model: prepared with `mpo.multimodal.logps.enable_chunked_logps`, possibly wrapped (PEFT, DDP).
        inputs: from `mpo.multimodal.prefix.stack_rows`; `labels` (B, T) mark the continuation.

    Returns:
        Sums, float32 (B,), with gradients; numbers of tokens, int64 (B,).
    """
    output = model(**inputs, fused_lm_head=True)
    return sum_logps(output.log_probs, inputs["labels"])


def logits_at(
    model: Any, inputs: Mapping[str, Tensor], positions: Sequence[Sequence[int]], token_ids: Sequence[int]
) -> list[Tensor]:
    """Logits of a few tokens at a few positions of each row.

    Only the union of the rows' positions goes through the LM head.

    Args:
        model: any causal multimodal LM.
        inputs: from `stack_rows`; `labels` are ignored.
        positions: for each of the B rows, the S positions to read, ascending.
        token_ids: the K tokens to read, e.g. the ids of `+` and `-`.

    Returns:
        For each row, float32 logits (S, K).
    """
    device = inputs["input_ids"].device
    wanted = sorted({position for row in positions for position in row})
    column = {position: index for index, position in enumerate(wanted)}
    model_inputs = {key: value for key, value in inputs.items() if key != "labels"}
    logits = model(**model_inputs, use_cache=False, logits_to_keep=torch.tensor(wanted, device=device)).logits
    read = logits[:, :, list(token_ids)].float()  # (B, len(wanted), K)
    return [read[i, [column[position] for position in row]] for i, row in enumerate(positions)]
