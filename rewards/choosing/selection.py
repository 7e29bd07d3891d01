"""A group of rollouts → the index of the one to answer with.

Every selector has the same signature `(group) -> int`. Votes count meanings, not spellings: rollouts vote for the class
of their answer (`rewards/verifying/equality_classes.py`). How accurate a selector is among k samples, beside blind
rulers and the oracle, is computed in `rewards/choosing/evaluation.py`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from mpo.multimodal.errors import DataError
from rewards.choosing.lower_bound import BOUND, LowerBound
from rewards.choosing.votes import BY_REWARD, WEIGHTED_VOTES, VoteWeight
from rewards.types import RolloutGroup
from rewards.verifying.equality_classes import votes_of

GroupSelector = Callable[[RolloutGroup], int]


def best_of_n(group: RolloutGroup) -> int:
    """The rollout with the highest reward; ties go to the lowest index.

    Args:
        group: at least one rollout, each with a finite reward.

    Raises:
        DataError: the group is empty, or a rollout has no finite reward.

    Example:
        >>> from rewards.types import Completion, Problem, Rollout
        >>> rollouts = tuple(Rollout(Completion("…"), reward=r) for r in (0.2, 0.9, 0.9))
        >>> best_of_n(RolloutGroup(Problem("p", "?"), rollouts))
        1
    """
    rewards = rewards_of(group)
    return rewards.index(max(rewards))


def majority(group: RolloutGroup) -> int:
    """The most frequent final answer (self-consistency, arXiv 2203.11171); returns its first rollout.

    Args:
        group: at least one rollout; what its verifier cannot read does not vote (`votes_of`).

    Returns:
        Ties go to the answer that appeared first; index 0 when nobody votes.
    """
    return _vote(group, weights=[1.0] * _size(group))


def weighted_vote(group: RolloutGroup) -> int:
    """The final answer with the largest sum of rewards (arXiv 2206.02336); otherwise as `majority`.

    Raises:
        DataError: the group is empty, or a rollout has no finite reward.
    """
    return _vote(group, weights=rewards_of(group))


def scored_only(select: GroupSelector) -> GroupSelector:
    """The selector among the rollouts that have a reward; index 0 where none has one.

    A PRM cannot read every response (an empty one, one with control tokens). Here such a response is never chosen.

    Example:
        >>> from rewards.types import Completion, Problem, Rollout
        >>> rollouts = tuple(Rollout(Completion("…"), reward=r) for r in (None, 0.2, 0.9))
        >>> scored_only(best_of_n)(RolloutGroup(Problem("p", "?"), rollouts))
        2
    """

    def select_scored(group: RolloutGroup) -> int:
        scored = [index for index in range(_size(group)) if group.rollouts[index].reward is not None]
        if not scored:
            return 0
        return scored[select(RolloutGroup(group.problem, tuple(group.rollouts[i] for i in scored)))]

    return select_scored


def vote_of_scored(group: RolloutGroup, *, weight: VoteWeight = BY_REWARD) -> int:
    """As `weighted_vote`, with a weight of your own; a rollout without scores has weight 0."""
    _size(group)
    return _vote(group, weights=[weight.of(rollout) for rollout in group.rollouts])


def best_bound(group: RolloutGroup, *, bound: LowerBound = BOUND) -> int:
    """The rollout with the highest lower bound; ties go to the lowest index, and index 0 where none has one.

    Args:
        group: at least one rollout; those without spreads have no lower bound and are not chosen beside others.
        bound: the aggregation and z.

    Raises:
        DataError: the group is empty.

    Example:
        >>> from rewards.types import Completion, Problem, Rollout, StepScores
        >>> made = [((0.9,), (0.3,)), ((0.8,), (0.1,))]
        >>> rollouts = [Rollout(Completion("…"), step_scores=StepScores(s, spreads=d), reward=s[0]) for s, d in made]
        >>> best_bound(RolloutGroup(Problem("p", "?"), tuple(rollouts)))
        1
    """
    _size(group)
    found = [
        (value, -index) for index, rollout in enumerate(group.rollouts) if (value := bound.of(rollout)) is not None
    ]
    return -max(found)[1] if found else 0


# How a question is answered at test time, by the names that `mpo best-of-n` uses; needs no reference answer.
CHOICES: dict[str, GroupSelector] = {
    "prm": scored_only(best_of_n),
    "lower_bound": best_bound,  # of a PRM that tells spreads
    **{name: partial(vote_of_scored, weight=weight) for name, weight in WEIGHTED_VOTES.items()},
    "majority": majority,
}


def rewards_of(group: RolloutGroup) -> list[float]:
    """The rewards of a group in sampling order.

    Raises:
        DataError: the group is empty, or a reward is missing or not finite.
    """
    _size(group)
    rewards: list[float] = []
    for index, rollout in enumerate(group.rollouts):
        if rollout.reward is None or not math.isfinite(rollout.reward):
            raise DataError(
                f"rollout {index} of problem {group.problem.id!r} has reward {rollout.reward}: "
                "expected a finite number; score the group first"
            )
        rewards.append(rollout.reward)
    return rewards


def _size(group: RolloutGroup) -> int:
    if not group.rollouts:
        raise DataError(f"problem {group.problem.id!r} has no rollouts: expected at least one to select from")
    return len(group.rollouts)


def _vote(group: RolloutGroup, *, weights: list[float]) -> int:
    ballots: defaultdict[int, list[int]] = defaultdict(list)  # insertion order = order of first appearance
    for index, vote in enumerate(votes_of(group)):
        if vote is not None:
            ballots[vote].append(index)
    if not ballots:
        return 0
    return max(ballots.values(), key=lambda voters: math.fsum(weights[i] for i in voters))[0]
