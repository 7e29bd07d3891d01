"""A limit on continuations: never passed whatever succeeds, used where it can be, and independent of other problems."""

from __future__ import annotations

import random
from functools import partial

import pytest

from mpo.multimodal.errors import DataError
from rewards.prm.labelling.budgets import BUDGETS
from rewards.prm.labelling.continuation_limit import within_limit
from rewards.prm.labelling.cost import most, most_only
from rewards.prm.labelling.monte_carlo import responses_of
from rewards.steps import split_on_blank_lines
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict

limited = partial(within_limit, splitter=split_on_blank_lines, num_continuations=4, seed=0)


def group(name: str, *steps: int) -> RolloutGroup:
    """Wrong responses with these numbers of steps."""
    texts = ["\n\n".join(f"{name} {number} {step}" for step in range(count)) for number, count in enumerate(steps)]
    return RolloutGroup(Problem(name, "?"), tuple(Rollout(Completion(text), Verdict.WRONG) for text in texts))


def cost(groups: list[RolloutGroup], budget: str) -> int:
    return most(BUDGETS[budget], [one.ending for one in responses_of(groups, split_on_blank_lines)], 4)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_most_of_what_is_taken_is_within_the_limit_and_nothing_more_would_fit(budget: str) -> None:
    rng = random.Random(1)
    groups = [group(f"p{number}", *(rng.randint(2, 9) for _ in range(3))) for number in range(30)]
    for limit in (70, 200, 555):
        taken = limited(groups, limit=limit, budget=budget)
        spent = cost(taken, budget)
        assert 0 < spent <= limit
        assert all(spent + cost([other], budget) > limit for other in groups if other not in taken)
        assert [one for one in groups if one in taken] == taken  # in their order
        estimate = most_only(taken, splitter=split_on_blank_lines, num_continuations=4, budget=budget)
        assert (estimate.at_most, estimate.sample) == (spent, 0)
        assert "measured" not in str(estimate)
    assert limited(groups, limit=cost(groups, budget), budget=budget) == groups


def test_the_order_is_by_seed_and_id_and_not_by_place() -> None:
    groups = [group(f"p{number}", 3, 3) for number in range(12)]
    names = {one.problem.id for one in limited(groups, limit=64)}
    assert len(names) == 4
    assert {one.problem.id for one in limited(groups[::-1], limit=64)} == names
    assert any({one.problem.id for one in limited(groups, limit=64, seed=seed)} != names for seed in range(1, 9))


def test_no_room_for_one_problem_is_an_error_and_nothing_to_continue_is_none() -> None:
    with pytest.raises(DataError, match="max_continuations=15: expected room for one problem at least, and the cheap"):
        limited([group("a", 3, 3), group("b", 9, 9)], limit=15)
    assert [one.problem.id for one in limited([group("a", 3, 3), group("b", 9, 9)], limit=16)] == ["a"]
    assert limited([], limit=1) == []
    alone = [group("a", 1, 1)]  # a response of one step has its verdict for a label
    assert limited(alone, limit=1) == alone
