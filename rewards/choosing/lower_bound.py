"""A pessimistic reward: what a response is worth even if the PRM is off by as much as it says that it may be.

    lower bound = A(s) − z · Σ_t |∂A/∂s_t| · σ_t

A is the aggregation, s_t the score of step t and σ_t its spread (`StepScores.spreads`). To first order, the sum is the
largest standard deviation that A(s) can have, whatever the steps' errors have to do with each other; those of one
response have much to do with each other, so nothing is divided by a root of the number of steps. For the mean it is the
mean of the spreads. Choosing by a lower bound takes a good response of which the PRM is sure before a better one of
which it is not (selection with BetaPRM, https://arxiv.org/abs/2605.15529).

A response without spreads has no lower bound. It is never treated as if its spread were 0: it is ranked last, as a
response without a reward is, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mpo.multimodal.errors import ConfigError
from rewards.scoring.aggregation import AGGREGATIONS
from rewards.scoring.spreads import step_spreads
from rewards.types import Rollout, RolloutGroup, StepScores

Z = 1.0  # spreads that are taken off, unless told otherwise


def _mean(values: Sequence[float], spreads: Sequence[float]) -> float:
    return math.fsum(spreads) / len(spreads)


def _minimum(values: Sequence[float], spreads: Sequence[float]) -> float:
    return max(spread for value, spread in zip(values, spreads, strict=True) if value == min(values))


def _product(values: Sequence[float], spreads: Sequence[float]) -> float:
    others = (math.prod([*values[:step], *values[step + 1 :]]) for step in range(len(values)))
    return math.fsum(spread * rest for spread, rest in zip(spreads, others, strict=True))


def _last(values: Sequence[float], spreads: Sequence[float]) -> float:
    return spreads[-1]


def _maximum(values: Sequence[float], spreads: Sequence[float]) -> float:
    return max(spread for value, spread in zip(values, spreads, strict=True) if value == max(values))


# aggregation → Σ_t |∂A/∂s_t| · σ_t; where several steps are lowest (highest), the largest of their spreads
SPREADS: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "mean": _mean,
    "min": _minimum,
    "prod": _product,
    "last": _last,
    "max": _maximum,
}


def spread_of(scores: StepScores, *, how: str = "mean") -> float | None:
    """The spread of a response's aggregated score: Σ_t |∂A/∂s_t| · σ_t.

    Args:
        scores: of its steps.
        how: a name of `rewards.scoring.aggregation.AGGREGATIONS`.

    Returns:
        At least 0; for all but `prod` at most ½. None: the PRM told no spreads.

    Raises:
        ConfigError: `how` names no aggregation.

    Example:
        >>> scores = StepScores((1.0, 0.5), spreads=(0.0, 0.25))
        >>> {how: spread_of(scores, how=how) for how in SPREADS}
        {'mean': 0.125, 'min': 0.25, 'prod': 0.25, 'last': 0.25, 'max': 0.0}
    """
    if how not in SPREADS:
        raise ConfigError(f"unknown aggregation {how!r}: expected one of {', '.join(SPREADS)}")
    return None if scores.spreads is None else SPREADS[how](scores.values, scores.spreads)


@dataclass(frozen=True)
class LowerBound:
    """lower bound = A(s) − z · the spread of A(s).

    Attributes:
        how: A, a name of `rewards.scoring.aggregation.AGGREGATIONS`; that of the rewards, to be compared with them.
        z: at least 0; 0 is the score itself, and a larger one trusts the PRM less where it is not sure.

    Raises:
        ConfigError: an unknown aggregation, or a z that is negative or no number.

    Example:
        >>> from rewards.types import Completion
        >>> rollout = Rollout(Completion("…"), step_scores=StepScores((1.0, 0.5), spreads=(0.0, 0.25)), reward=0.75)
        >>> LowerBound().of(rollout), LowerBound("min", 2).of(rollout), LowerBound().of(Rollout(Completion("…")))
        (0.625, 0.0, None)
    """

    how: str = "mean"
    z: float = Z

    def __post_init__(self) -> None:
        if self.how not in SPREADS or not 0.0 <= self.z < math.inf:
            raise ConfigError(
                f"expected a lower bound of {', '.join(SPREADS)} and a z of at least 0, got {self.how!r} and {self.z}"
            )

    def of(self, rollout: Rollout) -> float | None:
        """The lower bound, below the score by at most z · its spread; None without spreads."""
        scores = rollout.step_scores
        spread = None if scores is None else spread_of(scores, how=self.how)
        if scores is None or spread is None:
            return None
        return AGGREGATIONS[self.how](scores) - self.z * spread


BOUND = LowerBound()


def without_spread(groups: Iterable[RolloutGroup]) -> int:
    """Rollouts that have a reward and no spreads."""
    rollouts = (rollout for group in groups for rollout in group.rollouts if rollout.reward is not None)
    return sum(rollout.step_scores is None or rollout.step_scores.spreads is None for rollout in rollouts)


def has_spread(groups: Iterable[RolloutGroup]) -> bool:
    """Whether any rollout has spreads."""
    return any(map(step_spreads, groups))
