"""Verified (and scored) rollouts → preference pairs, with an account of every problem that gave none.

Two rules. `correctness` is MMPR's (arXiv 2411.10442, §2.2): any verified-right against any verified-wrong.
`correctness_and_prm` keeps that guarantee and lets the process reward model pick *which*: the best-rewarded
right answers against the best-rewarded wrong ones, the negatives that look most convincing.

No rule ever uses a truncated response as chosen, a rollout whose verifier failed on either side, an empty
side, or the same text on both sides. A truncated response may be rejected.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mpo.multimodal.errors import ConfigError
from rewards.splitting import split_on_blank_lines
from rewards.types import FinishReason, PreferencePair, RolloutGroup, Verdict


@dataclass(frozen=True)
class PairingReport:
    """What went in and what came out: problems_in = problems_with_pairs + Σ dropped.

    Attributes:
        dropped: reason → problems that gave no pair.
        rejected_rollouts: reason → rollouts that could stand on no side, over all problems.
        mean_characters, mean_steps: side ("chosen", "rejected") → mean length; empty without pairs.
        blind_rulers: share of pairs where picking the longest / shortest / first picks the chosen, ties half.
            Far from 0.5 means that a policy can win by length instead of by being right.
    """

    problems_in: int
    problems_with_pairs: int
    pairs: int
    dropped: dict[str, int] = field(default_factory=dict)
    rejected_rollouts: dict[str, int] = field(default_factory=dict)
    mean_characters: dict[str, float] = field(default_factory=dict)
    mean_steps: dict[str, float] = field(default_factory=dict)
    blind_rulers: dict[str, float] = field(default_factory=dict)


def correctness(
    group: RolloutGroup, *, max_pairs: int, format_negatives: bool = True
) -> tuple[list[PreferencePair], Counter[str]]:
    """Verified-right against verified-wrong, a random sample of all combinations (MMPR, arXiv 2411.10442, §2.2).

    Args:
        group: rollouts with verdicts.
        max_pairs: pairs a problem at most; MMPR takes 15.
        format_negatives: a response without a final answer may be rejected.

    Returns:
        Pairs, sampled with a seed from the problem's id; and reason → rollouts that could stand on no side.
    """
    right, wrong, rejects = _sides(group, format_negatives=format_negatives)
    candidates = list(itertools.product(right, wrong))
    if len(candidates) > max_pairs:
        seed = hashlib.sha256(group.problem.id.encode("utf-8", "backslashreplace")).digest()
        candidates = sorted(random.Random(seed).sample(candidates, max_pairs))
    return [_pair(group, *sides, source="correctness") for sides in candidates], rejects


def correctness_and_prm(
    group: RolloutGroup, *, max_pairs: int, format_negatives: bool = True
) -> tuple[list[PreferencePair], Counter[str]]:
    """The i-th best-rewarded right answer against the i-th best-rewarded wrong one (hardest negatives first).

    Each text is used at most once, so the pairs of a problem differ on both sides; ties in reward go to the
    lower index. Arguments and returns are those of `correctness`; a rollout without reward is a reject.
    """
    right, wrong, rejects = _sides(group, format_negatives=format_negatives, need_reward=True)

    def best_first(indexes: list[int]) -> list[int]:
        return sorted(indexes, key=lambda index: (-(group.rollouts[index].reward or 0.0), index))

    matched = list(zip(best_first(right), best_first(wrong), strict=False))[:max_pairs]
    return [_pair(group, *sides, source="correctness_and_prm") for sides in matched], rejects


Rule = Callable[..., tuple[list[PreferencePair], Counter[str]]]
RULES: dict[str, Rule] = {"correctness": correctness, "correctness_and_prm": correctness_and_prm}


def build_pairs(
    groups: Iterable[RolloutGroup],
    *,
    rule: str | Rule = "correctness_and_prm",
    max_pairs: int = 15,
    format_negatives: bool = True,
) -> tuple[list[PreferencePair], PairingReport]:
    """Apply a pairing rule to every problem and account for all of them.

    Args:
        groups: problems with verified (and, for PRM rules, scored) rollouts.
        rule: a name in `RULES`, or a callable of the same shape whose pairs carry `chosen_index` and
            `rejected_index` in their meta.
        max_pairs: pairs a problem at most, at least 1.
        format_negatives: a response without a final answer may be rejected.

    Returns:
        The pairs in the order of the problems, and the report.

    Raises:
        ConfigError: unknown rule, or `max_pairs` below 1.

    Example:
        >>> from rewards.types import Completion, Problem, Rollout
        >>> right = Rollout(Completion("2 + 2 = 4"), verdict=Verdict.CORRECT, reward=0.9)
        >>> wrong = Rollout(Completion("2 + 2 = 5"), verdict=Verdict.WRONG, reward=0.4)
        >>> groups = [RolloutGroup(Problem("a", "?"), (wrong, right)), RolloutGroup(Problem("b", "?"), (wrong,))]
        >>> pairs, report = build_pairs(groups)
        >>> pairs[0].chosen.text, report.pairs, report.dropped
        ('2 + 2 = 4', 1, {'all_wrong': 1})
    """
    make = RULES.get(rule) if isinstance(rule, str) else rule
    if make is None:
        raise ConfigError(f"unknown pairing rule {rule!r}: expected one of {', '.join(RULES)}, or a callable")
    if max_pairs < 1:
        raise ConfigError(f"max_pairs must be at least 1, got {max_pairs}")
    pairs: list[PreferencePair] = []
    dropped: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    problems = 0
    for problems, group in enumerate(groups, start=1):  # noqa: B007
        made, rejects = make(group, max_pairs=max_pairs, format_negatives=format_negatives)
        pairs += made
        rejected += rejects
        if not made:
            dropped[_why_none(group, rejects)] += 1
    return pairs, _report(pairs, problems, dropped, rejected)


def _sides(
    group: RolloutGroup, *, format_negatives: bool, need_reward: bool = False
) -> tuple[list[int], list[int], Counter[str]]:
    """Indexes that may be chosen, indexes that may be rejected, and why the others may not: they add up to N."""
    right: list[int] = []
    wrong: list[int] = []
    rejects: Counter[str] = Counter()
    seen: set[str] = set()
    for index, rollout in enumerate(group.rollouts):
        text, correct = rollout.completion.text.strip(), rollout.verdict is Verdict.CORRECT
        if rollout.verdict is None:
            rejects["no_verdict"] += 1
        elif rollout.verdict in (Verdict.TIMEOUT, Verdict.ERROR):
            rejects[f"verifier_{rollout.verdict.value}"] += 1
        elif not text:
            rejects["empty"] += 1
        elif correct and rollout.completion.finish_reason is FinishReason.LENGTH:
            rejects["truncated_right"] += 1
        elif rollout.verdict is Verdict.UNPARSABLE and not format_negatives:
            rejects["unparsable"] += 1
        elif need_reward and rollout.reward is None:
            rejects["no_reward"] += 1
        elif text in seen:
            rejects["duplicate_text"] += 1
        else:
            seen.add(text)
            (right if correct else wrong).append(index)
    return right, wrong, rejects


def _why_none(group: RolloutGroup, rejects: Counter[str]) -> str:
    """One reason a problem: what its verdicts say, else the most frequent reject."""
    if not group.rollouts:
        return "no_rollouts"
    verdicts = {rollout.verdict for rollout in group.rollouts}
    if verdicts == {None}:
        return "no_verdict"
    decided = verdicts & {Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE}
    if not decided:
        return "verifier_failed"
    if decided == {Verdict.CORRECT}:
        return "all_right"
    if Verdict.CORRECT not in decided:
        return "all_wrong"
    return min(rejects, key=lambda reason: (-rejects[reason], reason), default="rule_made_none")


def _pair(group: RolloutGroup, chosen: int, rejected: int, *, source: str) -> PreferencePair:
    best, worst = group.rollouts[chosen], group.rollouts[rejected]
    meta = {
        "chosen_index": chosen,
        "rejected_index": rejected,
        "chosen_reward": best.reward,
        "rejected_reward": worst.reward,
        "rejected_verdict": worst.verdict.value if worst.verdict else None,
    }
    return PreferencePair(group.problem, best.completion, worst.completion, source, meta)


def _report(
    pairs: Sequence[PreferencePair], problems: int, dropped: Counter[str], rejected: Counter[str]
) -> PairingReport:
    report = PairingReport(
        problems_in=problems,
        problems_with_pairs=problems - dropped.total(),
        pairs=len(pairs),
        dropped=dict(sorted(dropped.items())),
        rejected_rollouts=dict(sorted(rejected.items())),
    )
    if not pairs:
        return report
    sides = {"chosen": [pair.chosen.text for pair in pairs], "rejected": [pair.rejected.text for pair in pairs]}
    longer = _mean([_share(len(pair.chosen.text), len(pair.rejected.text)) for pair in pairs])
    earlier = _mean([_share(pair.meta["rejected_index"], pair.meta["chosen_index"]) for pair in pairs])
    return replace(
        report,
        mean_characters={side: _mean([len(text) for text in texts]) for side, texts in sides.items()},
        mean_steps={side: _mean([len(split_on_blank_lines(text)) for text in texts]) for side, texts in sides.items()},
        blind_rulers={"longest": longer, "shortest": 1.0 - longer, "first": earlier},
    )


def _share(a: int, b: int) -> float:
    return 0.5 if a == b else float(a > b)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
