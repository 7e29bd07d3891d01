"""Official metrics of benchmarks: P(correct) of each problem → a score of each unit, whose mean is the metric.

A unit is what a benchmark counts as one: a problem, a seed question with its variants, a problem with its sub-problems.
Choices at k are made for each problem by itself, from subsets drawn independently. So for a metric that is a product or
a sum of products over different problems the expectation is the same formula of the problems' expectations, and every
number here is exact. An interval is a bootstrap over units.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mpo.multimodal.errors import DataError
from rewards.types import Problem


@dataclass(frozen=True)
class Units:
    """Scores of the units of a benchmark.

    Attributes:
        scores: unit → score in [0, 1].
        left_out: problems of units that are not complete, which count neither way.
    """

    scores: Mapping[str, float]
    left_out: int = 0


Metric = Callable[[Sequence[Problem], Sequence[float]], Units]


def accuracy(problems: Sequence[Problem], values: Sequence[float]) -> Units:
    """Every problem is a unit.

    Args:
        problems: of the benchmark.
        values: P(correct) of each, in [0, 1].

    Example:
        >>> accuracy([Problem("a", "?"), Problem("b", "?")], [1.0, 0.5]).scores
        {'a': 1.0, 'b': 0.5}
    """
    return Units({problem.id: value for problem, value in zip(problems, values, strict=True)})


def worst_case(problems: Sequence[Problem], values: Sequence[float]) -> Units:
    """DynaMath's worst-case accuracy: a seed question counts if all its variants are right (arXiv 2411.00836).

    A_wst = 1/N Σ_i min_j 1[variant j of seed i is right]. The minimum of truth values is their product, so the
    expectation of a seed is Π_j P(variant j is right).

    Args:
        problems: with the seed question's name in `meta["qid"]`.
        values: P(correct) of each.

    Returns:
        One unit per seed; a seed with fewer variants than the fullest one is left out.

    Raises:
        DataError: a problem names no seed.

    Example:
        >>> variants = [Problem(str(i), "?", meta={"qid": "seed"}) for i in range(2)]
        >>> worst_case(variants, [1.0, 0.5]).scores
        {'seed': 0.5}
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    for problem, value in zip(problems, values, strict=True):
        found[_named(problem, "qid")].append(value)
    fullest = max(map(len, found.values()), default=0)
    scores = {seed: math.prod(own) for seed, own in found.items() if len(own) == fullest}
    return Units(scores, len(problems) - fullest * len(scores))


def strict(problems: Sequence[Problem], values: Sequence[float]) -> Units:
    """We-Math's score under its strict condition (arXiv 2407.01284; `evaluation/four_dimensional_metrics.py` there).

    A problem of 2 or 3 steps comes with its sub-problems. 1 point if all are right (complete mastery), ½ if only the
    composed one is wrong (inadequate generalization), 0 if a sub-problem is wrong, whatever the composed one is
    (insufficient knowledge, rote memorization). With q = Π P(sub-problem is right) and m = P(composed is right) the
    expectation is q·m + ½·q·(1 − m) = q·(1 + m) / 2.

    Args:
        problems: with the composed problem's name in `meta["ID"]`, and in `meta["key"]` which part it is: "2steps_1",
            "2steps_2", "2steps_multi", "3steps_1" and so on.
        values: P(correct) of each.

    Returns:
        One unit per composed problem; one that lacks a part is left out.

    Raises:
        DataError: a problem has no `ID` or no such `key`.

    Example:
        >>> parts = [Problem(k, "?", meta={"ID": "a", "key": f"2steps_{k}"}) for k in ("1", "2", "multi")]
        >>> strict(parts, [1.0, 1.0, 0.0]).scores, strict(parts, [1.0, 0.0, 1.0]).scores
        ({'a': 0.5}, {'a': 0.0})
    """
    return _composed(problems, values, lambda subs, whole: math.prod(subs) * (1 + whole) / 2)


def loose(problems: Sequence[Problem], values: Sequence[float]) -> Units:
    """We-Math's score under its loose condition: a right composed problem counts if any sub-problem is right.

    The expectation is m·(1 − Π(1 − p_i)) + ½·q·(1 − m); arguments, result and errors are those of `strict`.

    Example:
        >>> parts = [Problem(k, "?", meta={"ID": "a", "key": f"2steps_{k}"}) for k in ("1", "2", "multi")]
        >>> loose(parts, [1.0, 0.0, 1.0]).scores, loose(parts, [0.0, 0.0, 1.0]).scores
        ({'a': 1.0}, {'a': 0.0})
    """

    def score(subs: Sequence[float], whole: float) -> float:
        any_right = 1 - math.prod(1 - sub for sub in subs)
        return whole * any_right + math.prod(subs) * (1 - whole) / 2

    return _composed(problems, values, score)


METRICS: dict[str, Metric] = {"accuracy": accuracy, "worst case": worst_case, "strict": strict, "loose": loose}


def _composed(
    problems: Sequence[Problem], values: Sequence[float], score: Callable[[Sequence[float], float], float]
) -> Units:
    parts: defaultdict[str, dict[str, float]] = defaultdict(dict)
    steps: dict[str, int] = {}
    for problem, value in zip(problems, values, strict=True):
        unit, (number, part) = _named(problem, "ID"), _part(problem)
        parts[unit][part], steps[unit] = value, number
    scores: dict[str, float] = {}
    for unit, own in parts.items():
        wanted = [str(step) for step in range(1, steps[unit] + 1)]
        if {*wanted, "multi"} <= set(own):
            scores[unit] = score([own[part] for part in wanted], own["multi"])
    return Units(scores, sum(len(own) for unit, own in parts.items() if unit not in scores))


def _named(problem: Problem, key: str) -> str:
    name = problem.meta.get(key)
    if name is None or name == "":
        raise DataError(
            f"problem {problem.id!r} has no {key!r} in its meta, which the benchmark's metric groups by; expected the "
            "published files, or rows with that column",
            reason=f"no {key}",
        )
    return str(name)


def _part(problem: Problem) -> tuple[int, str]:
    """Steps of the composed problem, and which part this is: "1", "2", "3" or "multi"."""
    key = _named(problem, "key")
    steps, mark, part = key.partition("steps_")
    if not mark or not steps.isdigit() or not (part == "multi" or part.isdigit()):
        raise DataError(
            f"problem {problem.id!r}: expected a key such as '2steps_1' or '3steps_multi', got {key!r}", reason="key"
        )
    return int(steps), part
