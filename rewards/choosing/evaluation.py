"""Every selector at every k, per problem and with intervals, beside blind rulers and the oracle.

All numbers are expectations over uniformly random k-subsets of a problem's N rollouts (`rewards/choosing/curves.py`). A
rollout without a reward can still be chosen: ranked last by `prm` and `orm`, weight 0 in weighted votes, a full
voter in the majority, and counted as `unscored`. `lower_bound` has a row where a PRM told spreads; it ranks a rollout
without them last. `mpo best-of-n`, the tables, the page and `rewards.accuracy_at_k` all
read from here, so a published cell can be recomputed by the library.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mpo.multimodal.errors import ConfigError, DataError
from rewards.choosing.adaptive import ERROR, MAY_CHANGE, Replaying
from rewards.choosing.curves import pass_at_k, ranked_at_k, ranking, vote_at_k
from rewards.choosing.lower_bound import BOUND, LowerBound, has_spread, without_spread
from rewards.choosing.selector_warnings import (
    image_drop_of,
    length_preference_of,
    longer_wins,
    reward_drop,
    selector_regret,
    trust_warnings,
)
from rewards.choosing.votes import WEIGHTED_VOTES
from rewards.scoring.ranking import auc
from rewards.statistics import Estimate, mean_with_interval
from rewards.types import Rollout, RolloutGroup, correctness_of, verdict_of
from rewards.verifying.degeneration import REASONS, degenerate
from rewards.verifying.equality_classes import votes_of, with_votes

RESAMPLES = 2000  # bootstrap, a cell of the table
ORDERS = 4  # in which each problem's samples are replayed for adaptive N


def evaluate(
    groups: Iterable[RolloutGroup],
    ks: Sequence[int],
    *,
    scored: bool = True,
    where: str = "the groups",
    bound: LowerBound = BOUND,
) -> dict[str, Any]:
    """What `results.json` holds: `values[selector][k]` has one expected correctness per problem, as `problem_ids`.

    Its columns are arrays of numbers, a quarter of the size of lists: `json.dump(results, file, default=list)`.

    Args:
        groups: verified and scored; unless with other images too, nobody asks whether the PRM looks. A list, or what
            gives them each time that it is iterated, which happens twice: they need not fit into memory.
        ks: numbers of responses.
        scored: whether they have rewards; without, the selectors that read them are left out, and what is told of them.
        where: names the groups in messages.
        bound: of the selector `lower_bound`.
    """
    samples, spreads = _check(groups, ks, where, scored=scored)
    left_out = () if scored and spreads else OF_SPREADS
    selectors = SELECTORS | {"lower_bound": _ranked(bound.of)}
    selectors = {name: at for name, at in selectors.items() if name not in left_out and (scored or name in UNSCORED)}
    values = {name: {str(k): array("d") for k in ks} for name in selectors}
    ids, responses = [], _Responses(ks)
    rewards = _Rewards([name for name in MAY_CHANGE if name not in left_out], samples, bound) if scored else None
    for group in map(with_votes, groups):
        ids.append(group.problem.id)
        for name, at_k in selectors.items():
            for k in ks:
                values[name][str(k)].append(at_k(group, k))
        responses.add(group)
        if rewards:
            rewards.add(group)
    return {
        "problems": len(ids),
        "samples": samples,
        "ks": list(ks),
        "problem_ids": ids,
        "values": values,
        "estimates": {
            name: {k: asdict(mean_with_interval(column, resamples=RESAMPLES)) for k, column in at.items()}
            for name, at in values.items()
        },
        **responses.summary(),
        **(rewards.summary(ks, values) if rewards else {}),
    }


class _Responses:
    """How different the responses are, what the verifier said of them, how they ended."""

    def __init__(self, ks: Sequence[int]) -> None:
        self.distinct = {k: array("d") for k in ks}
        self.verdicts, self.degenerates = Counter[str](), Counter[str | None]()

    def add(self, group: RolloutGroup) -> None:
        for k, column in self.distinct.items():
            column.append(distinct_at_k(group, k))
        self.verdicts.update(map(verdict_of, group.rollouts))
        self.degenerates.update(degenerate(rollout.completion) for rollout in group.rollouts)

    def summary(self) -> dict[str, Any]:
        total = self.verdicts.total()
        return {
            "distinct_answers": {str(k): _mean(column) for k, column in self.distinct.items()},
            "verdicts": {name: self.verdicts[name] / total for name in sorted(self.verdicts)},
            "degenerate": {reason: self.degenerates[reason] / total for reason in REASONS},
        }


class _Rewards:
    """What the rewards are worth, and what speaks against them."""

    def __init__(self, selectors: Sequence[str], samples: int, bound: LowerBound) -> None:
        self.bound, self.unscored, self.without_spread = bound, 0, 0
        self.longer, self.drops = list[float | None](), list[float | None]()
        self.aucs = array("d")
        self.replays = {name: Replaying(samples, selector=name, orders=ORDERS, bound=bound) for name in selectors}

    def add(self, group: RolloutGroup) -> None:
        self.unscored += sum(rollout.reward is None for rollout in group.rollouts)
        self.without_spread += without_spread([group])
        self.longer.append(longer_wins(group))
        self.drops.append(reward_drop(group))
        self.aucs.extend(within_problem_aucs([group]).values())
        for replaying in self.replays.values():
            replaying.add(group)

    def summary(self, ks: Sequence[int], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        prm, vote, oracle = ({k: values[name][str(k)] for k in ks} for name in ("prm", "majority", "oracle"))
        preference, drop = length_preference_of(self.longer), image_drop_of(self.drops)
        bound = {"lower_bound": asdict(self.bound) | {"without_spread": self.without_spread}}
        return {
            "unscored": self.unscored,
            "regret": {str(k): asdict(selector_regret(oracle[k], prm[k])) for k in ks},
            "length_preference": _as_dict(preference),
            "image_drop": _as_dict(drop),
            "warnings": [asdict(warning) for warning in trust_warnings(prm, vote, preference, drop)],
            "adaptive": {"error": ERROR, "orders": ORDERS}
            | {name: replaying.result().summary() for name, replaying in self.replays.items()},
            **(bound if "lower_bound" in values else {}),
            "within_problem_auc": asdict(mean_with_interval(self.aucs)) if self.aucs else None,
        }


def distinct_at_k(group: RolloutGroup, k: int) -> float:
    """Expected number of distinct answers among k random rollouts: Σ_classes P(one of the class is drawn).

    Answers that mean the same are one; what states no answer that can be read is none.
    """
    votes = votes_of(group)
    return math.fsum(pass_at_k([vote == one for vote in votes], k) for one in set(votes) - {None})


def degenerate_shares(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Reason → share of the rollouts, every reason named."""
    found = Counter(degenerate(rollout.completion) for rollout in rollouts)
    return {reason: found[reason] / len(rollouts) for reason in REASONS}


