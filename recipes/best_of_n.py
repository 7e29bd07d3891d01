"""`mpo best-of-n`: every selector at every k, per problem and with intervals, beside blind rulers and the oracle.

Everything is an expectation over random k-subsets of a problem's N rollouts. A rollout that the PRM could not read
(control tokens, empty text) has no reward. It stays a candidate: ranked last (reward −∞) by `prm` and `orm`, with
weight 0 in the weighted vote, a full voter in the majority, and counted as `unscored`.

At the end it prints what speaks against the PRM's choices (`rewards/trust.py`); `results.json` keeps it as `warnings`.

The digits world takes a few seconds (500 problems, N = 16).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.files import write_atomic
from recipes.config import BestOfNConfig
from recipes.groups import problems_of, read_groups
from recipes.run import open_stage
from recipes.verify import verdict_of
from rewards.adaptive import ERROR, MAY_CHANGE, replay
from rewards.answers import canonical_answer
from rewards.curves import Estimate, correctness_of, mean_with_interval, pass_at_k, ranked_at_k, ranking
from rewards.degeneration import REASONS, degenerate
from rewards.prm.metrics import auc
from rewards.trust import image_drop, length_preference, selector_regret, trust_warnings
from rewards.types import Rollout, RolloutGroup

RESULTS = "results.json"
SELECTORS = ("prm", "weighted_vote", "majority", "orm", "first", "longest", "shortest", "random", "oracle")
MAX_SUBSETS = 128  # a vote at k is exact up to so many k-subsets, and sampled with a seed beyond
RESAMPLES = 2000  # bootstrap, a cell of the table
ORDERS = 4  # in which each problem's samples are replayed for adaptive N


def best_of_n(config: BestOfNConfig) -> Path:
    """Evaluate all selectors and write `results.json`; see the module's first lines for unscored rollouts.

    Raises:
        ConfigError: a k is below 1 or above the number of rollouts.
        DataError: there are no groups, rollouts without verdicts, or no rewards at all.
    """
    stage = open_stage("best-of-n", config, inputs=[config.groups])
    if stage.complete:
        return stage.out
    groups = read_groups(config.groups)
    results = evaluate(groups, config.ks, where=str(config.groups))
    write_atomic(stage.out / RESULTS, json.dumps(results) + "\n")
    for warning in results["warnings"]:
        print(f"warning: {config.groups}: {warning['message']}", file=sys.stderr)
    total = sum(len(group.rollouts) for group in groups)
    counts = {"in": total, "out": total, "rejected": {}, "unscored": results["unscored"]}
    return stage.finish({**counts, "problems": str(problems_of(config.groups))})


def evaluate(groups: Sequence[RolloutGroup], ks: Sequence[int], *, where: str = "the groups") -> dict[str, Any]:
    """What `results.json` holds: `values[selector][k]` has one expected correctness a problem, as `problem_ids`.

    Args:
        groups: verified and scored; unless with other pictures too, nobody asks whether the PRM looks.
        ks: numbers of candidates.
        where: names the groups in messages.
    """
    samples = _check(groups, ks, where)
    rows = [_values(group, ks) for group in groups]
    values = {name: {str(k): [row[name][k] for row in rows] for k in ks} for name in SELECTORS}
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    aucs = list(within_problem_aucs(groups).values())
    prm, vote, oracle = ({k: values[name][str(k)] for k in ks} for name in ("prm", "majority", "oracle"))
    return {
        "problems": len(groups),
        "samples": samples,
        "ks": list(ks),
        "problem_ids": [group.problem.id for group in groups],
        "values": values,
        "estimates": {
            name: {k: asdict(mean_with_interval(column, resamples=RESAMPLES)) for k, column in at.items()}
            for name, at in values.items()
        },
        "distinct_candidates": {str(k): _mean([distinct_at_k(group, k) for group in groups]) for k in ks},
        "verdicts": _shares(Counter(verdict_of(rollout) for rollout in rollouts), len(rollouts)),
        "degenerate": degenerate_shares(rollouts),
        "unscored": sum(rollout.reward is None for rollout in rollouts),
        "regret": {str(k): asdict(selector_regret(oracle[k], prm[k])) for k in ks},
        "length_preference": _as_dict(length_preference(groups)),
        "image_drop": _as_dict(image_drop(groups)),
        "warnings": [asdict(warning) for warning in trust_warnings(prm, vote, groups)],
        "adaptive": adaptive(groups, samples),
        "within_problem_auc": asdict(mean_with_interval(aucs)) if aucs else None,
    }


def adaptive(groups: Sequence[RolloutGroup], n: int) -> dict[str, Any]:
    """Choice → what stopping early would save of n samples, and cost in accuracy (`rewards.adaptive`)."""
    replays = {name: replay(groups, n, selector=name, orders=ORDERS, answer_of=_answer) for name in MAY_CHANGE}
    return {"error": ERROR, "orders": ORDERS} | {name: found.summary() for name, found in replays.items()}


def distinct_at_k(group: RolloutGroup, k: int) -> float:
    """Expected number of distinct texts among k random rollouts: Σ_texts P(at least one of its copies is drawn)."""
    texts = [rollout.completion.text for rollout in group.rollouts]
    return math.fsum(pass_at_k([text == one for text in texts], k) for one in set(texts))


def degenerate_shares(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Reason → share of the rollouts, every reason named."""
    found = Counter(degenerate(rollout.completion) for rollout in rollouts)
    return {reason: found[reason] / len(rollouts) for reason in REASONS}


