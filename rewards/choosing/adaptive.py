"""Adaptive N: draw samples in waves, and stop when more of them would hardly change the final answer.

Of at most N samples n are drawn and m = N − n are left. A rule gives the posterior probability that the choice among
all N has another final answer than the choice now; drawing stops where it is at most `error`.

- Votes: all m votes go to the two leading answers, to each with probability ½, and the runner-up overtakes if
  v₂ + X ≥ v₁ + (m − X), X ~ Binomial(m, ½). The flat prior of Adaptive-Consistency (arXiv 2305.11860) stops earlier,
  but too early where two answers are about as frequent as each other.
- PRM, by reward or by its lower bound: a later sample must have the highest one of all N, which has probability m / N
  for exchangeable samples, whatever number of its own each is ranked by, and
  another answer. How often that is, is read off the better half of the samples: t of them, of which d disagree with
  the best one, which is no observation of itself. One more that disagrees is assumed: (d + 1) / t.

Both are pessimistic because a rule that looks often stops at the luckiest look. On problems of many kinds another
answer than with all N is not found more often than `error` (`tests/rewards/choosing/test_adaptive.py`), for levels of
0.05 to 0.2 and any wave; `replay` measures on stored groups what it costs and saves.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from scipy.special import bdtrc

from mpo.multimodal.errors import ConfigError
from rewards.choosing.curves import ranking
from rewards.choosing.lower_bound import BOUND, LowerBound
from rewards.choosing.selection import CHOICES, GroupSelector, best_bound
from rewards.choosing.votes import BY_REWARD, WEIGHTED_VOTES, VoteWeight
from rewards.statistics import mean_with_interval, paired_difference
from rewards.types import Rollout, RolloutGroup, correctness_of
from rewards.verifying.equality_classes import votes_of, with_votes

ERROR = 0.05


def _reward(rollout: Rollout) -> float | None:
    return rollout.reward


def vote_may_change(group: RolloutGroup, remaining: int) -> float:
    """Probability that `remaining` more samples change the majority's answer; 1 while nobody votes."""
    return _overtaking(group, remaining, weights=[1.0] * len(group.rollouts))


def weighted_vote_may_change(group: RolloutGroup, remaining: int, *, weight: VoteWeight = BY_REWARD) -> float:
    """The same for a weighted vote, in units of the mean weight; an unscored rollout has no weight."""
    return _overtaking(group, remaining, weights=[weight.of(rollout) for rollout in group.rollouts])


def best_may_change(
    group: RolloutGroup, remaining: int, *, value_of: Callable[[Rollout], float | None] = _reward
) -> float:
    """Probability that a later sample is the PRM's choice and has another final answer; 1 while none is scored.

    Args:
        group: the samples so far.
        remaining: samples that are left, at least 0.
        value_of: what a sample is ranked by, such as `LowerBound.of`; one without the value is never chosen.

    Example:
        >>> from rewards.types import Completion, Problem, Rollout
        >>> rollouts = [Rollout(Completion("Final answer: 7"), reward=r) for r in (0.9, 0.8, 0.3, 0.1)]
        >>> group = RolloutGroup(Problem("p", "?"), tuple(rollouts))
        >>> best_may_change(group, 4)  # (0 + 1) / 2 · 4 / 8
        0.25
    """
    votes = zip(group.rollouts, votes_of(group), strict=True)
    scored = [(value, vote) for rollout, vote in votes if (value := value_of(rollout)) is not None]
    if not scored or remaining == 0:
        return float(remaining > 0)
    order = ranking([value for value, _ in scored])
    best, *others = (scored[index][1] for index in order[: math.ceil(len(scored) / 2)])
    disagree = sum(answer != best for answer in others)
    return (disagree + 1) / (len(others) + 1) * remaining / (len(scored) + remaining)


