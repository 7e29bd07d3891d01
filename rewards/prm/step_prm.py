"""What every PRM with a `PRMFormat` does in the same way, wherever its model runs: cut, merge, score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from mpo.multimodal.errors import DataError
from rewards.prm.formats import PRMFormat
from rewards.prm.rendering import forbidden_in
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.steps import merge_to_at_most, merged_size, split_on_blank_lines, steps_of
from rewards.types import Problem, Step, StepScores

CutResponse = tuple[Problem, tuple[Step, ...]]


class StepPRM(ProcessRewardModel):
    """A PRM that is asked as a `PRMFormat` says.

    Args:
        processor: the PRM's processor.
        prm_format: how it was trained to be asked.
    """

    def __init__(self, processor: Any, prm_format: PRMFormat) -> None:
        self.processor, self.format = processor, prm_format

    def steps(self, text: str) -> tuple[Step, ...]:
        """The steps that this PRM scores: split at blank lines, merged to at most `max_steps`."""
        return merge_to_at_most(split_on_blank_lines(text), max_steps=self.format.max_steps)

    def unscorable(self, text: str) -> str | None:
        """Why a response cannot be scored, or `None`: it is empty or contains a control token."""
        if not text.strip():
            return "empty"
        return "control token" if forbidden_in(self.processor, self.format, text) else None

    def outcomes(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores | DataError]:
        """Step scores of each response, or in its place why it has none; in order."""
        return self._readable([(problem, (text,)) for problem, text in items], lambda own: self.steps(own[0]), describe)

    def score_steps(
        self, items: Sequence[tuple[Problem, Sequence[str]]], *, describe: str = ""
    ) -> list[StepScores | DataError]:
        """One score for each given step.

        More steps than `max_steps` are merged, and each member of a merged step gets its score: P(correct up to the
        merged step's end). An error then lowers every member of its group, those before it included.
        """
        limit = self.format.max_steps
        found = self._readable(items, lambda own: merge_to_at_most(steps_of(own), max_steps=limit), describe)
        return [
            outcome if isinstance(outcome, DataError) else _spread(outcome, len(texts), limit)
            for outcome, (_, texts) in zip(found, items, strict=True)
        ]

    def _readable(
        self,
        items: Sequence[tuple[Problem, Sequence[str]]],
        cut: Callable[[Sequence[str]], tuple[Step, ...]],
        describe: str,
    ) -> list[StepScores | DataError]:
        """The model's scores of the responses all whose texts can be read; an error in the place of the others."""
        reasons = [next(filter(None, map(self.unscorable, texts)), None) for _, texts in items]
        readable = [(problem, cut(texts)) for (problem, texts), why in zip(items, reasons, strict=True) if why is None]
        found = iter(self._scores(readable, describe))
        return [
            next(found) if why is None else _unread(problem, texts, why)
            for (problem, texts), why in zip(items, reasons, strict=True)
        ]

    @abstractmethod
    def _scores(self, items: Sequence[CutResponse], describe: str) -> Sequence[StepScores | DataError]:
        """One score per step of each response, in order, or why there are none."""


def by_problem(items: Sequence[CutResponse]) -> Iterator[tuple[Problem, list[tuple[Step, ...]]]]:
    """Neighbouring responses to one problem together; one id with two images is two problems."""
    for _, group in groupby(items, key=lambda item: (item[0].id, item[0].question, item[0].images)):
        responses = list(group)
        yield responses[0][0], [steps for _, steps in responses]


def _unread(problem: Problem, texts: Sequence[str], why: str) -> DataError:
    start = " ".join(texts)[:60]
    return DataError(f"problem {problem.id!r}: no step can be scored ({why}) of the response {start!r}", reason=why)


def _spread(scores: StepScores, count: int, max_steps: int) -> StepScores:
    """The scores of `count` steps that were merged to at most `max_steps`, each with its interval."""
    places = [index // merged_size(count, max_steps=max_steps) for index in range(count)]
    bounds = None if scores.bounds is None else tuple(scores.bounds[place] for place in places)
    return StepScores(tuple(scores.values[place] for place in places), bounds)
