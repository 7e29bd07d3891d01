"""Which rollouts may take which side of a preference pair, and the pair of two of them.

Everything that no pair may ever contain is kept out here, once, for all rules: a truncated or unverified response as
chosen, a response that could not be read or checked, an empty side, a text that its problem already has. A miss
of the verifier is no proof against a response, so it is on no side. Only rollouts become sides, so a reference text
never does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from rewards.pairing.limits import Limits
from rewards.pairing.spans import BadStep
from rewards.scoring.visual_dependence import visual_dependence
from rewards.types import FinishReason, PreferencePair, Rollout, RolloutGroup, Verdict
from rewards.verifying.reading import Kind, Missing, find_answer

Sides = tuple[int, int]  # indexes of chosen and rejected


@dataclass(frozen=True)
class Eligible:
    """Indexes into a group: verified right, verified wrong, stating no answer; and why the others are on no side.

    The four account for all N rollouts.
    """

    right: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    silent: list[int] = field(default_factory=list)
    rejects: Counter[str] = field(default_factory=Counter)

    @property
    def all(self) -> list[int]:
        """Every eligible index, in order."""
        return sorted([*self.right, *self.wrong, *self.silent])


def eligible(group: RolloutGroup, limits: Limits, *, need_reward: bool = False) -> Eligible:
    """Sort a group's rollouts.

    Args:
        group: rollouts with verdicts.
        limits: all that a single response must keep to is read.
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
        elif rollout.verdict is Verdict.UNPARSABLE and not states_no_answer(text):
            found.rejects["unreadable_answer"] += 1
        elif rollout.is_disputed:
            found.rejects["disputed_verdict"] += 1
        elif need_reward and rollout.reward is None:
            found.rejects["no_reward"] += 1
        elif correct and (blind := _blind(rollout, limits.min_visual_dependence)):
            found.rejects[blind] += 1
        elif correct and (doubtful := _doubtful(rollout, limits.min_step_score)):
            found.rejects[doubtful] += 1
        elif not correct and isinstance(nowhere := limits.rejected_span.of(rollout), str):
            found.rejects[nowhere] += 1
        elif text in seen:
            found.rejects["duplicate_text"] += 1
        else:
            seen.add(text)
            side = {Verdict.CORRECT: found.right, Verdict.WRONG: found.wrong}.get(rollout.verdict, found.silent)
            side.append(index)
    return found


def without_second_opinion(group: RolloutGroup) -> RolloutGroup:
    """The group as its first verifier sees it: what another one says against it is forgotten."""
    return replace(group, rollouts=tuple(rollout.with_(second_verdict=None) for rollout in group.rollouts))


def states_no_answer(text: str) -> bool:
    r"""Whether a response truly states no final answer: the reader finds none, of whatever kind it looks for.

    A response that states two answers that differ, or one that its verifier cannot read, states something.

    Example:
        >>> states_no_answer("I look again.\n\nI cannot tell."), states_no_answer("So there are 7 apples.")
        (True, False)
    """
    found = [find_answer(text, want) for want in (None, Kind.LETTER, Kind.NUMBER, Kind.MATH)]
    return all(isinstance(one, Missing) and one is not Missing.CONTRADICTORY for one in found)


def _blind(rollout: Rollout, least: float | None) -> str | None:
    """Why a right response may not be chosen for want of visual dependence, or `None`."""
    if least is None:
        return None
    value = visual_dependence(rollout)
    return "no_visual_dependence" if value is None else "low_visual_dependence" if value < least else None


def _doubtful(rollout: Rollout, least: float) -> str | None:
    """Why the steps of a right response speak against choosing it, or `None`."""
    if least == 0.0:
        return None
    if rollout.step_scores is None:
        return "no_step_scores"
    return "low_step_score" if min(rollout.step_scores.values) < least else None


def within_length(group: RolloutGroup, sides: Sides, limits: Limits) -> bool:
    """Whether the texts of two rollouts are as alike in length as the limits ask."""
    chosen, rejected = (group.rollouts[index].completion.text for index in sides)
    return limits.length_fits(chosen, rejected)


def without_partner(indexes: Iterable[int], candidates: Iterable[Sides]) -> int:
    """How many of the indexes are in no candidate pair."""
    return len(set(indexes) - {index for sides in candidates for index in sides})


def pair_of(group: RolloutGroup, sides: Sides, limits: Limits, *, source: str, **meta: Any) -> PreferencePair:
    """The pair of two rollouts and the part of the rejected one that counts; indexes, rewards, lowest step scores and
    visual dependence are its provenance.
    """
    chosen, rejected = (group.rollouts[index] for index in sides)
    span = limits.rejected_span.of(rejected)
    assert not isinstance(span, str), span  # such a response is on no side
    bad = limits.rejected_span.bad_step(rejected) if span else None
    provenance = {
        "chosen_index": sides[0],
        "rejected_index": sides[1],
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "chosen_lowest": _lowest(chosen),
        "rejected_lowest": _lowest(rejected),
        **({"bad_step": bad.step.index, "bad_step_is_lowest": bad.is_lowest} if isinstance(bad, BadStep) else {}),
        "rejected_verdict": rejected.verdict.value if rejected.verdict else None,
        "chosen_dependence": visual_dependence(chosen),
        "rejected_dependence": visual_dependence(rejected),
    }
    given = {**provenance, **meta}
    return PreferencePair(group.problem, chosen.completion, rejected.completion, source, given, rejected_span=span)


def _lowest(rollout: Rollout) -> float | None:
    return min(rollout.step_scores.values) if rollout.step_scores else None
