"""How much a step's count tells about mc: a Beta posterior, and whether the step is decided.

A step's mc is P(a continuation from its end is right), the expected accuracy of VisualPRM (arXiv 2503.10291, Eq. 1).
With the prior mc ~ Beta(a, b), k successes of n draws give the posterior (Gelman et al., Bayesian Data Analysis, §2.4)

    mc | k, n ~ Beta(a + k, b + n − k).

The prior is uniform, a = b = 1, unless another is given. A budget that stops at a success leaves the posterior as it
is, since the likelihood of what was drawn is still p^k·(1 − p)^(n − k). Counts that were inferred and not drawn, as
`bisect` gives them, have no posterior.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from scipy.stats import beta

from mpo.multimodal.errors import ConfigError
from rewards.prm.labelling.source import counts_were_drawn
from rewards.types import MonteCarloCount, Rollout

LEVEL = 0.95  # probability inside the interval, and that a decided step is on its side
THRESHOLD = 0.5  # that mc of a decided step is above or below
UNIFORM = (1.0, 1.0)  # a and b of the prior


@dataclass(frozen=True)
class Posterior:
    """What a count tells about mc.

    Attributes:
        correct: successes k, at least 0.
        total: draws n, at least k.
        mean: E[mc] = (a + k) / (a + b + n), in (0, 1).
        low: of the interval with equal tails, in [0, 1).
        high: of the interval with equal tails, in (0, 1].
        above: P(mc > threshold), in [0, 1].
        level: probability that is inside the interval, in (0, 1).
    """

    correct: int
    total: int
    mean: float
    low: float
    high: float
    above: float
    level: float

    @property
    def side(self) -> bool | None:
        """True or False where mc is above or below the threshold with at least the level; None: not decided."""
        if max(self.above, 1.0 - self.above) < self.level:
            return None
        return self.above > 0.5


@lru_cache(maxsize=65_536)
def posterior(
    count: MonteCarloCount,
    *,
    threshold: float = THRESHOLD,
    level: float = LEVEL,
    prior: tuple[float, float] = UNIFORM,
) -> Posterior:
    """The posterior of one step's mc.

    Args:
        count: of draws from the end of the step.
        threshold: in (0, 1). At 0 nothing could be decided: no number of failures makes mc = 0 certain.
        level: in (0.5, 1).
        prior: a and b of the Beta prior, both above 0; (1, 1) is uniform, (½, ½) Jeffreys'.

    Returns:
        Mean, interval with equal tails, and P(mc > threshold).

    Raises:
        ConfigError: a number is outside its range.

    Example:
        >>> found = posterior(MonteCarloCount(0, 4))
        >>> round(found.mean, 4), round(found.high, 4), round(found.above, 5), found.side
        (0.1667, 0.5218, 0.03125, False)
        >>> [posterior(MonteCarloCount(k, 4)).side for k in range(5)]
        [False, None, None, None, True]
    """
    if not (0.0 < threshold < 1.0 and 0.5 < level < 1.0 and min(prior) > 0.0):
        raise ConfigError(
            "expected 0 < threshold < 1, 0.5 < level < 1 and a prior above 0, "
            f"got {threshold}, {level} and {prior[0]}, {prior[1]}"
        )
    a, b = prior[0] + count.correct, prior[1] + count.total - count.correct
    tail = (1.0 - level) / 2
    low, high, above = (float(x) for x in (beta.ppf(tail, a, b), beta.ppf(1.0 - tail, a, b), beta.sf(threshold, a, b)))
    return Posterior(count.correct, count.total, a / (a + b), low, high, above, level)


@dataclass(frozen=True)
class Decided:
    """How many of the steps that were continued are decided; the four add up to `steps`.

    Attributes:
        steps: all but the last step of each response. The last one is not continued: the verdict decides it.
        above: decided, mc is above the threshold.
        below: decided, mc is below it.
        open: drawn and not decided.
        not_drawn: without a count, or with one that was inferred from other steps.
    """

    steps: int
    above: int
    below: int
    open: int
    not_drawn: int

    def __str__(self) -> str:
        """In words, for a closing line."""
        if not self.steps:
            return "no step was continued"
        if self.not_drawn == self.steps:
            return f"none of {self.steps} continued steps has a posterior, since their counts are inferred"
        decided = self.above + self.below
        inferred = f", {self.not_drawn} without draws of their own" if self.not_drawn else ""
        return (
            f"{decided} of {self.steps} continued steps decided at {LEVEL:.0%} ({self.above} above mc {THRESHOLD:g}, "
            f"{self.below} below{inferred})"
        )


def decided_steps(rollouts: Iterable[Rollout]) -> Decided:
    """How many steps of labelled responses are decided at `LEVEL` and `THRESHOLD` under a uniform prior.

    Args:
        rollouts: with counts; those without are left out.

    Example:
        >>> from rewards.types import Completion
        >>> counts = tuple(MonteCarloCount(*pair) for pair in ((4, 4), (2, 4), (0, 4), (4, 4)))
        >>> str(decided_steps([Rollout(Completion("a"), mc=counts, label_source="mc:full:4")]))
        '2 of 3 continued steps decided at 95% (1 above mc 0.5, 1 below)'
    """
    above = below = still_open = not_drawn = 0
    for rollout in rollouts:
        for count in (rollout.mc or ())[:-1]:
            if count is None or not counts_were_drawn(rollout.label_source):
                not_drawn += 1
                continue
            side = posterior(count).side
            above, below, still_open = above + (side is True), below + (side is False), still_open + (side is None)
    return Decided(above + below + still_open + not_drawn, above, below, still_open, not_drawn)
