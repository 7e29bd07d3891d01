"""Monte-Carlo step labels: the expected accuracy of a response after each of its steps.

mc_i = (continuations from the end of step i that reach the right answer) / K  (VisualPRM, arXiv 2503.10291,
Eq. 1). Counts are kept, not bits. A continuation whose answer cannot be read, or whose check timed out or failed,
counts as neither right nor wrong: it is taken out of K. How many continuations a step gets is its budget's business
(`budgets.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpo.multimodal.errors import DataError
from rewards.kept.calls import Each, Run, each_time, watched
from rewards.kept.keys import seed_of
from rewards.prm.labelling.budgets import Counts, Ending, Place, budget_named, count, spend
from rewards.prm.labelling.source import monte_carlo_source
from rewards.sampling.generator import Generator, Sample, Task, as_values, continuations_of
from rewards.types import (
    Completion,
    MonteCarloCount,
    Problem,
    Rollout,
    RolloutGroup,
    Splitter,
    Step,
    Verdict,
    verdict_of,
)

VerifyMany = Callable[[Sequence[tuple[Problem, Completion]]], list[Verdict]]


@dataclass(frozen=True)
class Labelled:
    """What labelling gives, and what it cost.

    Attributes:
        groups: with `mc` and `label_source`, without the rollouts that could not be labelled.
        rejected: reason → number of rollouts.
        continuations: drawn in all.
        tokens: generated for them.
        undecided: verdict → continuations that were taken out of K because of it (unparsable, timeout, error).
    """

    groups: list[RolloutGroup]
    rejected: Counter[str]
    continuations: int
    tokens: int
    undecided: Counter[str]


@dataclass(frozen=True)
class Response:
    """A verified rollout split into steps, and its place."""

    group: int
    rollout: int
    problem: Problem
    text: str
    steps: tuple[Step, ...]
    verdict: Verdict

    @property
    def ending(self) -> Ending:
        """What a budget needs to know."""
        return Ending(len(self.steps), self.verdict is Verdict.CORRECT)


class Continuer:
    """Makes one call: draws continuations and has them checked.

    Args:
        generator: draws.
        verify_many: checks whole responses (prefix ⊕ continuation), `verify_completions` with a verifier.
        with_texts: whether to give the continuations too, in order, as `drawn`.
    """

    def __init__(self, generator: Generator, verify_many: VerifyMany, *, with_texts: bool = False) -> None:
        self.generator, self.verify_many, self.with_texts = generator, verify_many, with_texts

    def __call__(self, task: Task) -> dict[str, Any]:
        """Verdicts in order, their tokens, and the seconds in the generator; checks are not in them.

        A continuation that was refused, such as one of a prompt too long, is `error`: neither right nor wrong.

        Raises:
            DataError: generator or verifier gave another number of results than it was asked for.
        """
        started = time.monotonic()
        samples = continuations_of(self.generator, task)
        seconds = time.monotonic() - started
        result = checked_call(task, samples, self.verify_many) | {"seconds": seconds}
        return result if self.with_texts else without_texts(result)


def checked_call(task: Task, samples: Sequence[Sample], verify_many: VerifyMany) -> dict[str, Any]:
    """`checked` of a call's samples, those of its first prefix first."""
    prefixes = [place for place in range(len(task.prefixes)) for _ in range(task.n)]
    placed = [(task.problems[place], task.prefixes[place], s) for place, s in zip(prefixes, samples, strict=True)]
    return checked(placed, verify_many)


def checked(placed: Sequence[tuple[Problem, str, Sample]], verify_many: VerifyMany) -> dict[str, Any]:
    """`verdicts` in order, `tokens` and, with their texts, what was `drawn`, as JSON values.

    A continuation that was refused, such as one of a prompt too long, is `error`, neither right nor wrong, and None.

    Args:
        placed: problem, prefix and continuation.
        verify_many: checks whole responses.

    Raises:
        DataError: the verifier gave another number of verdicts than it was asked for.
    """
    answers = [
        (problem, replace(sample.completion, text=prefix + sample.completion.text))
        for problem, prefix, sample in placed
        if sample.completion is not None
    ]
    found = verify_many(answers)
    if len(found) != len(answers):
        raise DataError(
            f"expected {len(answers)} continuations and a verdict for each, got {len(answers)} and {len(found)}; "
            "the counts would be assigned to other steps"
        )
    verdicts, made = iter(found), [sample.completion for _, _, sample in placed]
    return {
        "verdicts": [Verdict.ERROR if completion is None else next(verdicts) for completion in made],
        "tokens": sum(sample.tokens for _, _, sample in placed),
        "drawn": list(map(as_values, made)),
    }


def without_texts(result: dict[str, Any]) -> dict[str, Any]:
    """A result of `checked` without `drawn`."""
    return {name: value for name, value in result.items() if name != "drawn"}


