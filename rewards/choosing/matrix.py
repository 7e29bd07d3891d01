"""The heart of `mpo evaluate`: policies × critics × N × benchmarks from what each problem's choices are worth.

Pure functions: P(correct) per problem in, cells out. A critic is compared with the majority of the same samples twice:
at equal N, and at equal tokens, where the vote may draw the samples that reading the responses would have paid for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import floor
from typing import Any

from mpo.multimodal.errors import ConfigError, DataError
from rewards.benchmarks.metrics import METRICS, Units
from rewards.statistics import CHANGE, SHARE, Bounds, Estimate, mean_of_means, mean_with_interval
from rewards.types import Problem

RESAMPLES = 2000
VOTE, ORACLE, ONE = "majority", "oracle", "random"  # selectors that every cell is held against
BLIND = ("random", "first", "longest", "shortest")

Values = Mapping[str, Mapping[int, Sequence[float]]]  # selector → k → P(correct) per problem


@dataclass(frozen=True)
class Critic:
    """What chooses a response.

    Attributes:
        name: as tables print it.
        selector: a row of `rewards.choosing.evaluation.SELECTORS`, applied to this critic's rewards.
        cost: tokens that it reads per token that the policy writes, weighted by the sizes of the two models: 1 for a
            PRM as large as the policy, 0 for what reads nothing.
    """

    name: str
    selector: str
    cost: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.cost < float("inf"):
            raise ConfigError(f"critic {self.name!r}: expected a cost of at least 0, got {self.cost}")


def votes_for(k: int, cost: float, most: int) -> int | None:
    """The number of samples that a vote can draw for the tokens of k samples and of a critic that reads them.

    Reading a token and writing one are the same work of a model, 2 · its weights, so k samples with a critic cost
    k·(1 + cost) samples. Prompts and images are read once by either and not counted.

    Args:
        k: samples that the critic chooses among.
        cost: of the critic, see `Critic.cost`.
        most: samples that were drawn.

    Returns:
        `None` where that many were not drawn.

    Example:
        >>> votes_for(4, 1.0, 8), votes_for(8, 1.0, 8), votes_for(4, 0.3, 8)
        (8, None, 5)
    """
    wanted = floor(k * (1 + cost) + 1e-9)
    return wanted if wanted <= most else None


def needed_ks(ns: Sequence[int], critics: Sequence[Critic], most: int) -> list[int]:
    """Every k at which something has to be measured, of at most `most` samples.

    Example:
        >>> needed_ks([1, 2, 4], [Critic("PRM", "prm", 1.0)], 6)
        [1, 2, 4]
        >>> needed_ks([1, 3], [Critic("PRM", "prm", 1.0)], 6)
        [1, 2, 3, 6]
    """
    own = [k for k in ns if k <= most]
    equal = [votes_for(k, critic.cost, most) for k in own for critic in critics]
    return sorted({*own, *(k for k in equal if k is not None)})


@dataclass(frozen=True)
class Measured:
    """What one critic's choices among one policy's responses to one benchmark are worth.

    Attributes:
        problems: in the order of the values.
        values: of the critic's rewards; `majority`, `oracle` and the blind rulers are the same for every critic.
        metric: the benchmark's official one, a name of `rewards.benchmarks.metrics.METRICS`.
    """

    problems: Sequence[Problem]
    values: Values
    metric: str

    def units(self, selector: str, k: int) -> Units:
        """The official metric's units."""
        return METRICS[self.metric](self.problems, self.values[selector][k])

    def official(self, selector: str, k: int) -> list[float]:
        """The scores of the units, in the order of the problems."""
        return list(self.units(selector, k).scores.values())


def cell(measured: Measured, critic: Critic, k: int, *, most: int) -> dict[str, Any]:
    """One cell: accuracy, official metric, and both differences to the vote.

    Args:
        measured: with the critic's values.
        critic: that chooses.
        k: samples.
        most: samples that were drawn.
    """
    chosen = measured.values[critic.selector][k]
    equal = votes_for(k, critic.cost, most)
    return {
        "accuracy": _estimate(chosen),
        "official": _estimate(measured.official(critic.selector, k)),
        "minus_majority": _difference(measured, critic.selector, k, k),
        "equal_tokens_k": equal,
        "minus_majority_equal_tokens": None if equal is None else _difference(measured, critic.selector, k, equal),
    }


def overall(cells: Sequence[Measured], critic: Critic, k: int, *, most: int) -> dict[str, Any]:
    """The mean over benchmarks of the official metric, as VisualPRM's tables have it, and its differences.

    Args:
        cells: of one policy and critic, a benchmark each.
        critic: that chooses.
        k: samples.
        most: samples that were drawn of every benchmark.
    """
    equal = votes_for(k, critic.cost, most)
    return {
        "official": asdict(mean_of_means([one.official(critic.selector, k) for one in cells])),
        "gain": asdict(_mean_difference(cells, (critic.selector, k), (ONE, k))),
        "minus_majority": asdict(_mean_difference(cells, (critic.selector, k), (VOTE, k))),
        "equal_tokens_k": equal,
        "minus_majority_equal_tokens": None
        if equal is None
        else asdict(_mean_difference(cells, (critic.selector, k), (VOTE, equal))),
    }


def breakdown(measured: Measured, selector: str, k: int, keys: Sequence[str]) -> dict[str, dict[str, float]]:
    """Accuracy by the first of the keys that the problems have: value → its mean and number of problems.

    Example:
        >>> problems = [Problem(str(i), "?", meta={"subject": "art" if i else "law"}) for i in range(3)]
        >>> breakdown(Measured(problems, {"prm": {1: [0.0, 1.0, 0.5]}}, "accuracy"), "prm", 1, ["subject"])
        {'art': {'accuracy': 0.75, 'problems': 2}, 'law': {'accuracy': 0.0, 'problems': 1}}
    """
    key = next((key for key in keys if any(key in problem.meta for problem in measured.problems)), None)
    found: dict[str, list[float]] = {}
    for problem, value in zip(measured.problems, measured.values[selector][k], strict=True):
        if key is not None and key in problem.meta:
            found.setdefault(str(problem.meta[key]), []).append(value)
    return {
        name: {"accuracy": sum(values) / len(values), "problems": len(values)} for name, values in sorted(found.items())
    }


def _estimate(values: Sequence[float], bounds: Bounds = SHARE) -> dict[str, Any]:
    if not values:
        raise DataError("a benchmark has no complete unit of its official metric; expected at least one")
    return asdict(mean_with_interval(values, resamples=RESAMPLES, bounds=bounds))


def _difference(measured: Measured, selector: str, k: int, votes: int) -> dict[str, Any]:
    pairs = zip(measured.official(selector, k), measured.official(VOTE, votes), strict=True)
    return _estimate([chosen - voted for chosen, voted in pairs], CHANGE)


def _mean_difference(cells: Sequence[Measured], a: tuple[str, int], b: tuple[str, int]) -> Estimate:
    columns = []
    for one in cells:
        pairs = zip(one.official(*a), one.official(*b), strict=True)
        columns.append([left - right for left, right in pairs])
    return mean_of_means(columns, bounds=CHANGE)
