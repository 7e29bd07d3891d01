"""Votes count meanings: planted spellings change nothing, and classes are an equivalence, whatever a verifier says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.choosing.adaptive import MAY_CHANGE, replay
from rewards.choosing.curves import vote_at_k
from rewards.choosing.evaluation import accuracy_at_k, distinct_at_k
from rewards.choosing.selection import CHOICES
from rewards.types import NO_VOTE, Completion, Problem, Rollout, RolloutGroup, Verdict
from rewards.verifying.equality_classes import EqualityClasses, numbered, votes_of, with_votes
from rewards.verifying.reading import Answer, Kind, read_answer

OPTIONS = {"choices": ["8 m", "12 m", "16 m", "20 m"]}
SPELLINGS = {  # meaning → spellings
    "letters": {
        "B": ["B", "(B)", r"\text{B}", "B. 12 m", "**B**", "12 m", r"\boxed{B}"],
        "C": ["C", "(c)", "C) 16 m", "Option C"],
        "A": ["A", "8 m"],
    },
    "numbers": {
        "1/2": ["1/2", "0.5", r"\frac12", r"$\dfrac{1}{2}$", ".5", r"\(\frac{1}{2}\)", "½"],
        "3": ["3", "3.0", "$3$", "three", r"\boxed{3}"],
        "7": ["7", "7.", r"\(7\)"],
    },
    "texts": {
        "the Nile": ["the Nile", "Nile", "nile.", "**The Nile**"],
        "Danube": ["Danube", "the danube"],
    },
}
PROBLEMS = {
    "letters": Problem("letters", "Which?", answer="B", meta=OPTIONS),
    "numbers": Problem("numbers", "How many?", answer="0.5"),
    "texts": Problem("texts", "Which river?", answer="Nile"),
}


def said(answer: str) -> str:
    return f"Let me see.\n\nFinal answer: {answer}"


def group_of(problem: Problem, answers: Sequence[str], right: str, spellings: dict[str, list[str]]) -> RolloutGroup:
    of = {spelling: meaning for meaning, all_of_it in spellings.items() for spelling in all_of_it}
    rollouts = tuple(
        Rollout(
            Completion(said(answer), num_tokens=10),
            Verdict.CORRECT if of[answer] == right else Verdict.WRONG,
            reward=0.5,
        )
        for answer in answers
    )
    return RolloutGroup(problem, rollouts)


@pytest.mark.parametrize("kind", SPELLINGS)
@pytest.mark.parametrize("with_reference", [True, False])
def test_spellings_of_one_meaning_are_one_class(kind: str, with_reference: bool) -> None:
    problem = PROBLEMS[kind]
    if not with_reference:
        problem = Problem(problem.id, problem.question, meta=problem.meta)
    meanings = [(meaning, spelling) for meaning, all_of_it in SPELLINGS[kind].items() for spelling in all_of_it]
    order = np.random.default_rng(0).permutation(len(meanings))
    numbers = EqualityClasses(problem).numbers([said(meanings[i][1]) for i in order])
    assert NO_VOTE not in numbers
    of_meaning = {}
    for i, number in zip(order, numbers, strict=True):
        assert of_meaning.setdefault(meanings[i][0], number) == number, meanings[i]
    assert len(set(of_meaning.values())) == len(SPELLINGS[kind])


@pytest.mark.parametrize("kind", SPELLINGS)
def test_planted_spellings_change_no_vote(kind: str) -> None:
    """Every selector, adaptive N and the number of distinct answers say of many spellings what they say of one."""
    rng, spellings = np.random.default_rng(1), SPELLINGS[kind]
    for _ in range(12):
        meanings = rng.choice(list(spellings), 6).tolist()
        plain = group_of(PROBLEMS[kind], [spellings[m][0] for m in meanings], next(iter(spellings)), spellings)
        dressed = group_of(
            PROBLEMS[kind], [str(rng.choice(spellings[m])) for m in meanings], next(iter(spellings)), spellings
        )
        assert votes_of(plain) == votes_of(dressed)
        for name in CHOICES:
            assert CHOICES[name](plain) == CHOICES[name](dressed)
            assert MAY_CHANGE[name](plain, 4) == MAY_CHANGE[name](dressed, 4)
        for k in (2, 6):
            assert accuracy_at_k(plain, "majority", k) == accuracy_at_k(dressed, "majority", k)
            assert accuracy_at_k(plain, "weighted_vote", k) == accuracy_at_k(dressed, "weighted_vote", k)
            assert distinct_at_k(plain, k) == distinct_at_k(dressed, k)
        assert replay([plain], 6, selector="majority") == replay([dressed], 6, selector="majority")


def test_majority_at_8_of_400_problems_does_not_depend_on_spelling() -> None:
    """pass@1 0.5, uniform spellings: as text the vote loses; by meaning it is the vote of uniform texts, exactly."""
    rng, spellings = np.random.default_rng(2), SPELLINGS["letters"]
    by_meaning, uniform, by_text = [], [], []
    for index in range(400):
        problem = Problem(f"p{index}", "Which?", answer="B", meta=OPTIONS)
        meanings = rng.choice(["B", "C", "A"], 8, p=[0.5, 0.3, 0.2]).tolist()
        plain = group_of(problem, [spellings[m][0] for m in meanings], "B", spellings)
        dressed = group_of(problem, [str(rng.choice(spellings[m])) for m in meanings], "B", spellings)
        correct = [rollout.verdict is Verdict.CORRECT for rollout in dressed.rollouts]
        texts = [rollout.completion.text for rollout in dressed.rollouts]
        uniform.append(accuracy_at_k(plain, "majority", 8))
        by_meaning.append(accuracy_at_k(dressed, "majority", 8))
        by_text.append(vote_at_k(texts, [1.0] * 8, correct, 8, seed="x"))
    assert by_meaning == uniform
    assert np.mean(by_text) < np.mean(by_meaning) - 0.05


def test_what_is_unparsable_does_not_vote() -> None:
    rollouts = tuple(
        Rollout(Completion(said(text)), verdict)
        for text, verdict in [("9", Verdict.UNPARSABLE), ("9", Verdict.UNPARSABLE), ("7", Verdict.CORRECT)]
    )
    group = with_votes(RolloutGroup(Problem("p", "?", answer="7"), rollouts))
    assert [rollout.vote for rollout in group.rollouts] == [NO_VOTE, NO_VOTE, 0]
    assert CHOICES["majority"](group) == 2


def test_stored_votes_are_used_and_a_part_of_them_is_not() -> None:
    """A rollout that came later, without a number, would vote for nothing: then all are numbered anew."""
    group = RolloutGroup(Problem("p", "?"), tuple(Rollout(Completion(said("7")), vote=vote) for vote in (5, 3)))
    assert votes_of(group) == (5, 3)
    later = RolloutGroup(group.problem, (*group.rollouts, Rollout(Completion(said("7")))))
    assert votes_of(later) == (0, 0, 0)


class Tolerant:
    """Equal within 1: neither transitive nor, for an odd left side, symmetric."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, problem: Problem, text: str) -> Verdict:
        return Verdict.WRONG

    def answer(self, problem: Problem, text: str) -> Answer | None:
        return read_answer(text, Kind.NUMBER)

    def equal(self, problem: Problem, a: Answer, b: Answer) -> bool | None:
        self.asked += 1
        left, right = int(a.value), int(b.value)
        return None if left == 9 else abs(left - right) <= 1 and not (left % 2 and left < right)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(0, 60))
def test_classes_are_an_equivalence_with_bounded_comparisons(values: list[int], most: int) -> None:
    verifier = Tolerant()
    classes = EqualityClasses(Problem("p", "?"), verifier, max_comparisons=most)
    numbers = classes.numbers([said(str(value)) for value in values])
    assert verifier.asked == classes.comparisons <= most
    of_value: dict[int, int] = {}
    for value, number in zip(values, numbers, strict=True):  # a partition: one class for one value, however often
        assert of_value.setdefault(value, number) == number
    assert list(dict.fromkeys(numbers)) == list(range(len(set(numbers))))
    assert numbered(RolloutGroup(Problem("p", "?"), ()), classes).rollouts == ()