def within_problem_aucs(groups: Iterable[RolloutGroup]) -> dict[str, float]:
    """P(reward of a right rollout > reward of a wrong one) per problem, ties half: 0.5 is a PRM that knows nothing.

    Only scored rollouts count whose verdict says right or wrong, and only problems that have both appear.
    """
    aucs = {}
    for group in groups:
        correct = correctness_of(group)
        scored = [
            (r.reward, right)
            for r, right in zip(group.rollouts, correct, strict=True)
            if r.reward is not None and r.verdict and r.verdict.is_decided
        ]
        value = auc([reward for reward, _ in scored], [right for _, right in scored])
        if value is not None:
            aucs[group.problem.id] = value
    return aucs


def _check(groups: Iterable[RolloutGroup], ks: Sequence[int], where: str, *, scored: bool) -> tuple[int, bool]:
    """N, the smallest number of rollouts of a problem; and whether any rollout has spreads."""
    samples, rewarded, spreads = math.inf, False, False
    for group in groups:
        samples = min(samples, len(group.rollouts))
        rewarded = rewarded or any(rollout.reward is not None for rollout in group.rollouts)
        spreads = spreads or has_spread([group])
    if math.isinf(samples):
        raise DataError(f"{where} holds no problems: expected verified and scored groups")
    samples = int(samples)
    if not ks or min(ks) < 1 or max(ks) > samples:
        raise ConfigError(
            f"ks={list(ks)} does not fit the {samples} rollouts per problem in {where}: "
            f"expected numbers from 1 to {samples}; choose smaller ks or draw more samples"
        )
    if scored and not rewarded:
        raise DataError(f"no rollout in {where} has a reward; score the groups first (`mpo score`)")
    return samples, spreads