def within_problem_aucs(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """P(reward of a right rollout > reward of a wrong one) a problem, ties half: 0.5 is a PRM that knows nothing.

    Only scored rollouts count, and only problems that have right and wrong ones appear.
    """
    aucs = {}
    for group in groups:
        correct = correctness_of(group)
        scored = [(r.reward, right) for r, right in zip(group.rollouts, correct, strict=True) if r.reward is not None]
        value = auc([reward for reward, _ in scored], [right for _, right in scored])
        if value is not None:
            aucs[group.problem.id] = value
    return aucs


def _check(groups: Sequence[RolloutGroup], ks: Sequence[int], where: str) -> int:
    """N, the smallest number of rollouts of a problem."""
    if not groups:
        raise DataError(f"{where} holds no problems: expected verified and scored groups")
    samples = min(len(group.rollouts) for group in groups)
    if not ks or min(ks) < 1 or max(ks) > samples:
        raise ConfigError(
            f"ks={list(ks)} does not fit the {samples} rollouts a problem in {where}: "
            f"expected numbers from 1 to {samples}; choose smaller ks or draw more samples"
        )
    if all(rollout.reward is None for group in groups for rollout in group.rollouts):
        raise DataError(f"no rollout in {where} has a reward; score the groups first (`mpo score`)")
    return samples


def _values(group: RolloutGroup, ks: Sequence[int]) -> dict[str, dict[int, float]]:
    """Selector → k → expected correctness of one problem."""
    correct, rollouts = correctness_of(group), group.rollouts
    lengths = [float(len(rollout.completion.text)) for rollout in rollouts]
    orders = {
        "prm": ranking([_or_last(rollout.reward) for rollout in rollouts]),
        "orm": ranking([_or_last(r.step_scores.values[-1] if r.step_scores else None) for r in rollouts]),
        "longest": ranking(lengths),
        "shortest": ranking([-length for length in lengths]),
    }
    values = {name: {k: ranked_at_k(order, correct, k) for k in ks} for name, order in orders.items()}
    values["majority"] = {k: vote_at_k(group, [1.0] * len(rollouts), k) for k in ks}
    values["weighted_vote"] = {k: vote_at_k(group, [rollout.reward or 0.0 for rollout in rollouts], k) for k in ks}
    values["first"] = {k: float(correct[0]) for k in ks}
    values["random"] = {k: sum(correct) / len(correct) for k in ks}
    values["oracle"] = {k: pass_at_k(correct, k) for k in ks}
    return values


def vote_at_k(group: RolloutGroup, weights: Sequence[float], k: int) -> float:
    """Expected correctness of a (weighted) vote among k random rollouts: `selection`'s votes, all subsets at once.

    Ties go to the answer that appeared first; nobody votes → the first of the subset.
    """
    answers = [_answer(rollout.completion.text) for rollout in group.rollouts]
    names = list(dict.fromkeys(answer for answer in answers if answer is not None))
    correct = np.array(correctness_of(group))
    subsets = _subsets(group.problem.id, len(answers), k)  # (S, k), each row rising
    if not names:
        return float(correct[subsets[:, 0]].mean())
    votes = np.array([[answer == name for name in names] for answer in answers])[subsets]  # (S, k, A)
    totals = (
        (votes * np.asarray(weights)[subsets][:, :, None]).sum(1).round(12)
    )  # (S, A); rounded, so that ties are ties
    appears = np.where(votes.any(1), votes.argmax(1), k)  # (S, A): position of each answer's first voter, k if absent
    totals[appears == k] = -np.inf
    best = totals == totals.max(1, keepdims=True)  # (S, A)
    picked = np.where(best, appears, k).min(1)  # (S,); k where nobody votes
    picked[picked == k] = 0
    return float(correct[np.take_along_axis(subsets, picked[:, None], 1)[:, 0]].mean())


def _subsets(problem_id: str, n: int, k: int) -> NDArray[np.int64]:
    """All k-subsets of 0..n-1 if they are few, else `MAX_SUBSETS` random ones, seeded by the problem and k."""
    if math.comb(n, k) <= MAX_SUBSETS:
        return np.array(list(itertools.combinations(range(n), k)))
    seed = hashlib.sha256(f"{problem_id}\x00{k}".encode("utf-8", "backslashreplace")).digest()
    rng = np.random.default_rng(int.from_bytes(seed[:16], "big"))
    return np.sort(rng.random((MAX_SUBSETS, n)).argsort(1)[:, :k], axis=1)


@lru_cache(maxsize=65_536)
def _answer(text: str) -> str | None:
    return canonical_answer(text)


def _or_last(score: float | None) -> float:
    return -math.inf if score is None else score


def _as_dict(estimate: Estimate | None) -> dict[str, Any] | None:
    return asdict(estimate) if estimate else None


def _shares(counts: Counter[str], total: int) -> dict[str, float]:
    return {name: counts[name] / total for name in sorted(counts)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
