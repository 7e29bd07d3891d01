"""Step scores → one reward. Aggregation is one axis, selection another: any of these goes with any selector.

`mean` is the default because it ranks best for VisualPRM: best-of-8 with InternVL2.5-8B gives 41.1 for
mean, 40.4 for min and 35.9 for max (arXiv 2503.10291, Table 4); `prod` and `last` are not ablated there.
"""

from __future__ import annotations

import math

from mpo.multimodal.errors import ConfigError
from rewards.types import Aggregator, StepScores


def mean(scores: StepScores) -> float:
    """Average over steps; in [min, max] of the scores."""
    return math.fsum(scores.values) / len(scores.values)


def minimum(scores: StepScores) -> float:
    """The weakest step: a chain is as good as its worst link."""
    return min(scores.values)


def product(scores: StepScores) -> float:
    """P(all steps correct) if they were independent; falls with the number of steps."""
    return math.prod(scores.values)


def last(scores: StepScores) -> float:
    """The last step only, as an outcome reward model would score."""
    return scores.values[-1]


def maximum(scores: StepScores) -> float:
    """The strongest step; a baseline, weak by design."""
    return max(scores.values)


AGGREGATIONS: dict[str, Aggregator] = {
    "mean": mean,
    "min": minimum,
    "prod": product,
    "last": last,
    "max": maximum,
}


def aggregate(scores: StepScores, *, how: str | Aggregator = "mean") -> float:
    """Turn the scores of one response's steps into its reward.

    Args:
        scores: P(correct) of each step, in [0, 1].
        how: a name in `AGGREGATIONS`, or any callable of the same shape.

    Returns:
        The reward, in [0, 1] for every named aggregation.

    Raises:
        ConfigError: `how` names no aggregation.

    Example:
        >>> scores = StepScores((1.0, 0.5, 0.75))
        >>> {name: aggregate(scores, how=name) for name in AGGREGATIONS}
        {'mean': 0.75, 'min': 0.5, 'prod': 0.375, 'last': 0.75, 'max': 1.0}
    """
    if callable(how):
        return how(scores)
    if how not in AGGREGATIONS:
        raise ConfigError(f"unknown aggregation {how!r}: expected one of {', '.join(AGGREGATIONS)}, or a callable")
    return AGGREGATIONS[how](scores)
