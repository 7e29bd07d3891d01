"""Which responses get step labels: a limited number per problem, right and wrong ones balanced."""

from __future__ import annotations

import random
from collections import Counter

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.messages import control_tokens_in
from rewards.types import FinishReason, Rollout, RolloutGroup, Verdict, verdict_of


def choose_responses(
    groups: list[RolloutGroup], processor: object | None, *, responses: int, mixed_only: bool, seed: int
) -> tuple[list[RolloutGroup], Counter[str]]:
    """At most `responses` per problem, right and wrong ones balanced, no text twice, nothing that cannot be scored.

    A response whose answer could not be read or checked is neither right nor wrong, and one on which two verifiers
    disagree is in doubt: neither is labelled.

    With `mixed_only`, a problem whose usable responses are all right or all wrong gives none: a PRM that sees
    mostly such problems learns how hard an image is, not which step is wrong.
    """
    if responses < 2:
        raise ConfigError(f"responses must be at least 2 (one right and one wrong), got {responses}")
    rng = random.Random(seed)
    chosen: list[RolloutGroup] = []
    rejected: Counter[str] = Counter()
    for group in groups:
        usable: dict[str, Rollout] = {}
        for rollout in group.rollouts:
            reason = unusable(rollout, processor) or ("same text twice" if rollout.completion.text in usable else None)
            if reason:
                rejected[reason] += 1
            else:
                usable[rollout.completion.text] = rollout
        right = [r for r in usable.values() if r.verdict is Verdict.CORRECT]
        wrong = [r for r in usable.values() if r.verdict is Verdict.WRONG]
        if mixed_only and not (right and wrong):
            rejected["all right or all wrong"] += len(usable)
            continue
        half = responses // 2
        picked = rng.sample(right, min(half, len(right))) + rng.sample(wrong, min(half, len(wrong)))
        rejected["over the number of responses"] += len(usable) - len(picked)
        chosen.append(RolloutGroup(group.problem, tuple(picked)))
    return chosen, rejected


def unusable(rollout: Rollout, processor: object | None) -> str | None:
    """Why a response can be neither labelled nor scored, or `None`; without a processor no control token is known."""
    text = rollout.completion.text
    if not text.strip():
        return "empty"
    if processor is not None and control_tokens_in(processor, text):
        return "control token"
    if rollout.completion.finish_reason is FinishReason.LENGTH:
        return "truncated"
    if rollout.verdict is None or not rollout.verdict.is_decided:
        return f"verdict {verdict_of(rollout)}"
    return "disputed verdict" if rollout.is_disputed else None