MayChange = Callable[[RolloutGroup, int], float]
MAY_CHANGE: dict[str, MayChange] = {
    "prm": best_may_change,
    "lower_bound": partial(best_may_change, value_of=BOUND.of),
    **{name: partial(weighted_vote_may_change, weight=weight) for name, weight in WEIGHTED_VOTES.items()},
    "majority": vote_may_change,
}


def looks(n: int, wave: int) -> Iterator[int]:
    """Numbers of samples at which to ask whether more are needed: wave, 2·wave, … and n.

    Raises:
        ConfigError: n or `wave` is below 1.

    Example:
        >>> list(looks(7, 3))
        [3, 6, 7]
    """
    if n < 1 or wave < 1:
        raise ConfigError(f"expected at least one sample and at least one per wave, got n={n} and wave={wave}")
    yield from range(wave, n, wave)
    yield n


def check_stopping(selector: str, error: float) -> None:
    """Raise ConfigError for a selector without a stopping rule, or an error outside (0, 1)."""
    if selector not in MAY_CHANGE or not 0 < error < 1:
        raise ConfigError(
            f"adaptive N needs a selector of {', '.join(MAY_CHANGE)} and an error in (0, 1), got {selector!r}, {error}"
        )


@dataclass(frozen=True)
class Replay:
    """What adaptive N does on stored groups, one value per problem (mean over orders), beside all n samples.

    Attributes:
        n: largest number of samples.
        samples, tokens: drawn on average; tokens are 0 where a generator did not count them.
        fixed_tokens: of all n samples.
        accuracy, fixed_accuracy: of the adaptive choice and of the choice among all n, in the same orders.
        changed: how often the two have different final answers: what `error` promises at most.
    """

    n: int
    samples: tuple[float, ...]
    tokens: tuple[float, ...]
    fixed_tokens: tuple[float, ...]
    accuracy: tuple[float, ...]
    fixed_accuracy: tuple[float, ...]
    changed: tuple[float, ...]

    def summary(self, *, resamples: int = 2000) -> dict[str, Any]:
        """Means with intervals over problems, the paired difference in accuracy, and the shares saved."""
        names = ("samples", "accuracy", "fixed_accuracy", "changed")
        tokens = math.fsum(self.fixed_tokens)
        return {
            "n": self.n,
            **{
                name: asdict(
                    mean_with_interval(
                        getattr(self, name), resamples=resamples, bounds=(0, self.n if name == "samples" else 1)
                    )
                )
                for name in names
            },
            "difference": asdict(paired_difference(self.accuracy, self.fixed_accuracy)),
            "samples_saved": 1 - math.fsum(self.samples) / (self.n * len(self.samples)),
            "tokens_saved": 1 - math.fsum(self.tokens) / tokens if tokens else None,
        }


def replay(
    groups: Iterable[RolloutGroup],
    n: int,
    *,
    selector: str = "prm",
    error: float = ERROR,
    wave: int = 2,
    orders: int = 8,
    seed: int = 0,
    bound: LowerBound = BOUND,
) -> Replay:
    """Answer every problem as if its samples came one by one, in random orders.

    Args:
        groups: verified groups of at least n rollouts, scored unless `selector` is "majority", with spreads for
            "lower_bound".
        n: largest number of samples.
        selector: a row of `rewards.choosing.selection.CHOICES`.
        error: probability of another final answer at which to stop, in (0, 1).
        wave: samples between two looks.
        orders: random orders per problem.
        seed: of the orders.
        bound: of the selector "lower_bound".

    Raises:
        ConfigError: a group has fewer than n rollouts, or an argument is outside its range.
        DataError: a rollout has not been verified.
    """
    replaying = Replaying(n, selector=selector, error=error, wave=wave, orders=orders, seed=seed, bound=bound)
    for group in groups:
        replaying.add(group)
    return replaying.result()


