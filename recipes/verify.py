"""`mpo verify`: one verdict a rollout; trouble of the checker is its own verdict, never `wrong`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from recipes.config import VerifyConfig
from recipes.groups import problems_of, read_groups, write_groups
from recipes.run import open_stage
from rewards.types import Rollout, RolloutGroup
from rewards.verification import MathVerifier


def verify(config: VerifyConfig) -> Path:
    """Check every final answer with math-verify in killable workers.

    A problem without a reference answer cannot be checked: its rollouts keep verdict `None` and are counted.
    """
    stage = open_stage("verify", config, inputs=[config.groups])
    if stage.complete:
        return stage.out
    groups = read_groups(config.groups)
    pairs = [(g.problem, rollout.completion.text) for g in groups if _has_answer(g) for rollout in g.rollouts]
    with MathVerifier(workers=config.workers, timeout_s=config.timeout_s) as verifier:
        verdicts = iter(verifier.verify_many(pairs))
    verified = [
        RolloutGroup(group.problem, tuple(rollout.with_(verdict=next(verdicts)) for rollout in group.rollouts))
        if _has_answer(group)
        else group
        for group in groups
    ]
    write_groups(stage.out, verified)
    found = Counter(str(verdict_of(rollout)) for group in verified for rollout in group.rollouts)
    total = sum(len(group.rollouts) for group in groups)
    counts = {"in": total, "out": total, "rejected": {}, "verdicts": dict(sorted(found.items()))}
    return stage.finish({**counts, "problems": str(problems_of(config.groups))})


def _has_answer(group: RolloutGroup) -> bool:
    return bool((group.problem.answer or "").strip())


def verdict_of(rollout: Rollout) -> str:
    """The verdict's name, "none" if there is none: the problem has no reference answer."""
    return rollout.verdict.value if rollout.verdict else "none"
