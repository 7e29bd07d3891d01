"""Whether reinforcement still makes a policy better, or only better paid: rules over a fixed set of problems.

A policy that is trained on one reward finds that reward's mistakes (arXiv 2210.10760), and with much reinforcement a
multimodal policy may stop looking at its images (Skywork R1V2, arXiv 2504.16656). So the same problems are looked at
again and again; each rule names one way in which a run goes wrong. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mpo.multimodal.errors import ConfigError
from rewards.choosing.round_guard import RoundMeasure, compare_rounds
from rewards.scoring.visual_dependence import visual_dependence
from rewards.types import Rollout, RolloutGroup

LEAST_REWARD = 1e-3  # below this mean no share of it means anything


@dataclass(frozen=True)
class Limits:
    """When a rule applies.

    Attributes:
        remaining: largest share of the reward that may remain without the right image, in [0, 1].
        repetition: largest share of responses that may repeat themselves, in [0, 1].
        drift: largest factor by which the mean length may change in either direction, at least 1.
        patience: looks in a row at which a rule must apply before training stops, at least 1.

    Raises:
        ConfigError: a number outside its range.
    """

    remaining: float = 0.95
    repetition: float = 0.5
    drift: float = 3.0
    patience: int = 2

    def __post_init__(self) -> None:
        if not (0 <= self.remaining <= 1 and 0 <= self.repetition <= 1 and self.drift >= 1 and self.patience >= 1):
            raise ConfigError(
                "expected remaining and repetition in [0, 1], drift >= 1 and patience >= 1, got "
                f"{self.remaining}, {self.repetition}, {self.drift} and {self.patience}"
            )


@dataclass(frozen=True)
class Look:
    """What one look at the fixed problems found. `None`: it could not be measured, and no rule speaks of it.

    Attributes:
        step: optimizer steps made.
        remaining: share of the PRM's reward that remains under a blank or another problem's image, the larger of both.
        dependence: mean `visual_dependence` of the responses, in [-1, 1].
        blind: accuracy (or PRM mean) of responses that the policy gives to a blank image, as a share of that with its
            own.
        repetition: share of responses that repeat themselves, in [0, 1].
        tokens: mean number of tokens per response.
        problem_ids, gold, reward: as in `RoundMeasure`, of the problems all whose responses could be checked and, with
            a PRM, scored. A check that timed out and a response that the PRM could not read say nothing of the policy.
    """

    step: int
    remaining: float | None = None
    dependence: float | None = None
    blind: float | None = None
    repetition: float = 0.0
    tokens: float = 0.0
    problem_ids: tuple[str, ...] = ()
    gold: tuple[float, ...] = ()
    reward: tuple[float, ...] = ()

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Look:
        """From a JSON object."""
        values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in kept.items()}
        return cls(**values)

    def numbers(self) -> dict[str, float]:
        """What is logged."""
        found = {name: getattr(self, name) for name in ("remaining", "dependence", "blind", "repetition", "tokens")}
        found |= {"accuracy": fmean(self.gold) if self.gold else None}
        found |= {"prm": fmean(self.reward) if self.reward else None}
        return {f"guard/{name}": float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Stop:
    """Why training ends: the step, the rule, and what was measured, in words."""

    step: int
    reason: str
    words: str


def remaining_share(groups: Sequence[RolloutGroup]) -> float | None:
    """The share of the reward that remains without the right image: Σ min(r, r′) / Σ r over the responses.

    r′ is the reward under a blank image or another problem's; the larger of the two shares counts. What a response
    gains under another image makes up for nothing that another response loses, so a PRM that looks is told from one
    that does not even on responses that have nothing to do with their images.

    Args:
        groups: scored, and scored again by `score_unseen` with both other images.

    Returns:
        In [0, 1], 1 for a PRM that does not look; `None` if no response has both rewards, or their mean is near 0.

    Example:
        >>> from rewards.types import Completion, Problem, StepScores, Unseen
        >>> blank, swapped = Unseen(StepScores((0.25,)), 0.25), Unseen(StepScores((0.5,)), 0.5)
        >>> one = Rollout(Completion("7"), step_scores=StepScores((1.0,)), reward=1.0, blank=blank, swapped=swapped)
        >>> remaining_share([RolloutGroup(Problem("p", "?"), (one,))])
        0.5
    """
    shares = [_share(groups, field) for field in ("blank", "swapped")]
    return max((share for share in shares if share is not None), default=None)


def mean_dependence(groups: Sequence[RolloutGroup]) -> float | None:
    """Mean `visual_dependence` of the responses that have one."""
    found = [value for group in groups for one in group.rollouts if (value := visual_dependence(one)) is not None]
    return fmean(found) if found else None


def stop_reason(looks: Sequence[Look], limits: Limits) -> Stop | None:
    """The first rule of `RULES` that applies at each of the last `patience` looks.

    Args:
        looks: in order, the first of them from before the first step.
        limits: when a rule applies.

    Example:
        >>> looks = [Look(0, remaining=1.0, tokens=9.0), Look(5, remaining=0.99, tokens=9.0)]
        >>> stop_reason(looks, Limits())
        Stop(step=5, reason='image_blind_reward', words="99 % of the PRM's reward remains without the right image")
        >>> stop_reason(looks, Limits(patience=3)) is None
        True
    """
    if len(looks) < limits.patience:
        return None
    for reason, rule in RULES.items():
        words = [rule(looks[0], look, limits) for look in looks[-limits.patience :]]
        if all(words):
            return Stop(looks[-1].step, reason, str(words[-1]))
    return None


def _image_blind_reward(first: Look, now: Look, limits: Limits) -> str | None:
    if now.remaining is None or now.remaining < limits.remaining:
        return None
    return f"{now.remaining:.0%} of the PRM's reward remains without the right image".replace("%", " %")


def _image_blind_policy(first: Look, now: Look, limits: Limits) -> str | None:
    """The policy looked at the start and no longer does."""
    if now.blind is None or first.blind is None or not first.blind < limits.remaining <= now.blind:
        return None
    return (
        f"responses to a blank image do {100 * now.blind:.0f} % as well as those to the right one, "
        f"{100 * first.blind:.0f} % at the start"
    )


def _repetition(first: Look, now: Look, limits: Limits) -> str | None:
    if now.repetition <= max(limits.repetition, first.repetition):
        return None
    return (
        f"{100 * now.repetition:.0f} % of the responses repeat themselves, {100 * first.repetition:.0f} % at the start"
    )


def _length_drift(first: Look, now: Look, limits: Limits) -> str | None:
    before, after = max(1.0, first.tokens), max(1.0, now.tokens)
    if max(after / before, before / after) <= limits.drift:
        return None
    return f"responses have {now.tokens:.0f} tokens, {first.tokens:.0f} at the start"


def _reward_up_accuracy_down(first: Look, now: Look, limits: Limits) -> str | None:
    """The rule of `mpo rounds`, against the policy at the start and only beyond the intervals' noise.

    Without a PRM there is nothing to compare; with one, the problems that were measured at both looks are compared.
    """
    both = set(first.problem_ids) & set(now.problem_ids)
    if not both or not first.reward or not now.reward or first is now:
        return None
    change = compare_rounds(_measured(first, both), _measured(now, both))
    if not (change.over_optimised and change.beyond_noise):
        return None
    return (
        f"the accuracy fell by {-100 * change.gold.mean:.0f} points while the PRM's mean rose by "
        f"{100 * change.reward.mean:.0f}"
    )


def _measured(look: Look, ids: Collection[str]) -> RoundMeasure:
    """What a look found of these problems."""
    found = [one for one in zip(look.problem_ids, look.gold, look.reward, strict=True) if one[0] in ids]
    names, gold, reward = zip(*found, strict=True)
    return RoundMeasure(names, gold, reward)


RULES: dict[str, Callable[[Look, Look, Limits], str | None]] = {
    "image_blind_reward": _image_blind_reward,
    "image_blind_policy": _image_blind_policy,
    "repetition": _repetition,
    "length_drift": _length_drift,
    "reward_up_accuracy_down": _reward_up_accuracy_down,
}


def _share(groups: Sequence[RolloutGroup], field: str) -> float | None:
    pairs = [(one.reward, other) for group in groups for one in group.rollouts
             if one.reward is not None and (other := _unseen(one, field)) is not None]  # fmt: skip
    if not pairs or fmean(own for own, _ in pairs) < LEAST_REWARD:
        return None
    return sum(min(own, other) for own, other in pairs) / sum(own for own, _ in pairs)


def _unseen(rollout: Rollout, field: str) -> float | None:
    found = getattr(rollout, field)
    return None if found is None else found.reward
