"""The definition of accuracy at k, by enumeration: the closed forms of the library are held against it."""

import itertools

from rewards.choosing.evaluation import OF_SPREADS
from rewards.choosing.selection import CHOICES
from rewards.types import RolloutGroup, Verdict


def brute_force(group, select, k):
    """The mean over all k-subsets of whether the selected rollout is correct."""
    hits = []
    for subset in itertools.combinations(group.rollouts, k):
        picked = select(RolloutGroup(group.problem, subset))
        hits.append(subset[picked].verdict is Verdict.CORRECT)
    return sum(hits) / len(hits)


def orm(group):
    scores = [r.step_scores.values[-1] if r.step_scores else -1.0 for r in group.rollouts]
    return scores.index(max(scores))


def longest(group):
    return max(range(len(group.rollouts)), key=lambda i: (len(group.rollouts[i].completion.text), -i))


def shortest(group):
    return min(range(len(group.rollouts)), key=lambda i: (len(group.rollouts[i].completion.text), i))


def oracle(group):
    return next((i for i, rollout in enumerate(group.rollouts) if rollout.verdict is Verdict.CORRECT), 0)


OF_SCORES = {name: select for name, select in CHOICES.items() if name not in OF_SPREADS}
DEFINITIONS = {**OF_SCORES, "orm": orm, "longest": longest, "shortest": shortest, "oracle": oracle}
