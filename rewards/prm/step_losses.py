"""Losses of a step's count: −log P(k successes in n draws), up to a term that depends on the count alone.

Binomial, p = P(+): every continuation of a step is right with probability p, independently of the others.

    −log P(k | n, p) = −k·log p − (n − k)·log(1 − p) − log C(n, k)

Beta-Binomial, p ~ Beta(κ·P(+), κ·P(−)): continuations of a step are alike, so 16 of them tell less than 16 independent
draws would; κ is the concentration, and κ → ∞ is the binomial (arXiv 2605.15529 learns κ per step with a head of its
own; here it is one number).

    −log P(k | n, α, β) = −Σ_{i<k} log(α + i) − Σ_{i<n−k} log(β + i) + Σ_{i<n} log(α + β + i) − log C(n, k)

Both leave log C(n, k) out: it has no gradient. Counts are learned as they are, so 2 of 2 weighs a quarter of 8 of 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mpo.multimodal.errors import ConfigError


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


def beta_binomial_loss(margin: Tensor, correct: Tensor, total: Tensor, *, concentration: float) -> Tensor:
    """−log P(k | n, κ·p, κ·(1 − p)) − log C(n, k) of each step, with p = σ(margin).

    The sums are taken of log(p + i/κ): log κ cancels, so that no digits are lost for a large κ, as they are in
    differences of `lgamma`, and the first term is log σ, which is finite where p rounds to 0.

    Args:
        margin: (S,) float, log P(+) − log P(−).
        correct: (S,) float, k in [0, n], a whole number.
        total: (S,) float, n, at least 1, a whole number.
        concentration: κ, above 0.

    Returns:
        (S,) of the margin's dtype, at least 0.

    Example:
        >>> beta_binomial_loss(torch.zeros(1), torch.ones(1), torch.ones(1), concentration=2.0) / math.log(2)
        tensor([1.])
        >>> two = torch.tensor([2.0])  # of 2: ½·(½·κ + 1) / (κ + 1) = 1/3 at κ = 2
        >>> beta_binomial_loss(torch.zeros(1), two, two, concentration=2.0).exp()
        tensor([3.])
    """
    most = int(total.max()) if len(total) else 1  # a micro-batch may hold no labelled step
    rising = torch.arange(1, max(1, most), device=margin.device, dtype=margin.dtype) / concentration

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

    def __post_init__(self) -> None:
        if self.concentration is not None and not 0.0 < self.concentration < math.inf:
            raise ConfigError(
                f"concentration must be a number above 0, or None for the binomial; got {self.concentration}"
            )

    def __call__(self, margin: Tensor, correct: Tensor, total: Tensor) -> Tensor:
        """−log P(k | n, σ(margin)) of each step, (S,), up to a constant; arguments are those of `binomial_loss`."""
        if self.concentration is None:
            return binomial_loss(margin, correct, total)
        return beta_binomial_loss(margin, correct, total, concentration=self.concentration)


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