class Continuations:
    """Has continuations drawn from the ends of steps, and checked: the `Draw` of a budget.

    Places of one problem are drawn side by side: they share its image and its prompt, and a server with a prefix
    cache, or a batch, finds them again.

    Args:
        responses: what places refer to.
        run: makes the calls: a `Continuer`, here (`in_turn`) or on several workers.
        seed: changes the draw; every call of the generator has its own, derived from it.
        rows_a_call: continuations per call of the generator, at most (one place's n are never divided).
        on_drawn: told the number of continuations of each call that was made, or was kept.
        each: keeps the verdicts of each call, so that a killed run can continue (`CallStore.each`).
    """

    def __init__(
        self,
        responses: Sequence[Response],
        *,
        run: Run,
        seed: int,
        rows_a_call: int = 1024,
        on_drawn: Callable[[int], object] | None = None,
        each: Each = each_time,
    ) -> None:
        self.responses, self.run, self.seed = responses, run, seed
        self.rows_a_call, self.on_drawn, self.each = rows_a_call, on_drawn or (lambda number: None), each
        self.continuations = self.tokens = self._calls = 0
        self.undecided = Counter[str]()
        self.seconds = 0.0  # in the generator, over all workers; checks are not in it

    def __call__(self, places: Sequence[Place], n: int) -> list[list[Verdict]]:
        """n verdicts from each place, in order.

        Raises:
            DataError: generator or verifier gave another number of results than it was asked for.
        """
        order = sorted(places, key=lambda place: (self.responses[place[0]].group, self._end(place)))
        size = max(1, self.rows_a_call // n)
        tasks = [self._task(order[start : start + size], n) for start in range(0, len(order), size)]
        calls = [(_about(task), task) for task in tasks]
        found: list[list[Verdict]] = []
        run = watched(self.run, len(order) * n, lambda task: len(task.problems) * task.n, self.on_drawn)
        for task, result in zip(tasks, self.each(calls, run), strict=True):
            verdicts = [Verdict(name) for name in result["verdicts"]]
            self.continuations += len(verdicts)
            self.tokens += result["tokens"]
            self.seconds += result.get("seconds", 0.0)  # not in stores that are older than this entry
            self.undecided.update(verdict.value for verdict in verdicts if not verdict.is_decided)
            found += [verdicts[i : i + n] for i in range(0, len(task.problems) * n, n)]
        by_place = dict(zip(order, found, strict=True))
        return [by_place[place] for place in places]

    def _task(self, places: Sequence[Place], n: int) -> Task:
        problems = [self.responses[r].problem for r, _ in places]
        prefixes = [self.responses[place[0]].text[: self._end(place)] for place in places]
        seed = self._call_seed()
        self._calls += 1
        return Task(problems, prefixes, n, seed)

    def _call_seed(self) -> int:
        """The seed itself for the first call; others after it, or a wave would draw the one before it again."""
        return seed_of(f"{self.seed}:{self._calls}", bits=63) if self._calls else self.seed

    def _end(self, place: Place) -> int:
        response, step = place
        return self.responses[response].steps[step].end


def label_steps(
    groups: Sequence[RolloutGroup],
    *,
    run: Run,
    splitter: Splitter,
    num_continuations: int,
    seed: int,
    budget: str = "full",
    rows_a_call: int = 1024,
    on_drawn: Callable[[int], object] | None = None,
    each: Each = each_time,
) -> Labelled:
    """Fill in `mc` and `label_source` of every rollout.

    Args:
        groups: verified rollouts that can be split: no empty text, no control tokens.
        run, seed, rows_a_call, on_drawn, each: see `Continuations`.
        splitter: where steps end.
        num_continuations: K, at least 1; VisualPRM takes 16. The end of the last step is not continued: the
            response ends there, so its own verdict is the count, K of K or 0 of K.
        budget: a name of `rewards.prm.labelling.budgets.BUDGETS`.

    Raises:
        ConfigError: an unknown budget, or K below 1.
        DataError: generator or verifier gave another number of results than it was asked for.
    """
    budgeted = budget_named(budget, num_continuations)
    responses = responses_of(groups, splitter)
    draw = Continuations(responses, run=run, seed=seed, rows_a_call=rows_a_call, on_drawn=on_drawn, each=each)
    counts = spend(budgeted, [response.ending for response in responses], draw, num_continuations)
    source = monte_carlo_source(budget, num_continuations)
    labelled, rejected = labelled_with(groups, responses, counts, num_continuations, source)
    return Labelled(labelled, rejected, draw.continuations, draw.tokens, draw.undecided)


def responses_of(groups: Sequence[RolloutGroup], splitter: Splitter) -> list[Response]:
    """The rollouts whose verdict decides something, split into steps; nothing is drawn for the others."""
    return [
        Response(g, r, group.problem, rollout.completion.text, splitter(rollout.completion.text), rollout.verdict)
        for g, group in enumerate(groups)
        for r, rollout in enumerate(group.rollouts)
        if rollout.verdict and rollout.verdict.is_decided
    ]


def labelled_with(
    groups: Sequence[RolloutGroup],
    responses: Sequence[Response],
    counts: Counts,
    num_continuations: int,
    source: str,
) -> tuple[list[RolloutGroup], Counter[str]]:
    """The groups with the counts of their rollouts, and why a rollout has none: reason → number."""
    found: dict[tuple[int, int], tuple[MonteCarloCount, ...]] = {}
    for index, response in enumerate(responses):
        last = count([response.verdict] * num_continuations)
        mc = [*(counts.get((index, step)) for step in range(len(response.steps) - 1)), last]
        if None not in mc:
            found[response.group, response.rollout] = tuple(c for c in mc if c)
    labelled, rejected = [], Counter[str]()
    for g, group in enumerate(groups):
        kept: list[Rollout] = []
        for r, rollout in enumerate(group.rollouts):
            if (g, r) in found:
                kept.append(rollout.with_(mc=found[g, r], label_source=source))
            elif rollout.verdict and rollout.verdict.is_decided:
                rejected["a step without a decided continuation"] += 1
            else:
                rejected[f"verdict {verdict_of(rollout)}"] += 1
        labelled.append(RolloutGroup(group.problem, tuple(kept)))
    return labelled, rejected


def _about(task: Task) -> list[Any]:
    asked = zip(task.problems, task.prefixes, strict=True)
    return ["continue", task.seed, task.n, [[p.id, p.question, p.answer, prefix] for p, prefix in asked]]
