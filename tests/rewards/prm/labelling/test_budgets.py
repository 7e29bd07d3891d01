"""The laws of the Monte-Carlo budgets, on continuations that are right with a known probability."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError
from rewards.prm.labelling.budgets import (
    BUDGETS,
    PROVEN,
    Counts,
    Ending,
    Place,
    bisect,
    budget_named,
    count,
    full,
    sequential,
    spend,
    waves,
)
from rewards.prm.labelling.cost import most
from rewards.types import MonteCarloCount, Verdict

C, W, U, T, E = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE, Verdict.TIMEOUT, Verdict.ERROR


class Coins:
    """Continuations from a place are right with its probability; keeps how many it gave."""

    def __init__(self, right: dict[Place, float], seed: int = 0, trouble: float = 0.0) -> None:
        self.right, self.trouble, self.rng, self.drawn = right, trouble, random.Random(seed), Counter[Place]()

    def __call__(self, places: Sequence[Place], n: int) -> list[list[Verdict]]:
        assert len(set(places)) == len(places)
        for place in places:
            self.drawn[place] += n
        return [[self.draw(place) for _ in range(n)] for place in places]

    def draw(self, place: Place) -> Verdict:
        if self.rng.random() < self.trouble:
            return T
        return C if self.rng.random() < self.right[place] else W


class Tape:
    """Each place has its verdicts in order; a budget may take fewer."""

    def __init__(self, verdicts: dict[Place, list[Verdict]]) -> None:
        self.left = {place: list(row) for place, row in verdicts.items()}

    def __call__(self, places: Sequence[Place], n: int) -> list[list[Verdict]]:
        return [[self.left[place].pop(0) for _ in range(n)] for place in places]


def hard(counts: Counts) -> dict[Place, bool | None]:
    return {place: None if found is None else found.correct > 0 for place, found in counts.items()}


@given(st.integers(1, 300))
def test_waves_add_up_to_k_and_double(k: int) -> None:
    *sizes, last = waves(k)
    assert sum(sizes) + last == k
    assert sizes == [max(2, sum(sizes[:i])) for i in range(len(sizes))]
    assert 1 <= last <= max(2, sum(sizes))


@settings(max_examples=200)
@given(st.integers(1, 20), st.data())
def test_sequential_gives_the_label_that_full_gives_on_the_same_draws(k: int, data: st.DataObject) -> None:
    """Whatever is drawn: the draws left out cannot change [some success among K]. So the two labels are one random
    variable of the same draws, and have one distribution; where K draws are all verifier trouble, neither has one."""
    tape = data.draw(
        st.lists(st.lists(st.sampled_from([C, W, U, T, E]), min_size=k, max_size=k), min_size=1, max_size=4)
    )
    response = [Ending(len(tape) + 1, right=False)]
    drawn = {(0, step): row for step, row in enumerate(tape)}
    assert hard(spend(sequential, response, Tape(drawn), k)) == hard(spend(full, response, Tape(drawn), k))


@pytest.mark.parametrize(
    ("p", "k", "trouble"), [(0.02, 16, 0.0), (0.1, 16, 0.0), (0.5, 4, 0.0), (0.1, 8, 0.5), (0.0, 16, 0.0)]
)
def test_sequentials_label_distribution_and_cost(p: float, k: int, trouble: float) -> None:
    """4,000 steps: the share labelled + is 1 − (1−q)^K, q = p·(1 − trouble), within 4 σ; the cost is that of the waves:
    Σ_waves size · (1−q)^(drawn before it)."""
    number, q = 4000, p * (1 - trouble)
    coins = Coins({(0, step): p for step in range(number)}, trouble=trouble)
    found = hard(spend(sequential, [Ending(number + 1, right=False)], coins, k))
    expected = 1 - (1 - q) ** k
    share = sum(label is True for label in found.values()) / number
    assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / number)
    sizes = waves(k)
    cost = sum(size * (1 - q) ** sum(sizes[:i]) for i, size in enumerate(sizes))
    assert coins.drawn.total() / number == pytest.approx(cost, rel=0.05)


def test_a_sequential_count_is_of_what_was_drawn() -> None:
    """1 of 2 after the first wave, 1 of 4 after the second, 2 of 8, 0 of 16: never K where K were not drawn."""
    tape = {
        (0, 0): [W, C],
        (0, 1): [W, W, W, C],
        (0, 2): [W, W, W, T, U, C, C, W],
        (0, 3): [W] * 16,
    }
    found = spend(sequential, [Ending(5, right=True)], Tape(tape), 16)
    assert [(c.correct, c.total) for c in found.values() if c] == [(1, 2), (1, 4), (2, 6), (0, 16)]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(1, 14), st.booleans(), st.integers(0, 13)), max_size=6), st.integers(1, 20))
def test_bisect_finds_the_first_zero_step(shapes: list[tuple[int, bool, int]], k: int) -> None:
    """Under monotone truth (all successes before the first zero step, none from it on): its labels are the truth; it
    probes at most ⌈log2 S⌉ steps of a wrong response, K continuations each, and no step of a right one."""
    responses = [Ending(steps, right) for steps, right, _ in shapes]
    zero = [steps if right else min(first, steps - 1) for steps, right, first in shapes]
    truth = {(r, s): s < zero[r] for r, response in enumerate(responses) for s in range(response.num_steps - 1)}
    coins = Coins({place: float(right) for place, right in truth.items()})
    assert hard(spend(bisect, responses, coins, k)) == truth
    for r, response in enumerate(responses):
        drawn = {place: number for place, number in coins.drawn.items() if place[0] == r}
        assert len(drawn) <= (0 if response.right else math.ceil(math.log2(response.num_steps)))
        assert all(number == (min(2, k) if truth[place] else k) for place, number in drawn.items())


@settings(max_examples=300)
@given(st.integers(1, 14), st.booleans(), st.integers(1, 8), st.integers(0, 2**31), st.sampled_from([0.0, 0.3]))
def test_bisect_labels_every_step_with_the_count_that_decides_it(
    steps: int, right: bool, k: int, seed: int, trouble: float
) -> None:
    """With any probabilities: + up to the first zero step and − from there; what was drawn decides what was not; and a
    response whose probe the verifier says nothing of is left without labels, not called wrong."""
    rng = random.Random(seed)
    coins = Coins({(0, step): rng.choice([0.0, 0.2, 1.0]) for step in range(steps)}, seed, trouble)
    found = spend(bisect, [Ending(steps, right)], coins, k)
    if None in found.values():
        assert trouble
        assert not right
        return
    counts = [found[0, step] for step in range(steps - 1)]
    labels = [c.correct > 0 for c in counts if c]
    assert labels == sorted(labels, reverse=True)
    drawn = {step for _, step in coins.drawn}
    first_zero = labels.index(False) if False in labels else steps - 1
    assert right or first_zero == steps - 1 or first_zero in drawn
    for step, c in enumerate(counts):
        if step not in drawn:
            assert c == (PROVEN if labels[step] else counts[first_zero])
        elif labels[step]:
            assert step < first_zero


def test_a_step_proven_by_a_later_success_needs_no_draw() -> None:
    """Nine steps, zero from the sixth on. Probes: step 4 (+ at once), 6 (−), 5 (−, the first zero step). Steps 0 to 3
    are proven by step 4's success; 7, after the first zero step, carries its 0 of 8."""
    coins = Coins({(0, step): float(step < 5) for step in range(8)})
    found = spend(bisect, [Ending(9, right=False)], coins, 8)
    assert coins.drawn == {(0, 4): 2, (0, 6): 8, (0, 5): 8}
    zero = MonteCarloCount(0, 8)
    assert [found[0, step] for step in range(8)] == [*[PROVEN] * 4, MonteCarloCount(2, 2), zero, zero, zero]


