"""Whether another round of optimising a policy against a PRM made it better, or only better liked.

A policy that is trained again and again on what one PRM prefers finds that PRM's mistakes: the mean reward keeps
rising after the true accuracy has begun to fall (arXiv 2210.10760). So each round is measured on held-out problems by
both: the verifier, which judges the answer alone (gold), and the PRM. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpo.multimodal.errors import DataError
from rewards.statistics import Difference, Estimate, mean_with_interval, paired_difference
from rewards.types import RolloutGroup, correctness_of


@dataclass(frozen=True)
class RoundMeasure:
    """One policy on the guard's problems, a value per problem, in their order.

    Attributes:
        problem_ids: of the problems.
        gold: share of verified-right responses, in [0, 1].
        reward: the PRM's mean reward, in [0, 1]; a response that it could not read counts 0.
    """

    problem_ids: tuple[str, ...]
    gold: tuple[float, ...]
    reward: tuple[float, ...]

    def estimates(self) -> tuple[Estimate, Estimate]:
        """Gold accuracy and mean reward, with intervals over problems."""
        return mean_with_interval(self.gold), mean_with_interval(self.reward)


@dataclass(frozen=True)
class RoundChange:
    """This round minus the round before, over the same problems.

    Attributes:
        gold: of the verified accuracy.
        reward: of the PRM's mean reward.
    """

    gold: Difference
    reward: Difference

    @property
    def over_optimised(self) -> bool:
        """The accuracy fell while the PRM's mean rose. The means decide, because one round too few costs little."""
        return self.gold.mean < 0 < self.reward.mean

    @property
    def beyond_noise(self) -> bool:
        """Whether both changes are shown, by interval and test."""
        return self.gold.verdict == "reversed" and self.reward.verdict == "holds"


def measure_round(groups: Sequence[RolloutGroup]) -> RoundMeasure:
    """What a policy's verified and scored samples show.

    Raises:
        DataError: no groups, or a rollout without verdict.

    Example:
        >>> from rewards.types import Completion, Problem, Rollout, Verdict
        >>> rollouts = (Rollout(Completion("7"), Verdict.CORRECT, reward=0.5), Rollout(Completion("8"), Verdict.WRONG))
        >>> measure_round([RolloutGroup(Problem("p", "?"), rollouts)])
        RoundMeasure(problem_ids=('p',), gold=(0.5,), reward=(0.25,))
    """
    if not groups:
        raise DataError("a round cannot be measured without problems: got none")
    gold = tuple(sum(correct) / len(correct) for correct in map(correctness_of, groups))
    reward = tuple(sum(rollout.reward or 0.0 for rollout in g.rollouts) / len(g.rollouts) for g in groups)
    return RoundMeasure(tuple(group.problem.id for group in groups), gold, reward)


def compare_rounds(before: RoundMeasure, now: RoundMeasure) -> RoundChange:
    """Paired differences over the guard's problems.

    Raises:
        DataError: the two were not measured on the same problems.

    Example:
        >>> before = RoundMeasure(("a", "b"), gold=(0.5, 0.5), reward=(0.5, 0.5))
        >>> compare_rounds(before, RoundMeasure(("a", "b"), gold=(0.25, 0.25), reward=(0.75, 0.75))).over_optimised
        True
    """
    if before.problem_ids != now.problem_ids:
        raise DataError("two rounds are compared on the same problems in the same order; these differ")
    return RoundChange(paired_difference(now.gold, before.gold), paired_difference(now.reward, before.reward))
