"""The pessimistic selector: its formula against derivatives and simulation, its row, and what lacks spreads."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError, DataError
from rewards.choosing.adaptive import best_may_change, replay
from rewards.choosing.best_of_n import BestOfN
from rewards.choosing.evaluation import OF_SPREADS, SELECTORS, accuracy_at_k, evaluate
from rewards.choosing.lower_bound import SPREADS, LowerBound, spread_of
from rewards.choosing.selection import best_bound
from rewards.scoring.aggregation import AGGREGATIONS
from rewards.types import Completion, Problem, Rollout, RolloutGroup, StepScores, Verdict
from tests.rewards.choosing.definitions import brute_force
from tests.rewards.scripted import ListGenerator, RulePRM


def group_of(*rows: tuple[str, float | None, float | None], id: str = "p") -> RolloutGroup:
    """Rows of an answer, the score of its only step, and its spread; the answer 7 is right."""
    rollouts = []
    for answer, score, spread in rows:
        scores = None
        if score is not None:
            scores = StepScores((score,), spreads=None if spread is None else (spread,))
        verdict = Verdict.CORRECT if answer == "7" else Verdict.WRONG
        rollouts.append(Rollout(Completion(f"Final answer: {answer}", num_tokens=3), verdict, scores, score))
    return RolloutGroup(Problem(id, "?"), tuple(rollouts))


def test_it_takes_the_sure_one_before_the_better_one() -> None:
    """0.9 − 0.3 = 0.6 against 0.8 − 0.1 = 0.7; at z = ¼ 0.825 against 0.775."""
    group = group_of(("8", 0.9, 0.3), ("7", 0.8, 0.1))
    assert (best_bound(group), best_bound(group, bound=LowerBound(z=0.25))) == (1, 0)
    assert accuracy_at_k(group, "lower_bound", 2) == 1.0
    assert accuracy_at_k(group, "prm", 2) == 0.0
    by_mean = StepScores((0.5, 0.75), spreads=(0.25, 0.125))
    found = {how: LowerBound(how).of(Rollout(Completion("x"), step_scores=by_mean)) for how in AGGREGATIONS}
    # mean .625 − .1875; min .5 − .25; prod .375 − (.25·.75 + .125·.5); last, max .75 − .125
    assert found == {"mean": 0.4375, "min": 0.25, "prod": 0.125, "last": 0.625, "max": 0.625}


@given(
    values=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=6, unique_by=lambda value: round(value, 3)),
    seed=st.integers(0, 99),
)
def test_the_spread_is_the_sum_of_derivatives_times_spreads(values: list[float], seed: int) -> None:
    """Central differences of every aggregation; and at z = 0 the bound is the score."""
    rng = random.Random(seed)
    spreads = tuple(rng.uniform(0, 0.5) for _ in values)
    scores, step = StepScores(tuple(values), spreads=spreads), 1e-6
    assert SPREADS.keys() == AGGREGATIONS.keys()
    for how, aggregation in AGGREGATIONS.items():
        expected = 0.0
        for place, spread in enumerate(spreads):
            sides = [
                aggregation(StepScores((*values[:place], values[place] + sign * step, *values[place + 1 :])))
                for sign in (1, -1)
            ]
            expected += abs(sides[0] - sides[1]) / (2 * step) * spread
        assert spread_of(scores, how=how) == pytest.approx(expected, abs=1e-6), how
        rollout = Rollout(Completion("x"), step_scores=scores)
        assert LowerBound(how, 0.0).of(rollout) == aggregation(scores)


def test_no_dependence_between_steps_makes_the_mean_scatter_more() -> None:
    """Normal errors with the steps' spreads and correlations of 1, ½ and 0: at most the spread, and equal at 1."""
    spreads = np.array([0.1, 0.2, 0.3, 0.05])
    bound = spread_of(StepScores((0.5,) * 4, spreads=tuple(spreads.tolist())))
    assert bound is not None
    rng = np.random.default_rng(0)
    found = []
    for correlation in (1.0, 0.5, 0.0):
        common, own = rng.normal(size=(200_000, 1)), rng.normal(size=(200_000, 4))
        errors = spreads * (math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own)
        found.append(errors.mean(1).std())
    assert found[0] == pytest.approx(bound, rel=0.01)
    assert found[0] > found[1] > found[2]


def test_a_response_without_spread_is_counted_and_never_as_if_it_were_sure() -> None:
    """The highest score has no spread: with a spread of 0 it would win; the row is there since others have spreads."""
    group = group_of(("8", 0.95, None), ("7", 0.5, 0.4), ("9", None, None))
    results = evaluate([group], [1, 3])
    assert list(results["values"]["lower_bound"]["3"]) == [1.0]
    assert list(results["values"]["prm"]["3"]) == [0.0]
    assert results["lower_bound"] == {"how": "mean", "z": 1.0, "without_spread": 1}
    assert results["unscored"] == 1
    assert set(results["adaptive"]) >= {"prm", "lower_bound"}
    assert best_bound(group_of(("8", 0.9, None), ("7", 0.8, None))) == 0


