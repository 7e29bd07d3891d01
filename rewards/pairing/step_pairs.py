"""Step pairs: two responses that agree up to the first bad step of one of them, and part there.

The idea is Step-DPO's (arXiv 2406.18629): the preference is about one step, not about a whole response. The bad step
is found without a judge: by Monte-Carlo counts (the first step from whose end no continuation reached the answer), by
step scores, or by exact labels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from rewards.pairing.eligibility import Sides, eligible, pair_of, within_length, without_partner
from rewards.pairing.limits import Limits
from rewards.steps import split_on_blank_lines
from rewards.types import PreferencePair, Rollout, RolloutGroup


def step_prefix(group: RolloutGroup, limits: Limits) -> tuple[list[PreferencePair], Counter[str]]:
    """A verified-wrong response against a verified-right one that shares its text up to its first bad step.

    The right one may be another sample or a continuation of the wrong one's sound steps, prefix ⊕ continuation as one
    more rollout of the group: kept ones of labelled steps (`rewards/prm/labelling/continuations.py`), or drawn for
    this by `mpo continue`. It needs no counts. The longest shared prefixes come first, and a wrong response is used
    once. Both sides are whole responses. With the whole of the rejected one counted, the shared tokens cancel in L_p
    and in L_q they do not; with its first bad step counted, they are no part of the negative side.

    Args:
        group: rollouts with verdicts; those whose steps have values of the limits' source can be rejected.
        limits: as for the other rules, with `rejected_span.source` and `.threshold` for the bad step. Of
            `format_negatives` no use is made: a response without a final answer has no step that is known to be bad.

    Returns:
        Pairs whose meta holds `first_bad_step` and `shared_characters`; and reason → rollouts on no side.
    """
    sides = eligible(group, replace(limits, format_negatives=False))
    candidates: dict[Sides, tuple[int, int]] = {}  # → first bad step, characters before it
    unusable: Counter[str] = Counter()
    for bad in sides.wrong:
        found = _first_bad_step(group.rollouts[bad], limits)
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
            pairs.append(pair_of(group, (good, bad), limits, source="step_prefix", **meta))
            used.add(bad)
    return pairs, +(sides.rejects + unusable)


def _first_bad_step(rollout: Rollout, limits: Limits) -> tuple[int, int] | str:
    """Index of the first bad step and where it starts in the text, or why there is none to use."""
    bad = limits.rejected_span.bad_step(rollout)
    if isinstance(bad, str):
        return bad
    return "bad_from_the_start" if bad.step.index == 0 else (bad.step.index, bad.step.start)


def _parts_there(group: RolloutGroup, sides: Sides, shared: int) -> bool:
    """Whether both texts agree before `shared` and their next steps differ."""
    good, bad = (group.rollouts[index].completion.text for index in sides)
    if good[:shared] != bad[:shared] or not good[shared:].strip():
        return False
    return split_on_blank_lines(good[shared:])[0].text != split_on_blank_lines(bad[shared:])[0].text
