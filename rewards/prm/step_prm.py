"""What every PRM with a `PRMFormat` does in the same way, wherever its model runs: cut, merge, score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from mpo.multimodal.errors import DataError
from rewards.prm.formats import PRMFormat
from rewards.prm.rendering import forbidden_in
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.steps import merge_to_at_most, merged_size, scored_steps, steps_of
from rewards.types import Problem, Step, StepScores
from rewards.verifying.thoughts import scored_spans

CutResponse = tuple[Problem, tuple[Step, ...]]


class StepPRM(ProcessRewardModel):
    """A PRM that is asked as a `PRMFormat` says.

    Args:
        processor: the PRM's processor.
        prm_format: how it was trained to be asked.

    Attributes:
        part: of a response whose steps are scored, where the policy thought first: "solution" (default), "thought" or
            "both"; the PRM reads nothing else of it.
    """

    part = "solution"

    def __init__(self, processor: Any, prm_format: PRMFormat) -> None:
        self.processor, self.format = processor, prm_format

    def steps(self, text: str) -> tuple[Step, ...]:
        """The steps that this PRM scores: split at blank lines, merged to at most `max_steps`."""
        return scored_steps(text, max_steps=self.format.max_steps, part=self.part)

    def unscorable(self, text: str) -> str | None:
        """Why a response cannot be scored, or `None`: nothing of the part is there, or a control token is in it."""
        if not text.strip():
            return "empty"
        spans = scored_spans(text, self.part)
        if not spans:
            return "no thought" if self.part == "thought" else "no solution after its thought"
        own = "".join(text[start:end] for start, end in spans)
        return "control token" if forbidden_in(self.processor, self.format, own) else None

    def outcomes(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores | DataError]:
        """Step scores of each response, or in its place why it has none; in order."""
        found = self._readable(
            [(problem, (text,)) for problem, text in items], lambda own: self.steps(own[0]), describe
        )
        return [one if isinstance(one, DataError) else replace(one, part=self.part) for one in found]

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
            outcome if isinstance(outcome, DataError) else _for_each(outcome, len(texts), limit)
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


def _for_each(scores: StepScores, count: int, max_steps: int) -> StepScores:
    """The scores of `count` steps that were merged to at most `max_steps`, each with its interval and its spread."""
    places = [index // merged_size(count, max_steps=max_steps) for index in range(count)]
    bounds = None if scores.bounds is None else tuple(scores.bounds[place] for place in places)
    spreads = None if scores.spreads is None else tuple(scores.spreads[place] for place in places)
    return StepScores(tuple(scores.values[place] for place in places), bounds, spreads=spreads)
