"""Losses of a step: of its label, and of its count, −log P(k successes in n draws) up to a term of the count alone.

Binomial, p = P(+): every continuation of a step is right with probability p, independently of the others.

    −log P(k | n, p) = −k·log p − (n − k)·log(1 − p) − log C(n, k)

Beta-Binomial, p ~ Beta(κ·P(+), κ·P(−)): continuations of a step are alike, so 16 of them tell less than 16 independent
draws would; κ is the concentration, and κ → ∞ is the binomial. It is one number, or one per step that a head predicts
(`rewards/prm/concentration.py`), as in BetaPRM (https://arxiv.org/abs/2605.15529).

    −log P(k | n, α, β) = −Σ_{i<k} log(α + i) − Σ_{i<n−k} log(β + i) + Σ_{i<n} log(α + β + i) − log C(n, k)

Both leave log C(n, k) out: it has no gradient. Counts are learned as they are, so 2 of 2 weighs a quarter of 8 of 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

from mpo.multimodal.errors import ConfigError
from rewards.prm.formats import PRMFormat


def label_loss(
    logits: Tensor, targets: Tensor, *, neutral: bool = False, class_weights: tuple[float, float] | None = None
) -> Tensor:
    """−Σ [w₊·m·log P(+) + w₋·(1−m)·log P(−)], or −Σ log P(label) of three labels.

    Args:
        logits: (S, 2) float, or (S, 3) of three labels, columns positive, negative and neutral.
        targets: (S,) float, m in [0, 1]; of three labels 1, ½ or 0.
        neutral: whether there are three labels.
        class_weights: w₊ and w₋, above 0; None is 1 and 1.

    Returns:
        0-d, of the logits' dtype.

    Example:
        >>> label_loss(torch.zeros(2, 2), torch.tensor([1.0, 0.0]), class_weights=(1.0, 3.0)) / math.log(2)
        tensor(4.)
        >>> label_loss(torch.tensor([[0.0, 0.0, 50.0]]), torch.tensor([0.5]), neutral=True)
        tensor(0.)
    """
    if neutral:
        columns = (2 - 2 * (targets == 1) - (targets == 0).long()).long()  # 1 → +, 0 → -, ½ → =
        return cross_entropy(logits, columns, reduction="sum")
    margin = logits[:, 0] - logits[:, 1]  # log P(+) − log P(−) over the two labels
    if class_weights is None:
        return binary_cross_entropy_with_logits(margin, targets, reduction="sum")
    right, wrong = class_weights
    ratio = margin.new_tensor(right / wrong)
    return wrong * binary_cross_entropy_with_logits(margin, targets, pos_weight=ratio, reduction="sum")


def binomial_loss(margin: Tensor, correct: Tensor, total: Tensor) -> Tensor:
    """−k·log p − (n − k)·log(1 − p) of each step, with p = σ(margin).

    Args:
        margin: (S,) float, log P(+) − log P(−).
        correct: (S,) float, k in [0, n].
        total: (S,) float, n, at least 1.

    Returns:
        (S,) of the margin's dtype, at least 0.

    Example:
        >>> binomial_loss(torch.zeros(2), torch.tensor([3.0, 0.0]), torch.tensor([4.0, 2.0])) / math.log(2)
        tensor([4., 2.])
    """
    return -(correct * logsigmoid(margin) + (total - correct) * logsigmoid(-margin))


def beta_binomial_loss(margin: Tensor, correct: Tensor, total: Tensor, *, concentration: float | Tensor) -> Tensor:
    """−log P(k | n, κ·p, κ·(1 − p)) − log C(n, k) of each step, with p = σ(margin).

    The sums are taken of log(p + i/κ): log κ cancels, so that no digits are lost for a large κ, as they are in
    differences of `lgamma`, and the first term is log σ, which is finite where p rounds to 0.

    Args:
        margin: (S,) float, log P(+) − log P(−).
        correct: (S,) float, k in [0, n], a whole number.
        total: (S,) float, n, at least 1, a whole number.
        concentration: κ, above 0; one number, or (S,) float, one per step.

    Returns:
        (S,) of the margin's dtype, at least 0.

    Example:
        >>> beta_binomial_loss(torch.zeros(1), torch.ones(1), torch.ones(1), concentration=2.0) / math.log(2)
        tensor([1.])
        >>> two = torch.tensor([2.0])  # of 2: ½·(½·κ + 1) / (κ + 1) = 1/3 at κ = 2
        >>> beta_binomial_loss(torch.zeros(1), two, two, concentration=2.0).exp()
        tensor([3.])
        >>> each, twos = torch.tensor([2.0, 1e9]), two.repeat(2)  # one κ per step; the second is the binomial
        >>> beta_binomial_loss(torch.zeros(2), twos, twos, concentration=each).exp()
        tensor([3., 4.])
    """
    most = int(total.max()) if len(total) else 1  # a micro-batch may hold no labelled step
    places = torch.arange(1, max(1, most), device=margin.device, dtype=margin.dtype)
    rising = places / (concentration[:, None] if isinstance(concentration, Tensor) else concentration)  # i/κ

    def successes(margin: Tensor, number: Tensor) -> Tensor:
        """Σ_{i<number} log(σ(margin) + i/κ), the first term from log σ."""
        later = torch.log(torch.sigmoid(margin)[:, None] + rising)  # (S, n − 1)
        return logsigmoid(margin) * (number > 0) + _first(later, number - 1)

    whole = _first(torch.log1p(rising).expand(len(total), -1), total - 1)
    return whole - successes(margin, correct) - successes(-margin, total - correct)


def _first(terms: Tensor, number: Tensor) -> Tensor:
    """Σ of the first `number` terms of each row: (S, M) and (S,) → (S,)."""
    places = torch.arange(terms.shape[1], device=terms.device)
    return terms.masked_fill(places >= number[:, None], 0.0).sum(-1)


@dataclass(frozen=True)
class Likelihood:
    """The likelihood that counts are learned by.

    Attributes:
        concentration: κ of the Beta-Binomial, above 0; None is the binomial.
        per_step: κ is predicted for each step by a head (`rewards/prm/concentration.py`); `concentration` is what it
            predicts before it is trained, None its own start.

    Raises:
        ConfigError: κ is not a number above 0.

    Example:
        >>> margin, correct, total = torch.zeros(1), torch.tensor([3.0]), torch.tensor([4.0])
        >>> Likelihood()(margin, correct, total) / math.log(2)
        tensor([4.])
        >>> round(Likelihood(concentration=2.0)(margin, correct, total).item(), 4) == round(math.log(20), 4)
        True
    """

    concentration: float | None = None
    per_step: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if self.concentration is not None and not 0.0 < self.concentration < math.inf:
            raise ConfigError(
                f"concentration must be a number above 0, or None for the binomial; got {self.concentration}"
            )

    def __call__(
        self, margin: Tensor, correct: Tensor, total: Tensor, log_concentration: Tensor | None = None
    ) -> Tensor:
        """−log P(k | n, σ(margin)) of each step, (S,), up to a constant.

        Args:
            margin, correct, total: as in `binomial_loss`.
            log_concentration: (S,) float, log κ of each step, with `per_step`.
        """
        if self.per_step:
            assert log_concentration is not None
            return beta_binomial_loss(margin, correct, total, concentration=log_concentration.exp())
        if self.concentration is None:
            return binomial_loss(margin, correct, total)
        return beta_binomial_loss(margin, correct, total, concentration=self.concentration)


def check_losses(
    prm_format: PRMFormat,
    likelihood: Likelihood | None = None,
    *,
    text_weight: float = 0.0,
    class_weights: tuple[float, float] | None = None,
    released: bool = False,
) -> None:
    """Whether the losses of a PRM's training go together, and with its format; arguments as in `PRMTrainer`.

    Raises:
        ConfigError: they do not.
    """
    if text_weight < 0:
        raise ConfigError(f"text_weight must be at least 0, got {text_weight}")
    if text_weight > 0 and prm_format.readout == "head":
        raise ConfigError(f"text_weight must be 0 with a label head, which predicts no tokens; got {text_weight}")
    if prm_format.neutral and (text_weight > 0 or class_weights):
        raise ConfigError(
            "text_weight and class_weights cannot be used with advantage labels, which do not say whether a step is "
            "right"
        )
    if likelihood is not None and (prm_format.neutral or class_weights or released):
        raise ConfigError(
            "a likelihood of counts needs two labels, and neither class_weights nor as_released: it weighs each step "
            f"by its draws; got the format {prm_format.name!r}, {class_weights} and {released}"
        )


def check_counts(*sets: Any) -> None:
    """Whether every labelled step of labelled groups has a count.

    Args:
        sets: sequences of `LabelledGroup`, or mappings of them by name, or None.

    Raises:
        ConfigError: some response has labels alone; names its problem.
    """
    flat = [groups for some in sets for groups in (some.values() if isinstance(some, Mapping) else [some or []])]
    for group in (group for groups in flat for group in groups):
        if any(one.counts is None and any(m is not None for m in one.labels) for one in group.solutions):
            raise ConfigError(
                f"problem {group.problem.id!r}: a response has step labels but no counts, and a likelihood learns "
                "counts: give LabelledSolution its counts, or leave the likelihood out"
            )