class Replaying:
    """`replay` for groups that come one by one; arguments and errors are its own.

    Example:
        >>> from rewards.types import Completion, Problem, Rollout, Verdict
        >>> replaying = Replaying(2, selector="majority", orders=1)
        >>> rollouts = [Rollout(Completion("Final answer: 7"), Verdict.CORRECT)] * 2
        >>> replaying.add(RolloutGroup(Problem("p", "?"), tuple(rollouts)))
        >>> replaying.result().fixed_accuracy
        (1.0,)
    """

    def __init__(
        self,
        n: int,
        *,
        selector: str = "prm",
        error: float = ERROR,
        wave: int = 2,
        orders: int = 8,
        seed: int = 0,
        bound: LowerBound = BOUND,
    ) -> None:
        check_stopping(selector, error)
        self.n, self.error, self.wave, self.orders = n, error, wave, orders
        self._fault = f"expected orders >= 1 and groups of at least n={n} rollouts; got orders={orders}"
        if orders < 1:
            raise ConfigError(self._fault)
        self._rng = np.random.default_rng(seed)
        self._choose, self._may_change = CHOICES[selector], MAY_CHANGE[selector]
        if selector == "lower_bound":
            self._choose, self._may_change = (
                partial(best_bound, bound=bound),
                partial(best_may_change, value_of=bound.of),
            )
        self._rows: list[array[float]] = []

    def add(self, group: RolloutGroup) -> None:
        """Replay one problem."""
        group = with_votes(group)
        if len(group.rollouts) < self.n:
            raise ConfigError(self._fault)
        permutations = [self._rng.permutation(len(group.rollouts))[: self.n].tolist() for _ in range(self.orders)]
        outcomes = [
            _one_order(group, order, self._choose, self._may_change, self.error, self.wave) for order in permutations
        ]
        self._rows.append(array("d", np.mean(outcomes, axis=0)))

    def result(self) -> Replay:
        """What the problems gave so far, at least one."""
        return Replay(self.n, *(tuple(column) for column in zip(*self._rows, strict=True)))


def _one_order(
    group: RolloutGroup,
    order: Sequence[int],
    choose: GroupSelector,
    may_change: MayChange,
    error: float,
    wave: int,
) -> tuple[float, ...]:
    """The fields of `Replay` after `n`, for one order of one problem."""
    correct = correctness_of(group)
    tokens = [group.rollouts[index].completion.num_tokens for index in order]
    drawn = group
    for count in looks(len(order), wave):
        drawn = RolloutGroup(group.problem, tuple(group.rollouts[index] for index in order[:count]))
        if may_change(drawn, len(order) - count) <= error:
            break
    count = len(drawn.rollouts)
    whole = RolloutGroup(group.problem, tuple(group.rollouts[index] for index in order))
    here, there = (order[choose(some)] for some in (drawn, whole))
    votes = votes_of(group)
    answer, fixed_answer = votes[here], votes[there]
    sums = (count, sum(tokens[:count]), sum(tokens))
    return (*map(float, sums), float(correct[here]), float(correct[there]), float(answer != fixed_answer))


def _overtaking(group: RolloutGroup, remaining: int, *, weights: Sequence[float]) -> float:
    totals: defaultdict[int, float] = defaultdict(float)
    for vote, weight in zip(votes_of(group), weights, strict=True):
        if vote is not None:
            totals[vote] += weight
    unit = math.fsum(weights) / max(1, sum(weight > 0 for weight in weights))
    if remaining == 0 or not totals or unit <= 0:
        return float(remaining > 0)
    leader, second = sorted([*(total / unit for total in totals.values()), 0.0], reverse=True)[:2]
    return _overtakes(round(leader, 3), round(second, 3), remaining)


@lru_cache(maxsize=65_536)
def _overtakes(leader: float, second: float, remaining: int) -> float:
    """P(second + X ≥ leader + remaining − X), X ~ Binomial(remaining, ½): votes of the runner-up."""
    return float(bdtrc(math.ceil((leader - second + remaining) / 2) - 1, remaining, 0.5))
