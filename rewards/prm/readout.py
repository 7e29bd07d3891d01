"""Logits at the read positions → step scores."""

from __future__ import annotations

from torch import Tensor

from rewards.prm.concentration import spread_of_scores
from rewards.types import StepScores


def label_softmax(logits: Tensor, log_concentration: Tensor | None = None) -> StepScores:
    """Softmax over the label logits alone: P(+) of + and - (VisualPRM's readout), P(+) + ½·P(=) of +, - and =.

    The ½ is ours: it makes a step that changes nothing worth as much as an even chance.

    Args:
        logits: (S, 2) or (S, 3) float32, columns positive, negative and neutral.
        log_concentration: (S,) float32, log κ of a concentration head; the scores then have spreads.

    Example:
        >>> import torch
        >>> label_softmax(torch.tensor([[0.0, 0.0], [30.0, 0.0]])).values
        (0.5, 1.0)
        >>> label_softmax(torch.tensor([[0.0, 0.0, 30.0], [-30.0, 0.0, -30.0]])).values[0]
        0.5
        >>> label_softmax(torch.zeros(1, 2), torch.zeros(1)).spreads  # κ = 1: √(¼ / 2)
        (0.3535533845424652,)
    """
    scores = label_scores(logits)
    spreads = None
    if log_concentration is not None:
        spreads = tuple(spread_of_scores(scores, log_concentration).tolist())
    return StepScores(tuple(scores.tolist()), spreads=spreads)


def label_scores(logits: Tensor) -> Tensor:
    """`label_softmax` as a tensor, (S,) float32."""
    shares = logits.float().softmax(dim=-1)
    if shares.shape[-1] == 2:
        return shares[:, 0]
    return (shares[:, 0] + shares[:, 2] / 2).clamp(max=1.0)
