"""What every PRM with a `PRMFormat` does in the same way, wherever its model runs: cut, merge, score, rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from mpo.multimodal.errors import DataError
from rewards.prm.formats import PRMFormat
from rewards.prm.rendering import forbidden_in
from rewards.scoring.aggregation import aggregate
from rewards.scoring.groups import scores_or_raise
from rewards.steps import merge_to_at_most, merged_size, scored_steps, steps_of
from rewards.thoughts import scored_spans
from rewards.types import Problem, Step, StepScores

Solution = tuple[Problem, tuple[Step, ...]]


class StepPRM(ABC):
    """Scores every step of a solution with P(correct up to this step).

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

    def score(self, problem: Problem, solutions: Sequence[str]) -> list[StepScores]:
        """Step scores of each solution of one problem, in order."""
        return self.score_many([(problem, solution) for solution in solutions])

    def score_many(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores]:
        """Step scores of many solutions of many problems, in order; `describe` names a progress bar.

        Raises:
            DataError: a solution has no scores.
        """
        return [scores_or_raise(outcome) for outcome in self.outcomes(items, describe=describe)]

    def outcomes(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores | DataError]:
        """`score_many` with the error of a solution in its place."""
        found = self._outcomes([(problem, self.steps(text)) for problem, text in items], describe)
        return [one if isinstance(one, DataError) else replace(one, part=self.part) for one in found]

    def score_steps(self, items: Sequence[tuple[Problem, Sequence[str]]], *, describe: str = "") -> list[StepScores]:
        """One score for each given step, where a text need not be split: the steps of a benchmark or of a person.

        More steps than `max_steps` are merged, and each member of a merged step gets its score: P(correct up to the
        merged step's end). An error then lowers every member of its group, those before it included.

        Args:
            items: problems with the texts of a solution's steps, in order.
            describe: names a progress bar.
        """
        limit = self.format.max_steps
        merged = [(problem, merge_to_at_most(steps_of(texts), max_steps=limit)) for problem, texts in items]
        scores = [scores_or_raise(outcome) for outcome in self._outcomes(merged, describe)]
        sizes = [merged_size(len(texts), max_steps=limit) for _, texts in items]
        return [
            _spread(found, [i // size for i in range(len(texts))])
            for (_, texts), found, size in zip(items, scores, sizes, strict=True)
        ]

    def select_best_response(
        self, problem: Problem, responses: Sequence[str], *, how: str = "mean", return_scores: bool = False
    ) -> list[str] | list[tuple[str, float]]:
        """Responses, best first; with `return_scores`, `(response, score)` pairs.

        Args:
            problem: what was asked.
            responses: candidate answers.
            how: aggregation of step scores, a name of `rewards.scoring.aggregation.AGGREGATIONS`.
            return_scores: give the scores too.
        """
        rewards = [aggregate(scores, how=how) for scores in self.score(problem, responses)]
        ranked = sorted(zip(responses, rewards, strict=True), key=lambda pair: -pair[1])
        return ranked if return_scores else [response for response, _ in ranked]

    @abstractmethod
    def _outcomes(self, items: Sequence[Solution], describe: str) -> Sequence[StepScores | DataError]:
        """One score per step of each solution, in order, or why there are none."""


def by_problem(items: Sequence[Solution]) -> Iterator[tuple[Problem, list[tuple[Step, ...]]]]:
    """Neighbouring solutions of one problem together; one id with two images is two problems."""
    for _, group in groupby(items, key=lambda item: (item[0].id, item[0].question, item[0].images)):
        solutions = list(group)
        yield solutions[0][0], [steps for _, steps in solutions]


def _spread(scores: StepScores, places: Sequence[int]) -> StepScores:
    """The score of each place, with its interval."""
    bounds = None if scores.bounds is None else tuple(scores.bounds[place] for place in places)
    return StepScores(tuple(scores.values[place] for place in places), bounds)
