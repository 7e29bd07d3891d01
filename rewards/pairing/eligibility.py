"""Which rollouts may stand on which side of a preference pair, and the pair of two of them.

Everything that no pair may ever contain is kept out here, once, for all rules: a truncated or unverified response as
chosen, a response whose verifier failed, an empty side, a text that already stands for its problem. Only rollouts
become sides, so a reference text never does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rewards.pairing.limits import Limits
from rewards.scoring.visual_dependence import visual_dependence
from rewards.types import FinishReason, PreferencePair, Rollout, RolloutGroup, Verdict

Sides = tuple[int, int]  # indexes of chosen and rejected


@dataclass(frozen=True)
class Eligible:
    """Indexes into a group: verified right, verified wrong, without a final answer; and why the others are on no side.

    The four account for all N rollouts.
    """

    right: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    unparsable: list[int] = field(default_factory=list)
    rejects: Counter[str] = field(default_factory=Counter)

    @property
    def all(self) -> list[int]:
        """Every eligible index, in order."""
        return sorted([*self.right, *self.wrong, *self.unparsable])


def eligible(group: RolloutGroup, limits: Limits, *, need_reward: bool = False) -> Eligible:
    """Sort a group's rollouts.

    Args:
        group: rollouts with verdicts.
        limits: `format_negatives` and `min_visual_dependence` are read.
        need_reward: a rollout without reward is a reject.
    """
    found = Eligible()
    seen: set[str] = set()
    for index, rollout in enumerate(group.rollouts):
        text, correct = rollout.completion.text.strip(), rollout.verdict is Verdict.CORRECT
        if rollout.verdict is None:
            found.rejects["no_verdict"] += 1
        elif rollout.verdict in (Verdict.TIMEOUT, Verdict.ERROR):
            found.rejects[f"verifier_{rollout.verdict.value}"] += 1
        elif not text:
            found.rejects["empty"] += 1
        elif correct and rollout.completion.finish_reason is FinishReason.LENGTH:
            found.rejects["truncated_right"] += 1
        elif rollout.verdict is Verdict.UNPARSABLE and not limits.format_negatives:
            found.rejects["unparsable"] += 1
        elif need_reward and rollout.reward is None:
            found.rejects["no_reward"] += 1
        elif correct and (blind := _blind(rollout, limits.min_visual_dependence)):
            found.rejects[blind] += 1
        elif text in seen:
            found.rejects["duplicate_text"] += 1
        else:
            seen.add(text)
            side = {Verdict.CORRECT: found.right, Verdict.WRONG: found.wrong}.get(rollout.verdict, found.unparsable)
            side.append(index)
    return found


def _blind(rollout: Rollout, least: float | None) -> str | None:
    """Why a right response may not be chosen for want of visual dependence, or `None`."""
    if least is None:
        return None
    value = visual_dependence(rollout)
    return "no_visual_dependence" if value is None else "low_visual_dependence" if value < least else None


def within_length(group: RolloutGroup, sides: Sides, limits: Limits) -> bool:
    """Whether the texts of two rollouts are as alike in length as the limits ask."""
    chosen, rejected = (group.rollouts[index].completion.text for index in sides)
    return limits.length_fits(chosen, rejected)


def without_partner(indexes: Iterable[int], candidates: Iterable[Sides]) -> int:
    """How many of the indexes stand in no candidate."""
    return len(set(indexes) - {index for sides in candidates for index in sides})


def pair_of(group: RolloutGroup, sides: Sides, *, source: str, **meta: Any) -> PreferencePair:
    """The pair of two rollouts, with their indexes, rewards and visual dependence as provenance."""
    chosen, rejected = (group.rollouts[index] for index in sides)
    provenance = {
        "chosen_index": sides[0],
        "rejected_index": sides[1],
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "rejected_verdict": rejected.verdict.value if rejected.verdict else None,
        "chosen_dependence": visual_dependence(chosen),
        "rejected_dependence": visual_dependence(rejected),
    }
    return PreferencePair(group.problem, chosen.completion, rejected.completion, source, {**provenance, **meta})
