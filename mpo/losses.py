"""Mixed Preference Optimization: L = w_p·L_p + w_q·L_q + w_g·L_g, pure functions in float32.

MPO teaches three things at once: which of two responses is better (L_p), how good each one is by itself (L_q),
and how to write the good one (L_g). Paper: https://arxiv.org/abs/2411.10442.

π_c, π_r are sums of response-token log-probs under the policy, ρ_c, ρ_r under the reference; an implicit reward is
r = β·(π − ρ). Dimension legend: B preference pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mpo.multimodal.errors import ConfigError
from mpo.types import LossWeights, MPOLoss, PairLogps

GenerationAverage = Literal["response", "token", "square"]

# p of L_g = Σ −π_c·|y_c|^−p / Σ |y_c|^(1−p): a response counts 1, |y| or |y|^0.5 (InternVL2.5, arXiv 2412.05271)
LENGTH_EXPONENT: dict[str, float] = {"response": 1.0, "token": 0.0, "square": 0.5}

PAPER_WEIGHTS = LossWeights()


@dataclass(frozen=True)
class Denominators:
    """What the three sums are divided by: counted over one batch, or over a whole optimizer step and all ranks.

    Attributes:
        pairs: number of preference pairs; divides L_p and L_q.
        generation: Σ |y_c|^(1−p); divides L_g. Equals `pairs` for the average "response", tokens for "token".
    """

    pairs: float | Tensor
    generation: float | Tensor

    @classmethod
    def of(cls, chosen_lengths: Tensor, generation_average: GenerationAverage = "response") -> Denominators:
        """Count the pairs of one batch, or of several whose lengths were concatenated.

        Args:
            chosen_lengths: |y_c| in tokens, (B,).
            generation_average: how L_g weights responses of different length.

        Example:
            >>> Denominators.of(torch.tensor([4, 9]), "square").generation
            tensor(5.)
        """
        exponent = 1.0 - _length_exponent(generation_average)
        return cls(float(len(chosen_lengths)), chosen_lengths.float().pow(exponent).sum())


def implicit_rewards(logps: PairLogps, *, beta: float) -> tuple[Tensor, Tensor]:
    """r_c = β·(π_c − ρ_c) and r_r = β·(π_r − ρ_r), each (B,): how far the policy moved from the reference.

    Direct Preference Optimization, equation 5: https://arxiv.org/abs/2305.18290.
    """
    chosen = beta * (logps.policy_chosen.float() - logps.reference_chosen.float())
    rejected = beta * (logps.policy_rejected.float() - logps.reference_rejected.float())
    return chosen, rejected


def preference_loss(chosen_rewards: Tensor, rejected_rewards: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """L_p = −log σ(r_c − r_r), one value per pair: DPO's loss.

    Equation 7 of https://arxiv.org/abs/2305.18290. With label smoothing ε the pair is taken to be the wrong way
    round with probability ε (conservative DPO, https://ericmitchell.ai/cdpo.pdf).

    Args:
        chosen_rewards: r_c, (B,).
        rejected_rewards: r_r, (B,).
        label_smoothing: ε in [0, 0.5).

    Returns:
        (B,) float32.

    Example:
        >>> preference_loss(torch.tensor([0.0]), torch.tensor([0.0]))  # ln 2: the policy is still the reference
        tensor([0.6931])
    """
    margin = chosen_rewards.float() - rejected_rewards.float()
    # −(1−ε)·log σ(r_c − r_r) − ε·log σ(r_r − r_c)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def quality_loss(chosen_rewards: Tensor, rejected_rewards: Tensor, reward_shift: float | Tensor) -> Tensor:
    """L_q = −log σ(r_c − δ) − log σ(−(r_r − δ)), one value per pair: Binary Classifier Optimization (BCO).

    The MPO paper takes it from https://arxiv.org/abs/2404.04656. The two terms are summed, not averaged.
    δ, the reward shift, is the running mean of the implicit rewards: without it, once both rewards are negative the
    loss only ever raises the chosen response. TRL ≥ 0.29 computes this with δ = 0.

    Args:
        chosen_rewards: r_c, (B,).
        rejected_rewards: r_r, (B,).
        reward_shift: δ, a constant: no gradient flows into it.

    Returns:
        (B,) float32.

    Example:
        >>> quality_loss(torch.tensor([0.2]), torch.tensor([-0.2]), 0.05)
        tensor([1.1969])
    """
    delta = torch.as_tensor(reward_shift, dtype=torch.float32, device=chosen_rewards.device).detach()
    # −log σ(r_c − δ) − log σ(−(r_r − δ))
    return -F.logsigmoid(chosen_rewards.float() - delta) - F.logsigmoid(-(rejected_rewards.float() - delta))


def generation_loss(
    policy_chosen: Tensor, chosen_lengths: Tensor, *, average: GenerationAverage = "response"
) -> Tensor:
    """−π_c·|y_c|^−p, one value per pair: the language-model loss of the chosen response.

    The MPO paper's is p = 1 ("response"): L_g = −π_c / |y_c|. The sum over pairs divided by
    `Denominators.generation` is L_g for every average.

    Args:
        policy_chosen: π_c, (B,).
        chosen_lengths: |y_c| in tokens, (B,), at least 1.
        average: "response", "token" or "square".

    Returns:
        (B,) float32.

    Example:
        >>> generation_loss(torch.tensor([-10.0]), torch.tensor([5]))
        tensor([2.])
    """
    # −π_c / |y_c| for p = 1
    return -policy_chosen.float() * chosen_lengths.float().pow(-_length_exponent(average))


def mpo_loss(
    logps: PairLogps,
    *,
    beta: float = 0.1,
    reward_shift: float | Tensor,
    weights: LossWeights = PAPER_WEIGHTS,
    generation_average: GenerationAverage = "response",
    label_smoothing: float = 0.0,
    pair_weight: Tensor | None = None,
    denominators: Denominators | None = None,
) -> MPOLoss:
    """L = w_p·L_p + w_q·L_q + w_g·L_g: https://arxiv.org/abs/2411.10442.

    Each part is a sum over this batch divided by `denominators`. With those of a whole optimizer step, the parts of
    its micro-batches add up to the parts of the undivided batch.

    Args:
        logps: five (B,) tensors; the policy's carry gradients.
        beta: β > 0, strength of the pull towards the reference.
        reward_shift: δ, from `RewardShift.value`.
        weights: (w_p, w_q, w_g); the paper's (0.8, 0.2, 1.0) by default.
        generation_average: how L_g weights responses of different length.
        label_smoothing: ε of L_p, in [0, 0.5).
        pair_weight: (B,), multiplies all three parts of a pair; the denominators still count pairs.
        denominators: None divides by this batch alone.

    Raises:
        ConfigError: tensors that are not one-dimensional and of one length; an unknown average.

    Example:
        >>> one = lambda value: torch.tensor([value])
        >>> logps = PairLogps(one(-10.0), one(-15.0), one(-12.0), one(-13.0), torch.tensor([5]))
        >>> mpo_loss(logps, beta=0.1, reward_shift=0.05).total
        tensor(2.6498)
    """
    _check_shapes(logps, pair_weight)
    if denominators is None:
        denominators = Denominators.of(logps.chosen_lengths, generation_average)
    chosen, rejected = implicit_rewards(logps, beta=beta)  # (B,), (B,)
    weight = torch.ones_like(chosen) if pair_weight is None else pair_weight.float()  # (B,)

    per_pair_p = preference_loss(chosen, rejected, label_smoothing=label_smoothing)  # (B,)
    per_pair_q = quality_loss(chosen, rejected, reward_shift)  # (B,)
    per_pair_g = generation_loss(logps.policy_chosen, logps.chosen_lengths, average=generation_average)  # (B,)
    preference = (weight * per_pair_p).sum() / denominators.pairs
    quality = (weight * per_pair_q).sum() / denominators.pairs
    generation = (weight * per_pair_g).sum() / denominators.generation
    # L = w_p·L_p + w_q·L_q + w_g·L_g
    total = weights.preference * preference + weights.quality * quality + weights.generation * generation
    return MPOLoss(total, preference, quality, generation)


def _length_exponent(average: str) -> float:
    if average not in LENGTH_EXPONENT:
        raise ConfigError(f"generation_average must be one of {list(get_args(GenerationAverage))}, got {average!r}")
    return LENGTH_EXPONENT[average]


def _check_shapes(logps: PairLogps, pair_weight: Tensor | None) -> None:
    shapes = {name: tuple(value.shape) for name, value in vars(logps).items()}
    if pair_weight is not None:
        shapes["pair_weight"] = tuple(pair_weight.shape)
    if len(set(shapes.values())) != 1 or logps.policy_chosen.dim() != 1:
        raise ConfigError(f"expected tensors of one shape (B,), got {shapes}")
