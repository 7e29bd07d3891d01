"""What scores the steps of responses, wherever its model runs: the abstract `ProcessRewardModel`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from mpo.multimodal.errors import DataError
from rewards.scoring.aggregation import aggregate
from rewards.steps import BLANK_LINE, split_on_blank_lines
from rewards.types import Aggregator, Problem, StepScores


class ProcessRewardModel(ABC):
    r"""Gives each step of a response P(correct up to this step); a PRM writes `outcomes`.

    Example:
        >>> class Short(ProcessRewardModel):
        ...     def outcomes(self, items, *, describe=""):
        ...         return [StepScores(tuple(1 / len(step) for step in text.split("\n\n"))) for _, text in items]
        >>> Short().score(Problem("p", "?"), ["a\n\nbb", "cccc"])
        [StepScores(values=(1.0, 0.5), bounds=None), StepScores(values=(0.25,), bounds=None)]
        >>> Short().select_best_response(Problem("p", "?"), ["cccc", "a\n\nbb"])
        ['a\n\nbb', 'cccc']
    """

    @abstractmethod
    def outcomes(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> Sequence[StepScores | DataError]:
        """Step scores of each response, or in its place why it has none; in order.

        Args:
            items: problems with one response each, neighbours may have one problem in common.
            describe: names a progress bar; empty for none.
        """

    def unscorable(self, text: str) -> str | None:
        """Why a response cannot be scored, in a few words and without asking the model; `None` if it can be tried."""
        return None

    def score_steps(
        self, items: Sequence[tuple[Problem, Sequence[str]]], *, describe: str = ""
    ) -> Sequence[StepScores | DataError]:
        """One score for each given step, where a text need not be split: the steps of a benchmark or of a person.

        Here the steps are joined by blank lines, with blank lines inside a step closed up, and the PRM must give one
        score per step; a PRM that can be given steps does better.

        Args:
            items: problems with the texts of a response's steps, in order.
            describe: names a progress bar; empty for none.
        """
        joined = [(problem, BLANK_LINE.join(map(_closed_up, texts))) for problem, texts in items]
        found = self.outcomes(joined, describe=describe)
        return [_one_per_step(outcome, len(texts)) for outcome, (_, texts) in zip(found, items, strict=True)]

    def score(self, problem: Problem, responses: Sequence[str]) -> list[StepScores]:
        """Step scores of each response to one problem, in order.

        Raises:
            DataError: a response has no scores.
        """
        return self.score_many([(problem, response) for response in responses])

    def score_many(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores]:
        """Step scores of many responses to many problems, in order; `describe` names a progress bar.

        Raises:
            DataError: a response has no scores.
        """
        return [_or_raise(outcome) for outcome in self.outcomes(items, describe=describe)]

    def select_best_response(
        self,
        problem: Problem,
        responses: Sequence[str],
        *,
        how: str | Aggregator = "mean",
        return_scores: bool = False,
    ) -> list[str] | list[tuple[str, float]]:
        """Responses, best first; with `return_scores`, `(response, score)` pairs.

        Args:
            problem: what was asked.
            responses: to choose from.
            how: aggregation of step scores, a name of `rewards.scoring.aggregation.AGGREGATIONS` or a callable.
            return_scores: give the scores too.

        Raises:
            DataError: a response has no scores.
        """
        rewards = [aggregate(scores, how=how) for scores in self.score(problem, responses)]
        ranked = sorted(zip(responses, rewards, strict=True), key=lambda pair: -pair[1])
        return ranked if return_scores else [response for response, _ in ranked]


def _closed_up(step: str) -> str:
    return "\n".join(part.text for part in split_on_blank_lines(step))


def _one_per_step(outcome: StepScores | DataError, steps: int) -> StepScores | DataError:
    if isinstance(outcome, DataError) or len(outcome.values) == steps:
        return outcome
    return DataError(
        f"expected one score for each of {steps} steps, got {len(outcome.values)}",
        reason="the PRM gave another number of scores",
    )


def _or_raise(outcome: StepScores | DataError) -> StepScores:
    if isinstance(outcome, DataError):
        raise outcome
    return outcome