def test_a_right_response_proves_itself_under_bisect_only() -> None:
    """Under `full` and `sequential` the response's own success is no draw: it would bias labels upward."""
    zero = {(0, step): 0.0 for step in range(4)}
    for name, budget in BUDGETS.items():
        coins = Coins(zero)
        labels = hard(spend(budget, [Ending(5, right=True)], coins, 4))
        assert set(labels.values()) == {name == "bisect"}
        assert coins.drawn.total() == (0 if name == "bisect" else 16)


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=4), st.integers(1, 9), st.integers(0, 2**31))
def test_no_budget_draws_more_than_it_says(shapes: list[tuple[int, bool]], k: int, seed: int) -> None:
    responses = [Ending(*shape) for shape in shapes]
    rng = random.Random(seed)
    for budget in BUDGETS.values():
        coins = Coins({(r, s): rng.random() ** 3 for r in range(4) for s in range(9)}, seed)
        spend(budget, responses, coins, k)
        assert coins.drawn.total() <= most(budget, responses, k)
        assert all(number <= k for number in coins.drawn.values())
    assert most(full, responses, k) == k * sum(steps - 1 for steps, _ in shapes)


@pytest.mark.parametrize("name", list(BUDGETS))
def test_no_step_to_continue_is_no_draw(name: str) -> None:
    def never(places: Sequence[Place], n: int) -> list[list[Verdict]]:
        assert not places
        return []

    assert spend(BUDGETS[name], [], never, 4) == {}
    assert spend(BUDGETS[name], [Ending(1, right=True), Ending(1, right=False)], never, 4) == {}


def test_an_unknown_budget_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown budget 'half': expected one of full, sequential, bisect"):
        budget_named("half", 4)


def test_count() -> None:
    assert count([C, W, U, U]) == MonteCarloCount(1, 2)
    assert count([U, U]) is None
    assert count([T, E]) is None
    assert count([]) is None
    assert count([T, C]) == MonteCarloCount(1, 1)
