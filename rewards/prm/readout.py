"""Logits at the read positions → step scores."""

from __future__ import annotations

from torch import Tensor

from rewards.types import StepScores


def pair_softmax(logits: Tensor) -> StepScores:
    """P(+) against P(-) alone: softmax over the two label logits (VisualPRM's readout).

    Args:
        logits: (S, 2) float32, columns positive and negative.

    Example:
        >>> import torch
        >>> pair_softmax(torch.tensor([[0.0, 0.0], [30.0, 0.0]])).values
        (0.5, 1.0)
    """
    return StepScores(tuple(logits.float().softmax(dim=-1)[:, 0].tolist()))
