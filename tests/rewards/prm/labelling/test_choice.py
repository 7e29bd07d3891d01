"""Which problems are labelled: each rule by hand, as many as the control, and what cannot be chosen."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError, DataError
from rewards.prm.labelling.choice import RULES, check_choice, choose_problems
from rewards.prm.labelling.responses import choose_responses
from rewards.types import Completion, Problem, Rollout, RolloutGroup, StepScores, Verdict

C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE


def group_of(name: str, *rows: tuple[Verdict, tuple[float, ...] | None]) -> RolloutGroup:
    """Rows of a verdict and the spreads of its steps, None for a response that was not scored with spreads."""
    rollouts = []
    for index, (verdict, spreads) in enumerate(rows):
        scores = StepScores((0.5,) * len(spreads), spreads=spreads) if spreads else StepScores((0.5, 0.5))
        rollouts.append(Rollout(Completion(f"{name} {index}"), verdict, scores, 0.5))
    return RolloutGroup(Problem(name, "?"), tuple(rollouts))


GROUPS = [
    group_of("easy", (C, (0.3, 0.1)), (C, (0.3,)), (C, (0.2,)), (W, (0.2,))),  # ¾ right; mean spread 0.22
    group_of(
        "even", (C, (0.1,)), (W, (0.1,)), (U, (0.45,))
    ),  # ½ of what was decided; 0.1, the unread one is not labelled
    group_of("hard", (W, (0.05,)), (W, (0.05,)), (W, (0.25, 0.25))),  # none right; 0.15
    group_of("old", (C, None), (W, None), (W, None)),  # ⅓ right; no spread
]


def chosen(rule: str, fraction: float, seed: int = 0, *, mixed_only: bool = False) -> set[str]:
    responses, _ = choose_responses(GROUPS, None, responses=8, mixed_only=mixed_only, seed=0)
    found, choice = choose_problems(GROUPS, responses, rule=rule, fraction=fraction, seed=seed)
    assert (choice.chosen, choice.of, choice.rule) == (len(found), len(responses), rule)
    return {group.problem.id for group in found}


def test_each_rule_by_hand() -> None:
    assert [chosen("middle", fraction) for fraction in (0.25, 0.5, 0.75)] == [
        {"even"}, {"even", "old"}, {"even", "old", "easy"},
    ]  # fmt: skip
    assert [chosen("uncertain", fraction) for fraction in (0.25, 0.5)] == [{"easy"}, {"easy", "hard"}]
    assert chosen("mixed", 0.75) == {"easy", "even", "old"}
    assert chosen("uncertain", 0.01) == {"easy"}  # at least one
    assert chosen("middle", 0.34, mixed_only=True) == {"even"}


def test_the_control_takes_as_many_of_the_same_and_its_seed_decides() -> None:
    drawn = [chosen("random", 0.5, seed) for seed in range(20)]
    assert {len(some) for some in drawn} == {2}
    assert set().union(*drawn) == {"easy", "even", "hard", "old"}
    assert drawn == [chosen("random", 0.5, seed) for seed in range(20)]
    among_equals = [chosen("mixed", 0.25, seed) for seed in range(20)]
    assert set().union(*among_equals) == {"easy", "even", "old"}


def test_what_lacks_a_spread_is_counted_and_never_chosen_as_if_it_were_sure() -> None:
    responses, _ = choose_responses(GROUPS, None, responses=8, mixed_only=False, seed=0)
    found, choice = choose_problems(GROUPS, responses, rule="uncertain", fraction=0.75, seed=0)
    assert [group.problem.id for group in found] == ["easy", "even", "hard"]
    assert (choice.usable, choice.steps_without_spread) == (3, 6)
    message = "choose=uncertain: 4 of 4 problems are asked for, and 3 of them have a step with a spread"
    with pytest.raises(DataError, match=f"{message}.*; lower choose_fraction to 0.75"):
        choose_problems(GROUPS, responses, rule="uncertain", fraction=1.0, seed=0)
    with pytest.raises(DataError, match=r"0 of them have a step with a spread.*; choose by another rule"):
        choose_problems(GROUPS[3:], responses[3:], rule="uncertain", fraction=1.0, seed=0)


@given(seed=st.integers(0, 1000), number=st.integers(1, 30), fraction=st.floats(0.01, 1.0))
def test_every_rule_takes_as_many_and_keeps_their_order(seed: int, number: int, fraction: float) -> None:
    rng = random.Random(seed)
    groups = [
        group_of(f"p{i}", *((rng.choice([C, W]), (rng.uniform(0, 0.5),)) for _ in range(4)), (C, (0.1,)), (W, (0.1,)))
        for i in range(number)
    ]
    sizes = set()
    for rule in RULES:
        found, choice = choose_problems(groups, groups, rule=rule, fraction=fraction, seed=seed)
        sizes.add(len(found))
        assert [group for group in groups if group in found] == found
        assert choice.of == number
    assert len(sizes) == 1
    assert sizes.pop() == pytest.approx(max(1, fraction * number), abs=0.5 + 1e-9)


def test_a_fraction_that_an_error_names_fits() -> None:
    for some in range(1, 12):
        groups = [group_of(f"p{i}", (C, (0.1,) if i < some else None), (W, None)) for i in range(12)]
        with pytest.raises(DataError) as caught:
            choose_problems(groups, groups, rule="uncertain", fraction=1.0, seed=0)
        fits = float(str(caught.value).rsplit(" ", 1)[1])
        assert len(choose_problems(groups, groups, rule="uncertain", fraction=fits, seed=0)[0]) == some


def test_settings_that_cannot_be() -> None:
    for rule, fraction in (("all", 0.5), ("middle", None), ("random", 0.0), ("mixed", 1.5)):
        with pytest.raises(ConfigError, match=f"choose={rule} and choose_fraction={fraction}: expected a share"):
            check_choice(rule, fraction)
    with pytest.raises(ConfigError, match="unknown rule 'best'"):
        check_choice("best", 0.5)
    check_choice("all", None)
