"""What the losses take and give. Dimension legend: B preference pairs, T tokens, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mpo.multimodal.errors import ConfigError


@dataclass(frozen=True)
class PairLogps:
    """Summed response-token log-probabilities of B pairs under policy and reference; all float32, shape (B,).

    Attributes:
        policy_chosen: π_c, log π_θ(y_c | x), carries gradients.
        policy_rejected: π_r, log π_θ(y_r | x), carries gradients; with a `rejected_span`, of its tokens alone.
        reference_chosen: ρ_c, log π_ref(y_c | x).
        reference_rejected: ρ_r, log π_ref(y_r | x), over the same tokens.
        chosen_lengths: |y_c|, tokens counted in π_c, at least 1.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_lengths: Tensor


@dataclass(frozen=True)
class LossWeights:
    """w_p, w_q, w_g of L = w_p·L_p + w_q·L_q + w_g·L_g (arXiv 2411.10442, §3.1); the paper's values by default."""

    preference: float = 0.8
    quality: float = 0.2
    generation: float = 1.0

    def __post_init__(self) -> None:
        values = (self.preference, self.quality, self.generation)
        if min(values) < 0 or max(values) <= 0:
            raise ConfigError(f"loss weights must be >= 0 and not all 0, got {values}")


@dataclass(frozen=True)
class MPOLoss:
    """The weighted total and its three unweighted parts; all scalars, float32."""

    total: Tensor
    preference: Tensor
    quality: Tensor
    generation: Tensor
