"""What labelling will cost, before it starts: continuations, tokens and time.

A few responses, right and wrong ones, get the full K from every step, timed. On what they drew the budget is replayed:
it takes some share of the most that it could, and about that share of the most that all responses could cost. The
most is what a budget draws when nothing succeeds. The sample is thrown away: it has a seed of its own and changes no
label.

From servers nothing has to be thrown away, for a draw does not depend on its neighbours: some problems are labelled
first, and what they took of their most is what all will take of theirs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rewards.kept.calls import Run
from rewards.kept.keys import seed_of
from rewards.prm.labelling.budgets import Budget, Draw, Ending, Place, budget_named, spend
from rewards.prm.labelling.monte_carlo import Continuations, Labelled, Response, responses_of
from rewards.types import RolloutGroup, Splitter, Verdict

SAMPLED = 6  # responses of either verdict, at most
LABELLED_FIRST = (16, 64)  # problems, at least and at most; between them a tenth of all


@dataclass(frozen=True)
class CostEstimate:
    """What a labelling run is about to draw.

    Attributes:
        steps: step ends that could be continued, the last one of a response left out.
        at_most: continuations, if none succeeds.
        expected: continuations, as the sample lets expect.
        tokens: generated for the expected number.
        seconds: in the generator for the expected number, at the sample's speed; checks are not in it.
        sample: continuations that were measured; 0: nothing was, and neither tokens nor seconds are known.
        sample_tokens: generated for the estimate.
    """

    steps: int
    at_most: int
    expected: float
    tokens: float
    seconds: float
    sample: int
    sample_tokens: int = 0

    def __str__(self) -> str:
        start = f"{self.steps:,} steps to continue; at most {self.at_most:,} continuations"
        if not self.sample:
            return start
        return (
            f"{start}, about {self.expected:,.0f} "
            f"expected: {self.tokens:,.0f} tokens, {self.seconds / 60:.1f} min of drawing "
            f"(measured on {self.sample:,} continuations)"
        )


def estimate_cost(
    groups: Sequence[RolloutGroup],
    *,
    run: Run,
    splitter: Splitter,
    num_continuations: int,
    seed: int,
    budget: str = "full",
    rows_a_call: int = 1024,
) -> CostEstimate:
    """Measure on a sample of responses what `label_steps` with the same arguments will cost."""
    budgeted, responses = budget_named(budget, num_continuations), responses_of(groups, splitter)
    costly = [response for response in responses if most(budgeted, [response.ending], num_continuations)]
    continuations = partial(Continuations, run=run, seed=seed_of(f"{seed}:estimate", bits=63), rows_a_call=rows_a_call)
    rng = random.Random(f"estimate:{seed}")
    at_most, expected, sampled, tokens, seconds, first_tokens = 0, 0.0, 0, 0, 0.0, 0
    for right in (True, False):  # they cost a budget differently
        some = [response for response in costly if response.ending.right is right]
        sample = rng.sample(some, min(len(some), max(1, min(SAMPLED, len(some) // 12))))
        if sample:  # what a first call costs beyond others is not in the measure
            first = continuations(sample)
            first([(0, 0)], 1)
            first_tokens += first.tokens
        draw = continuations(sample)
        used, possible = _replayed(budgeted, sample, draw, num_continuations)
        limit = most(budgeted, [response.ending for response in some], num_continuations)
        at_most += limit
        expected += limit * used / possible if possible else 0.0
        sampled, tokens, seconds = sampled + draw.continuations, tokens + draw.tokens, seconds + draw.seconds
    each = expected / sampled if sampled else 0.0
    steps = sum(len(response.steps) - 1 for response in responses)
    return CostEstimate(steps, at_most, expected, each * tokens, each * seconds, sampled, tokens + first_tokens)


def estimate_from_first(
    groups: Sequence[RolloutGroup],
    *,
    label: Callable[[list[RolloutGroup]], Labelled],
    splitter: Splitter,
    num_continuations: int,
    seed: int,
    budget: str = "full",
) -> CostEstimate:
    """Label some problems, which are no longer to do then, and say what all of them will cost, those included.

    Args:
        groups, splitter, num_continuations, budget: see `label_steps`.
        label: labels some of the groups and keeps what was drawn.
        seed: picks the problems.
    """
    budgeted = budget_named(budget, num_continuations)
    least, at_most = LABELLED_FIRST
    number = min(len(groups), max(least, min(at_most, len(groups) // 10)))
    first = random.Random(f"first:{seed}").sample(list(groups), number)
    started = time.monotonic()
    done = label(first)
    seconds = time.monotonic() - started
    endings, of_first = ([response.ending for response in responses_of(some, splitter)] for some in (groups, first))
    limit, possible = most(budgeted, endings, num_continuations), most(budgeted, of_first, num_continuations)
    scale = limit / possible if possible else 0.0
    steps = sum(ending.num_steps - 1 for ending in endings)
    drawn, tokens = done.continuations, done.tokens
    return CostEstimate(steps, limit, scale * drawn, scale * tokens, scale * seconds, drawn)


def most_only(
    groups: Sequence[RolloutGroup], *, splitter: Splitter, num_continuations: int, budget: str = "full"
) -> CostEstimate:
    """The estimate where nothing may be drawn for it, since continuations are limited: the most, and no tokens.

    Args:
        groups, splitter, num_continuations, budget: see `label_steps`.
    """
    endings = [response.ending for response in responses_of(groups, splitter)]
    at_most = most(budget_named(budget, num_continuations), endings, num_continuations)
    return CostEstimate(sum(ending.num_steps - 1 for ending in endings), at_most, at_most, 0.0, 0.0, 0)


def most(budget: Budget, endings: Sequence[Ending], num_continuations: int) -> int:
    """Continuations that a budget draws when none succeeds: it never draws more.

    Example:
        >>> from rewards.prm.labelling.budgets import BUDGETS
        >>> endings = [Ending(9, right=False), Ending(9, right=True)]
        >>> {name: most(budget, endings, 16) for name, budget in BUDGETS.items()}
        {'full': 256, 'sequential': 256, 'bisect': 64}
    """
    drawn = 0

    def nothing(places: Sequence[Place], n: int) -> list[list[Verdict]]:
        nonlocal drawn
        drawn += len(places) * n
        return [[Verdict.WRONG] * n for _ in places]

    spend(budget, endings, nothing, num_continuations)
    return drawn


def _replayed(budget: Budget, sample: Sequence[Response], draw: Draw, num_continuations: int) -> tuple[int, int]:
    """Draw K from every step; what the budget would have drawn of it, and the most that it could have."""
    endings = [response.ending for response in sample]
    places = [(r, step) for r, ending in enumerate(endings) for step in range(ending.num_steps - 1)]
    recorded = dict(zip(places, draw(places, num_continuations), strict=True))
    taken = dict.fromkeys(places, 0)

    def replay(wanted: Sequence[Place], n: int) -> list[list[Verdict]]:
        found = [recorded[place][taken[place] : taken[place] + n] for place in wanted]
        taken.update({place: taken[place] + n for place in wanted})
        return found

    spend(budget, endings, replay, num_continuations)
    return sum(taken.values()), most(budget, endings, num_continuations)
