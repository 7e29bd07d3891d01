"""A generator and a PRM that do as they are told: real implementations of the two protocols, over a list or a rule."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence

from rewards.sampling.generator import Sample
from rewards.types import Completion, FinishReason, Problem, StepScores


class ListGenerator:
    """Gives sample i of every problem as `texts[i]`, counted in characters, and notes what was asked of it."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.asked: list[int] = []

    def draw(
        self,
        problems: Sequence[Problem],
        n: int,
        *,
        prefixes: Sequence[str] | None = None,
        seed: int,
        done: Container[tuple[int, int]] = frozenset(),
    ) -> Iterator[list[Sample]]:
        for place in range(len(problems)):
            missing = [index for index in range(n) if (place, index) not in done]
            self.asked.append(len(missing))
            for index in reversed(missing):  # any order is allowed
                text = self.texts[index]
                yield [Sample(place, index, seed, Completion(text, FinishReason.STOP, len(text)))]

    def generate(
        self, problems: Sequence[Problem], n: int, *, prefixes: Sequence[str] | None = None, seed: int
    ) -> list[list[Completion]]:
        raise NotImplementedError("these tests draw")


class RulePRM:
    """Scores each blank-line step of a text by a rule."""

    def __init__(self, rule: Callable[[str], float]) -> None:
        self.rule = rule
        self.scored: list[str] = []

    def score(self, problem: Problem, solutions: Sequence[str]) -> list[StepScores]:
        self.scored.extend(solutions)
        return [StepScores(tuple(self.rule(step) for step in text.split("\n\n"))) for text in solutions]
