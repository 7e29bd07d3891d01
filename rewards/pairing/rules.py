"""Verified (and scored) rollouts → preference pairs, with an account of every problem that gave none.

A rule is a function of one problem's rollouts. `correctness` is MMPR's (arXiv 2411.10442, §2.2): any verified-right
against any verified-wrong. `correctness_and_prm` keeps that guarantee and lets the process reward model pick *which*:
the best-rewarded right answers against the best-rewarded wrong ones, the negatives that look most convincing.
`prm_margin` asks for a distance in reward, `step_prefix` for a shared beginning. A question that nobody can verify has
`rewards/pairing/dropout_ntp.py`, which needs a policy.

What no pair may contain is kept out in `rewards/pairing/eligibility.py`. A truncated response may be rejected, never
chosen.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from mpo.multimodal.errors import ConfigError
from rewards.kept.keys import seed_of
from rewards.pairing.eligibility import Eligible, Sides, eligible, pair_of, within_length, without_partner
from rewards.pairing.limits import Limits
from rewards.pairing.report import PairAccount, PairingReport
from rewards.pairing.spans import RejectedSpan
from rewards.pairing.step_pairs import step_prefix
from rewards.types import PreferencePair, RolloutGroup, Verdict

__all__ = [
    "RULES",
    "Limits",
    "Pairing",
    "PairingReport",
    "build_pairs",
    "correctness",
    "correctness_and_prm",
    "prm_margin",
    "seen_by",
    "step_prefix",
]


def correctness(group: RolloutGroup, limits: Limits) -> tuple[list[PreferencePair], Counter[str]]:
    """Verified-right against verified-wrong, a random sample of all combinations (MMPR, arXiv 2411.10442, §2.2).

    Format negatives, where they are asked for, stand apart, as in MMPR: right against responses that state no final
    answer is a sample of its own, with the source "correctness_format".

    Args:
        group: rollouts with verdicts.
        limits: what a pair and a problem's number of pairs must keep to.

    Returns:
        Pairs, sampled with a seed from the problem's id; and reason → rollouts that could take no side.
    """
    sides = eligible(group, limits)
    found: list[PreferencePair] = []
    everything: list[Sides] = []
    for negatives, source in ((sides.wrong, "correctness"), (sides.silent, "correctness_format")):
        candidates = _within(group, itertools.product(sides.right, negatives), limits)
        everything += candidates
        found += [
            pair_of(group, both, limits, source=source)
            for both in _sample(candidates, limits.max_pairs, group.problem.id)
        ]
    return found, _with_lonely(sides, everything, "no_partner_of_its_length")


def correctness_and_prm(group: RolloutGroup, limits: Limits) -> tuple[list[PreferencePair], Counter[str]]:
    """The i-th best-rewarded right answer against the i-th best-rewarded wrong one (hardest negatives first).

    Each text is used at most once, so the pairs of a problem differ on both sides; ties in reward go to the
    lower index. A format negative is ranked among the wrong ones. With `max_length_ratio` a right
    answer takes the best-rewarded unused wrong one that it allows. Arguments and returns are those of `correctness`;
    a rollout without reward is a reject.
    """
    sides = eligible(group, limits, need_reward=True)
    wrong = sorted([*sides.wrong, *sides.silent])
    order = itertools.product(_best_first(group, sides.right), _best_first(group, wrong))
    candidates = _within(group, order, limits)
    matched = _each_once(candidates)[: limits.max_pairs]
    pairs = [pair_of(group, both, limits, source="correctness_and_prm") for both in matched]
    return pairs, _with_lonely(sides, candidates, "no_partner_of_its_length")


def prm_margin(
    group: RolloutGroup, limits: Limits, *, margin: float = 0.1
) -> tuple[list[PreferencePair], Counter[str]]:
    """A verified-right response against any verified one whose reward is lower by at least `margin`.

    The rejected side may be right as well: then the pair prefers the better way to the same answer, and problems that
    are always solved give pairs too. The widest margins come first and each text is used once. Arguments and returns
    are those of `correctness`; a rollout without reward is a reject.

    Raises:
        ConfigError: `margin` is not positive.
    """
    if not margin > 0:
        raise ConfigError(f"margin must be above 0, got {margin}")
    sides = eligible(group, limits, need_reward=True)
    apart = {
        (c, r): gap
        for c, r in itertools.product(sides.right, sides.all)
        if (gap := _reward(group, c) - _reward(group, r)) >= margin
        and not isinstance(limits.rejected_span.of(group.rollouts[r]), str)  # a right one may have no bad step
    }
    candidates = _within(group, sorted(apart, key=lambda both: (-apart[both], both)), limits)
    pairs = [pair_of(group, both, limits, source="prm_margin") for both in _each_once(candidates)[: limits.max_pairs]]
    return pairs, _with_lonely(sides, candidates, "no_partner_within_margin", one_side=bool(sides.right))


Rule = Callable[[RolloutGroup, Limits], tuple[list[PreferencePair], Counter[str]]]
RULES: dict[str, Rule] = {
    "correctness": correctness,
    "correctness_and_prm": correctness_and_prm,
    "prm_margin": prm_margin,
    "step_prefix": step_prefix,
}


# What a PRM that scores steps is for: its rules look at the first bad step, and choose no response with a bad one.
STEPWISE = Limits(min_step_score=0.5, rejected_span=RejectedSpan("first_bad_step"))
LIMITS: dict[str, Limits] = {
    "correctness": Limits(),
    "correctness_and_prm": STEPWISE,
    "prm_margin": STEPWISE,
    "step_prefix": Limits(rejected_span=RejectedSpan("first_bad_step", "mc")),
}


class Pairing:
    """A pairing rule with the account of every problem that it is given; one problem is held at a time.

    Args:
        rule: a name in `RULES`, or a callable: (group, limits) → pairs, and reason → rollouts on no side.
        limits: given to the rule; None: the rule's own (`LIMITS`), of a callable `Limits()`.

    Raises:
        ConfigError: unknown rule.
    """

    def __init__(self, rule: str | Rule = "correctness_and_prm", limits: Limits | None = None) -> None:
        make = RULES.get(rule) if isinstance(rule, str) else rule
        if make is None:
            raise ConfigError(f"unknown pairing rule {rule!r}: expected one of {', '.join(RULES)}, or a callable")
        own = LIMITS[rule] if isinstance(rule, str) else Limits()
        self._make, self._limits = make, own if limits is None else limits
        self._account = PairAccount()

    def pairs_of(self, group: RolloutGroup) -> list[PreferencePair]:
        """The pairs of one problem, counted."""
        made, rejects = self._make(group, self._limits)
        self._account.add(made, rejected=rejects, why_none="" if made else _why_none(group, rejects))
        return made

    def report(self) -> PairingReport:
        """The account of all problems so far."""
        return self._account.report()


def build_pairs(
    groups: Iterable[RolloutGroup], *, rule: str | Rule = "correctness_and_prm", limits: Limits | None = None
) -> tuple[list[PreferencePair], PairingReport]:
    """Apply a pairing rule to every problem and account for all of them.

    Args:
        groups: problems with verified (and, for PRM rules, scored) rollouts.
        rule: a name in `RULES` or a callable of the same shape, as for `Pairing`.
        limits: given to the rule; None: the rule's own.

    Returns:
        The pairs in the order of the problems, and the report.

    Raises:
        ConfigError: unknown rule.

    Example:
        >>> from rewards.types import Completion, Problem, Rollout, StepScores
        >>> right = Rollout(Completion("2 + 2 = 4"), Verdict.CORRECT, StepScores((0.9,)), reward=0.9)
        >>> wrong = Rollout(Completion("2 + 2 = 5"), Verdict.WRONG, StepScores((0.4,)), reward=0.4)
        >>> groups = [RolloutGroup(Problem("a", "?"), (wrong, right)), RolloutGroup(Problem("b", "?"), (wrong,))]
        >>> pairs, report = build_pairs(groups)
        >>> pairs[0].chosen.text, pairs[0].rejected_span, report.pairs, report.dropped
        ('2 + 2 = 4', (0, 9), 1, {'all_wrong': 1})
    """
    pairing = Pairing(rule, limits)
    pairs = [pair for group in groups for pair in pairing.pairs_of(group)]
    return pairs, pairing.report()


def seen_by(pairings: Iterable[Pairing], groups: Iterable[RolloutGroup]) -> Iterator[RolloutGroup]:
    """The same groups, one at a time; each is counted for each pairing as it passes."""
    every = list(pairings)
    for group in groups:
        for pairing in every:
            pairing.pairs_of(group)
        yield group


def _within(group: RolloutGroup, candidates: Iterable[Sides], limits: Limits) -> list[Sides]:
    return [both for both in candidates if within_length(group, both, limits)]


def _sample(candidates: list[Sides], size: int, problem_id: str) -> list[Sides]:
    if len(candidates) <= size:
        return candidates
    return sorted(random.Random(seed_of(problem_id)).sample(candidates, size))


def _each_once(candidates: Iterable[Sides]) -> list[Sides]:
    """The candidate pairs in their order without those that use an index again."""
    used: set[int] = set()
    kept = []
    for both in candidates:
        if used.isdisjoint(both):
            kept.append(both)
            used.update(both)
    return kept


def _best_first(group: RolloutGroup, indexes: Iterable[int]) -> list[int]:
    return sorted(indexes, key=lambda index: (-_reward(group, index), index))


def _reward(group: RolloutGroup, index: int) -> float:
    reward = group.rollouts[index].reward
    assert reward is not None  # asked for with need_reward
    return reward


def _with_lonely(sides: Eligible, candidates: Iterable[Sides], reason: str, *, one_side: bool = False) -> Counter[str]:
    """The rejects, and the eligible rollouts that are in no candidate pair although there are two sides."""
    two = bool(sides.right and (sides.wrong or sides.silent))
    lonely = without_partner(sides.all, candidates) if two or one_side else 0
    return sides.rejects + Counter({reason: lonely} if lonely else {})


def _why_none(group: RolloutGroup, rejects: Counter[str]) -> str:
    """One reason per problem: a side without partner, else what its verdicts show, else the most frequent reject."""
    if not group.rollouts:
        return "no_rollouts"
    if lonely := sorted(reason for reason in rejects if reason.startswith("no_partner")):
        return lonely[0]
    verdicts = {rollout.verdict for rollout in group.rollouts}
    if verdicts == {None}:
        return "no_verdict"
    decided = {verdict for verdict in verdicts if verdict is not None and verdict.is_decided}
    if not decided:
        return "none_readable" if Verdict.UNPARSABLE in verdicts else "verifier_failed"
    if decided == {Verdict.CORRECT}:
        return "all_right"
    if Verdict.CORRECT not in decided:
        return "all_wrong"
    return min(rejects, key=lambda reason: (-rejects[reason], reason), default="rule_made_none")
