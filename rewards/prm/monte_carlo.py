"""Monte-Carlo step labels: the expected accuracy of a solution after each of its steps.

mc_i = (continuations from the end of step i that reach the right answer) / K  (VisualPRM, arXiv 2503.10291,
Eq. 1). Counts are kept, not bits. A continuation whose check timed out or failed counts as neither right nor
wrong: it is taken out of K. How many continuations a step gets is its budget's business (`budgets.py`).
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mpo.multimodal.errors import DataError
from rewards.call_store import Once, every_time
from rewards.label_source import monte_carlo_source
from rewards.prm.budgets import Counts, Ending, Place, budget_named, count, is_decided
from rewards.types import Generator, MonteCarloCount, Problem, Rollout, RolloutGroup, Splitter, Step, Verdict

VerifyMany = Callable[[Sequence[tuple[Problem, str]]], list[Verdict]]


@dataclass(frozen=True)
class Labelled:
    """What labelling gives, and what it cost.

    Attributes:
        groups: with `mc` and `label_source`, without the rollouts that could not be labelled.
        rejected: reason → number of rollouts.
        continuations: drawn in all.
        tokens: generated for them.
        undecided: continuations of which the verifier said nothing.
    """

    groups: list[RolloutGroup]
    rejected: Counter[str]
    continuations: int
    tokens: int
    undecided: int


@dataclass(frozen=True)
class Response:
    """A verified rollout split into steps, and where it stands."""

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


class Continuations:
    """Draws continuations from the ends of steps and has them checked: the `Draw` of a budget.

    Places of one problem are drawn side by side: they share its picture and its prompt, and a server with a prefix
    cache, or a batch, finds them again.

    Args:
        responses: what places refer to.
        generator: draws.
        verify_many: checks whole answers (prefix ⊕ continuation).
        seed: changes the draw; every call of the generator has its own, derived from it.
        rows_a_call: continuations a call of the generator, at most (one place's n are never divided).
        on_drawn: told the number of continuations after each call.
        once: keeps the verdicts of each call, so that a killed run goes on (`CallStore.once`).
    """

    def __init__(
        self,
        responses: Sequence[Response],
        *,
        generator: Generator,
        verify_many: VerifyMany,
        seed: int,
        rows_a_call: int = 1024,
        on_drawn: Callable[[int], object] | None = None,
        once: Once = every_time,
    ) -> None:
        self.responses, self.generator, self.verify_many = responses, generator, verify_many
        self.seed, self.rows_a_call, self.on_drawn, self.once = seed, rows_a_call, on_drawn, once
        self.continuations = self.tokens = self.undecided = self._calls = 0
        self.seconds = 0.0  # in the generator; checks are not in it

    def __call__(self, places: Sequence[Place], n: int) -> list[list[Verdict]]:
        """n verdicts from each place, in order.

        Raises:
            DataError: generator or verifier gave another number of results than it was asked for.
        """
        order = sorted(places, key=lambda place: (self.responses[place[0]].group, self._end(place)))
        size = max(1, self.rows_a_call // n)
        found: dict[Place, list[Verdict]] = {}
        for start in range(0, len(order), size):
            some = order[start : start + size]
            found.update(zip(some, self._draw(some, n), strict=True))
        return [found[place] for place in places]

    def _draw(self, places: Sequence[Place], n: int) -> list[list[Verdict]]:
        problems = [self.responses[r].problem for r, _ in places]
        prefixes = [self.responses[place[0]].text[: self._end(place)] for place in places]
        seed, expected = self._call_seed(), len(places) * n
        asked = [[p.id, p.question, p.answer, prefix] for p, prefix in zip(problems, prefixes, strict=True)]
        found = self.once(["continue", seed, n, asked], lambda: self._continued(problems, prefixes, n, seed))
        verdicts = [Verdict(name) for name in found["verdicts"]]
        self._calls += 1
        self.continuations += expected
        self.tokens += found["tokens"]
        self.undecided += sum(not is_decided(verdict) for verdict in verdicts)
        if self.on_drawn:
            self.on_drawn(expected)
        return [verdicts[i : i + n] for i in range(0, expected, n)]

    def _continued(self, problems: Sequence[Problem], prefixes: Sequence[str], n: int, seed: int) -> dict[str, Any]:
        """One call of the generator, and the verdicts on what it drew."""
        started = time.monotonic()
        drawn = self.generator.generate(problems, n, prefixes=prefixes, seed=seed)
        self.seconds += time.monotonic() - started
        answers = [
            (problem, prefix + completion.text)
            for problem, prefix, completions in zip(problems, prefixes, drawn, strict=True)
            for completion in completions
        ]
        verdicts, expected = self.verify_many(answers), len(problems) * n
        if not len(answers) == len(verdicts) == expected:
            raise DataError(
                f"expected {expected} continuations and as many verdicts, got {len(answers)} and {len(verdicts)}; "
                "counts would move to other steps"
            )
        return {"verdicts": verdicts, "tokens": sum(c.num_tokens for completions in drawn for c in completions)}

    def _call_seed(self) -> int:
        """The seed itself for the first call; others after it, or a wave would draw the one before it again."""
        return derived_seed(self.seed, self._calls) if self._calls else self.seed

    def _end(self, place: Place) -> int:
        response, step = place
        return self.responses[response].steps[step].end


def label_steps(
    groups: Sequence[RolloutGroup],
    *,
    generator: Generator,
    verify_many: VerifyMany,
    splitter: Splitter,
    num_continuations: int,
    seed: int,
    budget: str = "full",
    rows_a_call: int = 1024,
    on_drawn: Callable[[int], object] | None = None,
    once: Once = every_time,
) -> Labelled:
    """Fill in `mc` and `label_source` of every rollout.

    Args:
        groups: verified rollouts that can be split: no empty text, no control tokens.
        generator, verify_many, seed, rows_a_call, on_drawn, once: see `Continuations`.
        splitter: where steps end.
        num_continuations: K, at least 1; VisualPRM takes 16. The end of the last step is not continued: the
            response ends there, so its own verdict is the count, K of K or 0 of K.
        budget: a name of `rewards.prm.budgets.BUDGETS`.

    Raises:
        ConfigError: an unknown budget, or K below 1.
        DataError: generator or verifier gave another number of results than it was asked for.
    """
    run = budget_named(budget, num_continuations)
    responses = responses_of(groups, splitter)
    draw = Continuations(
        responses,
        generator=generator,
        verify_many=verify_many,
        seed=seed,
        rows_a_call=rows_a_call,
        on_drawn=on_drawn,
        once=once,
    )
    counts = run([response.ending for response in responses], draw, num_continuations)
    source = monte_carlo_source(budget, num_continuations)
    labelled, rejected = _with_counts(groups, responses, counts, num_continuations, source)
    return Labelled(labelled, rejected, draw.continuations, draw.tokens, draw.undecided)


def responses_of(groups: Sequence[RolloutGroup], splitter: Splitter) -> list[Response]:
    """The rollouts whose verdict says something, split into steps; nothing is drawn for the others."""
    return [
        Response(g, r, group.problem, rollout.completion.text, splitter(rollout.completion.text), rollout.verdict)
        for g, group in enumerate(groups)
        for r, rollout in enumerate(group.rollouts)
        if rollout.verdict and is_decided(rollout.verdict)
    ]


def _with_counts(
    groups: Sequence[RolloutGroup],
    responses: Sequence[Response],
    counts: Counts,
    num_continuations: int,
    source: str,
) -> tuple[list[RolloutGroup], Counter[str]]:
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
            else:
                rejected["a step without a decided continuation"] += 1
        labelled.append(RolloutGroup(group.problem, tuple(kept)))
    return labelled, rejected


def derived_seed(seed: int, purpose: int | str) -> int:
    """A seed in [0, 2^63) that nothing but the same seed and purpose gives."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:8], "big") >> 1
