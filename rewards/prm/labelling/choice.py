"""Which problems to label next: where a label is likely to teach a PRM something, with a random control beside it.

A rule gives each problem a value, and the problems with the largest ones are taken:

- `middle`: the policy is right about half of the time, −|share of right samples − ½|; steps of problems that it always
  or never solves are hardly ever told apart by their continuations;
- `mixed`: any problem with right and wrong responses that would be labelled; all of them are worth the same;
- `uncertain`: the PRM is least sure, the mean spread of the steps that would be labelled (`StepScores.spreads`);
- `random`: any problem. It is the control of the others: as many problems, of the same ones.

Among equals the order is random by the seed and the problem's id, so that adding problems moves no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from mpo.multimodal.errors import ConfigError, DataError
from rewards.kept.keys import seed_of
from rewards.scoring.spreads import scored_steps, step_spreads
from rewards.types import RolloutGroup, Verdict

# All samples of a problem, and its responses that would be labelled → what labels of it are worth; None: not by this
# rule.
Worth = Callable[[RolloutGroup, RolloutGroup], float | None]


def _random(samples: RolloutGroup, responses: RolloutGroup) -> float:
    return 0.0


def _mixed(samples: RolloutGroup, responses: RolloutGroup) -> float | None:
    return 0.0 if len({rollout.verdict for rollout in responses.rollouts}) > 1 else None


def _middle(samples: RolloutGroup, responses: RolloutGroup) -> float | None:
    right = [r.verdict is Verdict.CORRECT for r in samples.rollouts if r.verdict is not None and r.verdict.is_decided]
    return -abs(fmean(right) - 0.5) if right else None


def _uncertain(samples: RolloutGroup, responses: RolloutGroup) -> float | None:
    spreads = step_spreads(responses)
    return fmean(spreads) if spreads else None


RULES: dict[str, Worth] = {"middle": _middle, "mixed": _mixed, "uncertain": _uncertain, "random": _random}
NEEDS = {
    "middle": "a sample that is right or wrong",
    "mixed": "right and wrong responses",
    "uncertain": "a step with a spread, of a PRM that was trained with --concentration_head",
}


@dataclass(frozen=True)
class Choice:
    """What was chosen, in numbers.

    Attributes:
        rule: a name of `RULES`.
        chosen: problems that are labelled.
        of: problems that could be labelled.
        usable: those of them that the rule could choose.
        steps_without_spread: scored steps that would be labelled and have no spread; of `uncertain` alone.
    """

    rule: str
    chosen: int
    of: int
    usable: int
    steps_without_spread: int = 0

    def __str__(self) -> str:
        return f"{self.chosen} of {self.of} problems chosen, rule {self.rule}"


def check_choice(rule: str, fraction: float | None) -> None:
    """Whether a rule and its size go together: `all` has none, every other rule has one in (0, 1].

    Raises:
        ConfigError: they do not, or there is no such rule.
    """
    if rule not in ("all", *RULES):
        raise ConfigError(f"unknown rule {rule!r} to choose problems by: expected all or one of {', '.join(RULES)}")
    if (rule == "all") != (fraction is None) or (fraction is not None and not 0 < fraction <= 1):
        raise ConfigError(
            f"choose={rule} and choose_fraction={fraction}: expected a share of the problems in (0, 1] with every rule "
            "but all, and none with all"
        )


def choose_problems(
    samples: Sequence[RolloutGroup], responses: Sequence[RolloutGroup], *, rule: str, fraction: float, seed: int
) -> tuple[list[RolloutGroup], Choice]:
    """The problems that are worth the most by a rule.

    Args:
        samples: all samples of each problem, verified.
        responses: of those problems that can be labelled, the responses that would be (`choose_responses`).
        rule: a name of `RULES`.
        fraction: share of the problems in `responses` to take, in (0, 1]; rounded, at least one.
        seed: of the order among equals.

    Returns:
        The chosen ones of `responses`, in their order; and the account.

    Raises:
        ConfigError: no such rule, or a fraction outside its range.
        DataError: the rule can choose fewer problems than were asked for: the control would have more.

    Example:
        >>> from rewards.types import Completion, Problem, Rollout
        >>> def group(name, *right):
        ...     verdicts = [Verdict.CORRECT if one else Verdict.WRONG for one in right]
        ...     return RolloutGroup(Problem(name, "?"), tuple(Rollout(Completion(f"{v}"), v) for v in verdicts))
        >>> groups = [group("easy", 1, 1, 1, 0), group("even", 1, 1, 0, 0), group("hard", 0, 0, 0, 1)]
        >>> found, choice = choose_problems(groups, groups, rule="middle", fraction=0.4, seed=0)
        >>> [one.problem.id for one in found], str(choice)
        (['even'], '1 of 3 problems chosen, rule middle')
    """
    check_choice(rule, fraction)
    whole = {group.problem.id: group for group in samples}
    pool = [group for group in responses if group.rollouts]
    values = {group.problem.id: RULES[rule](whole[group.problem.id], group) for group in pool}
    worth = {id: value for id, value in values.items() if value is not None}
    wanted = min(len(pool), max(1, math.floor(fraction * len(pool) + 0.5)))
    if len(worth) < wanted:
        least = math.floor(1000 * len(worth) / len(pool)) / 1000
        raise DataError(
            f"choose={rule}: {wanted} of {len(pool)} problems are asked for, and {len(worth)} of them have "
            f"{NEEDS[rule]}; " + (f"lower choose_fraction to {least:g}" if least else "choose by another rule")
        )
    order = sorted(worth, key=lambda id: (-worth[id], seed_of("choose", seed, id)))
    taken = set(order[:wanted])
    lacking = (
        sum(map(scored_steps, pool)) - sum(len(step_spreads(group)) for group in pool) if rule == "uncertain" else 0
    )
    kept = [group for group in responses if group.problem.id in taken]
    return kept, Choice(rule, len(kept), len(pool), len(worth), lacking)
