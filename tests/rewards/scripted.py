"""A generator and a PRM that do as they are told: real subclasses of the two, over a list or a rule."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence

from mpo.multimodal.errors import DataError
from rewards.sampling.generator import Generator, Sample
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.types import Completion, FinishReason, Problem, StepScores


class ListGenerator(Generator):
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


class RulePRM(ProcessRewardModel):
    """Scores each blank-line step of a text by a rule."""

    def __init__(self, rule: Callable[[str], float]) -> None:
        self.rule = rule
        self.scored: list[str] = []

    def outcomes(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores | DataError]:
        self.scored.extend(text for _, text in items)
        return [StepScores(tuple(self.rule(step) for step in text.split("\n\n"))) for _, text in items]
