"""How many continuations each step gets.

- `full`: K from every step, as VisualPRM (arXiv 2503.10291, K = 16). The only one whose counts estimate mc.
- `sequential`: growing waves until the first success, K at most. A step with p = P(a continuation is right) costs
  (1 − (1−p)^K) / p continuations when drawn one by one, waves somewhat more. The hard label [some success among K]
  has exactly `full`'s distribution: the draws that are left out cannot change it.
- `bisect`: looks for the first zero step by bisection (OmegaPRM's idea, arXiv 2406.06592), ⌈log2 S⌉ steps of a wrong
  response and none of a right one. A success after step i is one of every step before i, so p > 0 never comes back
  after a zero step; counts of K draws may show otherwise if p is small, and then the labels differ from those of
  `full`.

A budget is a generator: it asks for n verdicts from each of some places, is sent them, and returns a count for the end
of every step but the last, which is not continued. `None`, or no entry, means that the verifier decided nothing. Who
draws is not its business: all responses at once from a model in this process (`spend`), or a plan for each problem,
side by side, from servers (`served.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from mpo.multimodal.errors import ConfigError
from rewards.types import MonteCarloCount, Verdict

Place = tuple[int, int]  # (response, step): the step's end, where continuations start
Draw = Callable[[Sequence[Place], int], list[list[Verdict]]]  # n verdicts from each place
Counts = dict[Place, MonteCarloCount | None]

PROVEN = MonteCarloCount(1, 1)  # the one known continuation, through a later step, is right


@dataclass(frozen=True)
class Ending:
    """What a budget knows of a response before it draws: its number of steps, and whether its answer is right."""

    num_steps: int
    right: bool


Ask = tuple[Sequence[Place], int]  # n verdicts from each place
Plan = Generator[Ask, list[list[Verdict]], Counts]
Budget = Callable[[Sequence[Ending], int], Plan]


def spend(budget: Budget, responses: Sequence[Ending], draw: Draw, num_continuations: int) -> Counts:
    """Have all that a budget asks for drawn, and return its counts.

    Example:
        >>> spend(full, [Ending(2, right=False)], lambda places, n: [[Verdict.WRONG] * n for _ in places], 4)
        {(0, 0): MonteCarloCount(correct=0, total=4)}
    """
    plan = budget(responses, num_continuations)
    try:
        ask = next(plan)
        while True:
            ask = plan.send(draw(*ask))
    except StopIteration as end:
        counts: Counts = end.value
        return counts


def full(responses: Sequence[Ending], num_continuations: int) -> Plan:
    """K continuations from every step."""
    places = _places(responses)
    drawn = yield places, num_continuations
    return {place: count(verdicts) for place, verdicts in zip(places, drawn, strict=True)}


def sequential(responses: Sequence[Ending], num_continuations: int) -> Plan:
    """From every step until the first wave with a success, K at most; the count is of what was drawn."""
    return (yield from _until_success(_places(responses), num_continuations))


def bisect(responses: Sequence[Ending], num_continuations: int) -> Plan:
    """The first zero step of each wrong response; the steps before it are right, it and those after it are not.

    A step that was not drawn carries what decides it: 1 of 1, the continuation through a later step that is right, or
    the count of the first zero step.
    """
    counts: Counts = {}
    # The first zero step lies in low … high. A wrong answer makes the last step one.
    between = {r: (0, response.num_steps - 1) for r, response in enumerate(responses) if not response.right}
    while places := [(r, (low + high) // 2) for r, (low, high) in between.items() if low < high]:
        for (r, step), found in (yield from _until_success(places, num_continuations)).items():
            low, high = between[r]
            counts[r, step] = found
            if found is None:
                del between[r]
            else:
                between[r] = (step + 1, high) if found.correct else (low, step)
    for r, response in enumerate(responses):
        if not response.right and r not in between:
            continue
        first_zero = response.num_steps if response.right else between[r][0]
        for step in range(response.num_steps - 1):
            counts.setdefault((r, step), PROVEN if step < first_zero else counts[r, first_zero])
    return counts


BUDGETS: dict[str, Budget] = {"full": full, "sequential": sequential, "bisect": bisect}


def budget_named(name: str, num_continuations: int) -> Budget:
    """The budget of that name, once K is known to be a number of continuations.

    Raises:
        ConfigError: there is none, or K is below 1.
    """
    if num_continuations < 1:
        raise ConfigError(f"expected at least 1 continuation per step, got num_continuations={num_continuations}")
    if name not in BUDGETS:
        raise ConfigError(f"unknown budget {name!r}: expected one of {', '.join(BUDGETS)}")
    return BUDGETS[name]


def waves(num_continuations: int) -> list[int]:
    """Sizes of the waves of up to K draws: each doubles what was drawn before it.

    Example:
        >>> waves(16), waves(3), waves(1)
        ([2, 2, 4, 8], [2, 1], [1])
    """
    sizes: list[int] = []
    while (drawn := sum(sizes)) < num_continuations:
        sizes.append(min(max(2, drawn), num_continuations - drawn))
    return sizes


def count(verdicts: Sequence[Verdict]) -> MonteCarloCount | None:
    """Correct ones among the verdicts that decide something; `None` if none does.

    Example:
        >>> count([Verdict.CORRECT, Verdict.WRONG, Verdict.TIMEOUT, Verdict.UNPARSABLE])
        MonteCarloCount(correct=1, total=2)
    """
    decided = [v for v in verdicts if v.is_decided]
    return MonteCarloCount(sum(v is Verdict.CORRECT for v in decided), len(decided)) if decided else None


def _places(responses: Sequence[Ending]) -> list[Place]:
    return [(r, step) for r, response in enumerate(responses) for step in range(response.num_steps - 1)]


def _until_success(places: Sequence[Place], num_continuations: int) -> Plan:
    found: dict[Place, list[Verdict]] = {place: [] for place in places}
    for size in waves(num_continuations):
        open_places = [place for place in places if Verdict.CORRECT not in found[place]]
        if not open_places:
            break
        for place, verdicts in zip(open_places, (yield open_places, size), strict=True):
            found[place] += verdicts
    return {place: count(verdicts) for place, verdicts in found.items()}
