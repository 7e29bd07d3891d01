"""What labelling will cost, before it starts: continuations, tokens and time.

A few responses, right and wrong ones, get the full K from every step, timed. On what they drew any budget can be
replayed, so its expected number of continuations a response is known without drawing again; the most it can draw is
what it draws when nothing succeeds. The sample is thrown away: it has a seed of its own and changes no label.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rewards.prm.budgets import Budget, Draw, Ending, Place, budget_named, full
from rewards.prm.monte_carlo import Continuations, Response, VerifyMany, derived_seed, responses_of
from rewards.types import Generator, RolloutGroup, Splitter, Verdict

SAMPLED = 8  # responses of either verdict, at most


@dataclass(frozen=True)
class CostEstimate:
    """What a labelling run is about to draw.

    Attributes:
        steps: step ends that could be continued, the last one of a response left out.
        at_most: continuations, if none succeeds.
        expected: continuations, as the sample lets expect.
        tokens: generated for the expected number.
        seconds: wall-clock for the expected number, at the sample's speed.
        sample: continuations that the estimate itself cost.
    """

    steps: int
    at_most: int
    expected: float
    tokens: float
    seconds: float
    sample: int

    def __str__(self) -> str:
        return (
            f"{self.steps:,} steps to continue; at most {self.at_most:,} continuations, about {self.expected:,.0f} "
            f"expected: {self.tokens:,.0f} tokens, {self.seconds / 60:.1f} min "
            f"(measured on {self.sample:,} continuations)"
        )


def estimate_cost(
    groups: Sequence[RolloutGroup],
    *,
    generator: Generator,
    verify_many: VerifyMany,
    splitter: Splitter,
    num_continuations: int,
    seed: int,
    budget: str = "full",
    rows_a_call: int = 1024,
) -> CostEstimate:
    """Measure on a sample of responses what `label_steps` with the same arguments will cost."""
    run, responses = budget_named(budget), responses_of(groups, splitter)
    endings = [response.ending for response in responses]
    steps, at_most = sum(ending.num_steps - 1 for ending in endings), most(run, endings, num_continuations)
    costly = [response for response in responses if most(run, [response.ending], num_continuations)]
    sample = list(_sample(costly, random.Random(f"estimate:{seed}")))
    draw = Continuations(
        [response for _, response in sample],
        generator=generator,
        verify_many=verify_many,
        seed=derived_seed(seed, "estimate"),
        rows_a_call=rows_a_call,
    )
    recorded: dict[Place, list[Verdict]] = {}

    def recording(places: Sequence[Place], n: int) -> list[list[Verdict]]:
        verdicts = draw(places, n)
        recorded.update(zip(places, verdicts, strict=True))
        return verdicts

    started = time.monotonic()
    full([response.ending for _, response in sample], recording, num_continuations)
    elapsed = time.monotonic() - started
    expected = sum(
        weight * _replayed(run, index, response.ending, recorded, num_continuations)
        for index, (weight, response) in enumerate(sample)
    )
    each = expected / draw.continuations if draw.continuations else 0.0
    return CostEstimate(steps, at_most, expected, each * draw.tokens, each * elapsed, draw.continuations)


def most(budget: Budget, endings: Sequence[Ending], num_continuations: int) -> int:
    """Continuations that a budget draws when none succeeds: it never draws more.

    Example:
        >>> from rewards.prm.budgets import BUDGETS
        >>> endings = [Ending(9, right=False), Ending(9, right=True)]
        >>> {name: most(budget, endings, 16) for name, budget in BUDGETS.items()}
        {'full': 256, 'sequential': 256, 'bisect': 64}
    """
    drawn = 0

    def nothing(places: Sequence[Place], n: int) -> list[list[Verdict]]:
        nonlocal drawn
        drawn += len(places) * n
        return [[Verdict.WRONG] * n for _ in places]

    budget(endings, nothing, num_continuations)
    return drawn


def _sample(responses: Iterable[Response], rng: random.Random) -> Iterator[tuple[float, Response]]:
    """Responses with the number of responses each stands for: right and wrong ones cost a budget differently."""
    strata: dict[bool, list[Response]] = {}
    for response in responses:
        strata.setdefault(response.ending.right, []).append(response)
    for some in strata.values():
        size = max(1, min(SAMPLED, len(some) // 25))
        yield from ((len(some) / size, response) for response in rng.sample(some, size))


def _replayed(
    budget: Budget, index: int, ending: Ending, recorded: dict[Place, list[Verdict]], num_continuations: int
) -> int:
    """Continuations that the budget would have drawn for one sampled response."""
    drawn: dict[int, int] = {}

    def replay(places: Sequence[Place], n: int) -> list[list[Verdict]]:
        found = []
        for _, step in places:
            start = drawn.get(step, 0)
            drawn[step] = start + n
            found.append(recorded[index, step][start : start + n])
        return found

    draw: Draw = replay
    budget([ending], draw, num_continuations)
    return sum(drawn.values())
