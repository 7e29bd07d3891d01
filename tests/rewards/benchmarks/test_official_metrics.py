"""Golden values of the official metrics by hand, and against a simulation of single choices."""

import random
from math import prod

import pytest

from mpo.multimodal.errors import DataError
from rewards.benchmarks.metrics import METRICS, accuracy, loose, strict, worst_case
from rewards.types import Problem


def variant(seed, number):
    return Problem(f"{seed}-{number}", "?", meta={"qid": seed, "varid": number})


def part(unit, key):
    return Problem(f"{unit}-{key}", "?", meta={"ID": unit, "key": key})


TWO = [part("a", "2steps_1"), part("a", "2steps_2"), part("a", "2steps_multi")]
THREE = [part("b", "3steps_1"), part("b", "3steps_2"), part("b", "3steps_3"), part("b", "3steps_multi")]


def mean(units):
    return sum(units.scores.values()) / len(units.scores)


def test_accuracy_is_the_mean_over_problems():
    assert mean(accuracy([Problem("a", "?"), Problem("b", "?")], [1.0, 0.0])) == 0.5


def test_worst_case_needs_every_variant():
    """Two seeds of three variants: the first is right on all of them, the second on two."""
    problems = [variant(seed, number) for seed in (1, 2) for number in (1, 2, 3)]
    assert worst_case(problems, [1, 1, 1, 1, 1, 0]).scores == {"1": 1, "2": 0}
    assert worst_case(problems, [0.5, 0.5, 1, 1, 1, 0.8]).scores == {"1": 0.25, "2": 0.8}


def test_a_seed_that_lacks_a_variant_counts_neither_way():
    problems = [variant(1, 1), variant(1, 2), variant(2, 1)]
    units = worst_case(problems, [1, 1, 1])
    assert (dict(units.scores), units.left_out) == ({"1": 1}, 1)


@pytest.mark.parametrize(
    ("right", "strictly", "loosely"),
    [  # sub-problems and the composed one; the four conditions of We-Math, strict and loose
        ((1, 1, 1), 1.0, 1.0),  # complete mastery
        ((1, 1, 0), 0.5, 0.5),  # inadequate generalization
        ((1, 0, 0), 0.0, 0.0),  # insufficient knowledge
        ((0, 0, 0), 0.0, 0.0),
        ((1, 0, 1), 0.0, 1.0),  # rote memorization if strict, mastery if loose
        ((0, 0, 1), 0.0, 0.0),  # rote memorization
    ],
)
def test_we_math_scores_the_four_conditions(right, strictly, loosely):
    assert mean(strict(TWO, right)) == strictly
    assert mean(loose(TWO, right)) == loosely


def test_we_math_of_three_steps():
    assert mean(strict(THREE, [1, 1, 1, 0])) == 0.5
    assert mean(strict(THREE, [1, 1, 0, 1])) == 0.0
    assert strict([*TWO, *THREE], [1] * 7).scores == {"a": 1.0, "b": 1.0}
    assert mean(strict([*TWO, *THREE], [1, 1, 0, 1, 1, 0, 1])) == 0.25


def test_the_official_formula_of_counts_agrees():
    """(N − ½·IG − RM − IK) / N as the official code counts it, for every combination of two-step answers."""
    for one in (0, 1):
        for two in (0, 1):
            for whole in (0, 1):
                generalization = one and two and not whole
                insufficient = not (one and two) and not whole
                rote_strict, rote_loose = (not (one and two) and whole), (not one and not two and whole)
                assert mean(strict(TWO, [one, two, whole])) == 1 - generalization / 2 - insufficient - rote_strict
                assert mean(loose(TWO, [one, two, whole])) == 1 - generalization / 2 - insufficient - rote_loose


@pytest.mark.parametrize("name", ["worst case", "strict", "loose"])
def test_the_expectation_is_the_mean_over_independent_choices(name):
    problems = TWO + THREE if name != "worst case" else [variant(s, v) for s in (1, 2) for v in (1, 2, 3)]
    chances = [0.9, 0.6, 0.7, 0.8, 0.5, 0.9, 0.4][: len(problems)]
    rng = random.Random(0)
    drawn = [mean(METRICS[name](problems, [float(rng.random() < p) for p in chances])) for _ in range(20_000)]
    assert mean(METRICS[name](problems, chances)) == pytest.approx(sum(drawn) / len(drawn), abs=0.01)
    if name == "worst case":
        assert mean(worst_case(problems, chances)) == pytest.approx((prod(chances[:3]) + prod(chances[3:6])) / 2)


def test_an_incomplete_composition_is_left_out():
    units = strict(TWO + THREE[:2], [1, 1, 1, 1, 1])
    assert (dict(units.scores), units.left_out) == ({"a": 1.0}, 2)


@pytest.mark.parametrize("meta", [{}, {"ID": "a"}, {"ID": "a", "key": "multi"}, {"ID": "a", "key": "xsteps_1"}])
def test_rows_without_the_keys_are_refused_by_name(meta):
    with pytest.raises(DataError, match="problem 'p'"):
        strict([Problem("p", "?", meta=meta)], [1.0])
    with pytest.raises(DataError, match="qid"):
        worst_case([Problem("p", "?", meta=meta)], [1.0])