def test_the_row_is_there_only_where_spreads_are() -> None:
    group = group_of(("8", 0.9, None), ("7", 0.8, None))
    results = evaluate([group], [1, 2])
    assert list(results["values"]) == [name for name in SELECTORS if name not in OF_SPREADS]
    assert "lower_bound" not in results
    assert "lower_bound" not in results["adaptive"]
    sure = group_of(("8", 0.9, 0.3), ("7", 0.8, 0.1))
    assert list(evaluate([sure], [1, 2])["values"]) == list(SELECTORS)
    assert "lower_bound" not in evaluate([sure], [1, 2], scored=False)["values"]


def test_its_column_is_the_mean_over_all_subsets() -> None:
    rng = random.Random(3)
    bound = LowerBound(z=2.0)
    for index in range(20):
        rows = [
            (rng.choice(["7", "8"]), score := rng.choice([0.25, 0.5, None]), score and rng.choice([0.125, 0.25, None]))
            for _ in range(5)
        ]
        group = group_of(*rows, ("7", 0.5, 0.125), id=f"p{index}")
        values = evaluate([group], [1, 3, 6], bound=bound)["values"]["lower_bound"]
        for k in (1, 3, 6):
            expected = brute_force(group, lambda some: best_bound(some, bound=bound), k)
            assert values[str(k)][0] == pytest.approx(expected), rows


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_adaptive_n_keeps_its_error_where_nothing_is_known(error: float) -> None:
    """Two answers as frequent as each other, scores and spreads that know nothing, a look after every sample."""
    rng = np.random.default_rng(7)
    groups = [
        group_of(
            *(
                (str(answer), float(np.clip(rng.normal(0.5, 0.15), 0.01, 1)), float(rng.uniform(0, 0.5)))
                for answer in rng.integers(7, 9, 16)
            ),
            id=f"p{index}",
        )
        for index in range(200)
    ]
    found = replay(groups, 16, selector="lower_bound", error=error, wave=1, orders=1)
    assert sum(found.changed) / 200 <= error + 2 * math.sqrt(error * (1 - error) / 200)
    by_score = replay(groups, 16, selector="lower_bound", error=error, orders=1, bound=LowerBound(z=0.0))
    assert by_score == replay(groups, 16, selector="prm", error=error, orders=1)
    assert by_score != replay(groups, 16, selector="lower_bound", error=error, orders=1)


def test_its_stopping_rule_reads_the_bound() -> None:
    """By score the better half {8, 8} agrees; by bound it is {7, 8}, which does not."""
    group = group_of(("8", 0.9, 0.4), ("8", 0.8, 0.1), ("7", 0.75, 0.0), ("7", 0.1, 0.0))
    assert best_may_change(group, 4) == (0 + 1) / 2 * 4 / 8
    assert best_may_change(group, 4, value_of=LowerBound().of) == (1 + 1) / 2 * 4 / 8


class Unsure(RulePRM):
    """Gives every step of a response that begins with "b" a large spread, and the others a small one."""

    def outcomes(self, items: Any, *, describe: str = "") -> Any:
        found = super().outcomes(items)
        return [
            replace(scores, spreads=(0.45 if text.startswith("b") else 0.0,) * len(scores.values))
            for scores, (_, text) in zip(found, items, strict=True)
        ]


def test_one_question_is_answered_by_it() -> None:
    """Scores a: ½, b: ¾; bounds ½ and 0.3 at z = 1, ½ and 0.525 at z = ½."""
    texts, rule = ["a", "b"], {"a": 0.5, "b": 0.75}
    for z, index in ((1.0, 0), (0.5, 1)):
        chooser = BestOfN(ListGenerator(texts), Unsure(rule.__getitem__), pessimism=z)
        assert chooser.answer(None, "?", 2, selector="lower_bound").index == index
        assert chooser.answer(None, "?", 2).index == 1
    waves = BestOfN(ListGenerator(texts * 4), Unsure(rule.__getitem__), wave=2)
    assert waves.answer(None, "?", 8, selector="lower_bound", error=0.5).may_change is not None
    plain = BestOfN(ListGenerator(texts), RulePRM(rule.__getitem__))
    with pytest.raises(DataError, match="the PRM tells no spread of its scores, which the selector lower_bound needs"):
        plain.answer(None, "?", 2, selector="lower_bound")
    own = BestOfN(ListGenerator(texts), Unsure(rule.__getitem__), aggregation=lambda scores: scores.values[0])
    with pytest.raises(ConfigError, match="lower_bound needs the name of an aggregation"):
        own.answer(None, "?", 2, selector="lower_bound")


def test_settings_that_cannot_be() -> None:
    for how, z in itertools.product(("mean", "median"), (-1.0, math.inf, math.nan, 1.0)):
        if (how, z) != ("mean", 1.0):
            with pytest.raises(ConfigError, match="expected a lower bound of mean, min, prod, last, max and a z"):
                LowerBound(how, z)
    with pytest.raises(ConfigError, match="unknown aggregation 'median'"):
        spread_of(StepScores((0.5,)), how="median")
