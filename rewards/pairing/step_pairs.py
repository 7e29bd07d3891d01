"""Step pairs: two responses that agree up to the first bad step of one of them, and part there.

The idea is Step-DPO's (arXiv 2406.18629): the preference is about one step, not about a whole response. The bad step
is found by Monte-Carlo counts instead of a judge: the first step from whose end no continuation reached the answer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from rewards.pairing.eligibility import Sides, eligible, pair_of, within_length, without_partner
from rewards.pairing.limits import Limits
from rewards.steps import split_on_blank_lines
from rewards.types import PreferencePair, Rollout, RolloutGroup


def step_prefix(
    group: RolloutGroup, limits: Limits, *, threshold: float = 0.0
) -> tuple[list[PreferencePair], Counter[str]]:
    """A verified-wrong response against a verified-right one that shares its text up to its first bad step.

    The right one may be another sample or, where the continuations of a labelled step were kept, prefix ⊕
    continuation as one more rollout of the group; it needs no counts. The longest shared prefixes come first, and a
    wrong response is used once. Both sides are whole responses: in L_p the shared tokens cancel, in L_q and L_g they
    do not.

    Args:
        group: rollouts with verdicts; those with `mc`, one count per step, can be rejected.
        limits: as for the other rules; `format_negatives` is not used, since a response without a final answer has
            no step that is known to be bad.
        threshold: a step is bad if its mc is at most this.

    Returns:
        Pairs whose meta holds `first_bad_step` and `shared_characters`; and reason → rollouts on no side.
    """
    sides = eligible(group, replace(limits, format_negatives=False))
    candidates: dict[Sides, tuple[int, int]] = {}  # → first bad step, characters before it
    unusable: Counter[str] = Counter()
    for bad in sides.wrong:
        found = _first_bad_step(group.rollouts[bad], threshold)
        if isinstance(found, str):
            unusable[found] += 1
            continue
        for good in sides.right:
            if _parts_there(group, (good, bad), found[1]) and within_length(group, (good, bad), limits):
                candidates[good, bad] = found
    if sides.right and sides.wrong:
        lonely = without_partner([*sides.right, *sides.wrong], candidates) - unusable.total()
        unusable["no_partner_with_its_prefix"] += lonely
    pairs: list[PreferencePair] = []
    used: set[int] = set()
    for good, bad in sorted(candidates, key=lambda both: (-candidates[both][1], both)):
        if bad not in used and len(pairs) < limits.max_pairs:
            step, characters = candidates[good, bad]
            meta = {"first_bad_step": step, "shared_characters": characters}
            pairs.append(pair_of(group, (good, bad), source="step_prefix", **meta))
            used.add(bad)
    return pairs, +(sides.rejects + unusable)


def _first_bad_step(rollout: Rollout, threshold: float) -> tuple[int, int] | str:
    """Index of the first bad step and where it starts in the text, or why there is none to use."""
    if rollout.mc is None:
        return "no_counts"
    steps = split_on_blank_lines(rollout.completion.text)
    if len(steps) != len(rollout.mc):
        return "steps_and_counts_differ"
    bad = next((step for step, count in zip(steps, rollout.mc, strict=True) if count.value <= threshold), None)
    if bad is None:
        return "no_bad_step"
    return "bad_from_the_start" if bad.index == 0 else (bad.index, bad.start)


def _parts_there(group: RolloutGroup, sides: Sides, shared: int) -> bool:
    """Whether both texts agree before `shared` and their next steps differ."""
    good, bad = (group.rollouts[index].completion.text for index in sides)
    if good[:shared] != bad[:shared] or not good[shared:].strip():
        return False
    return split_on_blank_lines(good[shared:])[0].text != split_on_blank_lines(bad[shared:])[0].text