def accuracy_at_k(group: RolloutGroup, selector: str, k: int) -> float:
    """Expected correctness of one problem if `selector` chooses among k random rollouts of the group.

    Args:
        group: verified rollouts, N of them; `prm`, `orm` and weighted votes also read their scores, and `lower_bound`
            their spreads (the mean over steps minus 1 spread of it).
        selector: a row of `SELECTORS`.
        k: 1 ≤ k ≤ N.

    Returns:
        A probability in [0, 1]: the number that `results.json` and the report hold for this problem.

    Raises:
        ConfigError: an unknown selector, or k outside 1..N.
        DataError: a rollout has not been verified.

    Example:
        >>> from rewards.types import Completion, Problem, Rollout, Verdict
        >>> right = Rollout(Completion("Final answer: 2"), Verdict.CORRECT, reward=0.9)
        >>> wrong = Rollout(Completion("Final answer: 3"), Verdict.WRONG, reward=0.1)
        >>> accuracy_at_k(RolloutGroup(Problem("p", "1 + 1?"), (right, wrong)), "prm", 2)
        1.0
    """
    if selector not in SELECTORS:
        raise ConfigError(f"unknown selector {selector!r}: expected one of {', '.join(SELECTORS)}")
    return SELECTORS[selector](group, k)


def _ranked(value_of: Callable[[Rollout], float | None]) -> Callable[[RolloutGroup, int], float]:
    """Best-ranked of k by a value of each rollout; a rollout without the value is ranked last."""

    def at_k(group: RolloutGroup, k: int) -> float:
        values = [value_of(rollout) for rollout in group.rollouts]
        order = ranking([-math.inf if value is None else value for value in values])
        return ranked_at_k(order, correctness_of(group), k)

    return at_k


def _vote(weight_of: Callable[[Rollout], float]) -> Callable[[RolloutGroup, int], float]:
    """A vote of the final answers among k, each rollout with its weight."""

    def at_k(group: RolloutGroup, k: int) -> float:
        weights = [weight_of(rollout) for rollout in group.rollouts]
        return vote_at_k(votes_of(group), weights, correctness_of(group), k, seed=group.problem.id)

    return at_k


def _first(group: RolloutGroup, k: int) -> float:
    pass_at_k(correctness_of(group), k)  # refuses a k that does not fit
    return float(correctness_of(group)[0])


def _random(group: RolloutGroup, k: int) -> float:
    pass_at_k(correctness_of(group), k)
    return pass_at_k(correctness_of(group), 1)


SELECTORS: dict[str, Callable[[RolloutGroup, int], float]] = {
    "prm": _ranked(lambda rollout: rollout.reward),
    "lower_bound": _ranked(BOUND.of),
    **{name: _vote(weight.of) for name, weight in WEIGHTED_VOTES.items()},
    "majority": _vote(lambda rollout: 1.0),
    "orm": _ranked(lambda rollout: rollout.step_scores.values[-1] if rollout.step_scores else None),
    "first": _first,
    "longest": _ranked(lambda rollout: float(len(rollout.completion.text))),
    "shortest": _ranked(lambda rollout: -float(len(rollout.completion.text))),
    "random": _random,
    "oracle": lambda group, k: pass_at_k(correctness_of(group), k),
}

UNSCORED = ("majority", "first", "longest", "shortest", "random", "oracle")  # selectors that read no reward
OF_SPREADS = ("lower_bound",)  # selectors for groups that a PRM with spreads scored


def _as_dict(estimate: Estimate | None) -> dict[str, Any] | None:
    return asdict(estimate) if estimate else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
