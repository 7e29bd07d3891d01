"""How much a sample's vote weighs: its step scores in one number, apart from the aggregation that ranks.

The mean over steps ranks well (VisualPRM, arXiv 2503.10291, Table 4), but as a weight it is nearly the same for every
response, and a vote weighted by it is a plain vote. A product or a minimum tells a response with one bad step apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpo.multimodal.errors import ConfigError
from rewards.scoring.aggregation import AGGREGATIONS
from rewards.types import Rollout

REWARD = "reward"


@dataclass(frozen=True)
class VoteWeight:
    """weight = aggregation(step scores) ^ power.

    Attributes:
        how: "reward", the rollout's own, however it was aggregated; or a name of
            `rewards.scoring.aggregation.AGGREGATIONS`: prod, min, mean, …
        power: above 0; a larger one trusts the PRM more and the number of votes less.

    Raises:
        ConfigError: an unknown aggregation, or a power that is not above 0.

    Example:
        >>> from rewards.types import Completion, StepScores
        >>> rollout = Rollout(Completion("…"), step_scores=StepScores((1.0, 0.5, 0.5)), reward=0.67)
        >>> VoteWeight().of(rollout), VoteWeight("prod").of(rollout), VoteWeight("min", 2).of(rollout)
        (0.67, 0.25, 0.25)
    """

    how: str = REWARD
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.how not in (REWARD, *AGGREGATIONS):
            raise ConfigError(
                f"unknown vote_weight {self.how!r}: expected {REWARD} or one of {', '.join(AGGREGATIONS)}"
            )
        if not 0.0 < self.power < float("inf"):
            raise ConfigError(f"vote_power must be above 0, got {self.power}")

    def of(self, rollout: Rollout) -> float:
        """The weight, 0 for a rollout that the PRM could not read."""
        if self.how == REWARD:
            return (rollout.reward or 0.0) ** self.power
        return AGGREGATIONS[self.how](rollout.step_scores) ** self.power if rollout.step_scores else 0.0


BY_REWARD = VoteWeight()
# selector → weight of its votes; every one of them is a row of the best-of-N tables and a choice of `mpo answer`
WEIGHTED_VOTES: dict[str, VoteWeight] = {
    "weighted_vote": BY_REWARD,
    "vote_prod": VoteWeight("prod"),
    "vote_min": VoteWeight("min"),
    "vote_min_4": VoteWeight("min", 4.0),
}
