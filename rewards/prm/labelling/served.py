"""Step labels from servers: each problem continues as soon as its own continuations are there.

A problem has a plan of its own, the budget's, and no wave of it waits for another problem's. All its requests go to the
server that its image picks, one wave soon after the other, so the image and the prefixes are found in that server's
cache. A continuation is a function of seed, problem, prefix and its index, as far as the server keeps to the seed; so
the labels do not depend on the order of the replies, on the number of servers, or on kills.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from rewards.kept.calls import CallStore
from rewards.kept.keys import digest
from rewards.prm.labelling.budgets import Ask, Counts, Place, Plan, budget_named
from rewards.prm.labelling.monte_carlo import (
    Labelled,
    Response,
    VerifyMany,
    checked,
    labelled_with,
    responses_of,
    without_texts,
)
from rewards.prm.labelling.source import monte_carlo_source
from rewards.prm.labelling.token_limit import TokenLimit
from rewards.sampling.generator import Sample
from rewards.types import RolloutGroup, Splitter, Verdict

if TYPE_CHECKING:
    from rewards.sampling.openai_generator import Request


class Streams(Protocol):
    """What answers requests that are made while others are under way: `OpenAIGenerator`."""

    samples_a_request: int

    def stream(self, more: Callable[[int], Sequence[Request]]) -> Iterator[list[Sample]]:
        """See `OpenAIGenerator.stream`."""
        ...


@dataclass
class Unit:
    """Continuations first … first+n-1 of one prefix, and who waits for their verdicts."""

    response: Response
    prefix: str
    first: int
    n: int
    seed: int
    samples: dict[int, Sample] = field(default_factory=dict)
    waiting: list[tuple[_Problem, int]] = field(default_factory=list)

    @property
    def about(self) -> list[Any]:
        """What tells it from every other unit of a run."""
        problem = self.response.problem
        return [
            *("continuations", self.seed, self.first, self.n),
            *(problem.id, problem.question, problem.answer, self.prefix),
        ]


def label_steps_on_servers(
    groups: Sequence[RolloutGroup],
    *,
    servers: Streams,
    verify_many: VerifyMany,
    splitter: Splitter,
    num_continuations: int,
    seed: int,
    budget: str = "full",
    calls: CallStore | None = None,
    limit: TokenLimit | None = None,
    on_drawn: Callable[[int], object] = lambda number: None,
    keep_texts: Callable[[Unit, dict[str, Any]], object] = lambda unit, result: None,
) -> Labelled:
    """Fill in `mc` and `label_source` of every rollout; see `label_steps`.

    A continuation that a server refuses counts as neither right nor wrong (`error`).

    Args:
        groups, splitter, num_continuations, seed, budget: see `label_steps`.
        servers: `OpenAIGenerator`, of one server or several.
        verify_many: checks whole responses.
        calls: keeps the verdicts of each prefix, so that a killed run can continue.
        limit: on the tokens.
        on_drawn: told the number of continuations of each prefix that were drawn, or were kept.
        keep_texts: is given each unit that was drawn and its result, `drawn` included, before `calls` keeps it.

    Raises:
        ConfigError: an unknown budget, or K below 1.
        ServerError: some prefixes got no usable reply; all others are done and kept.
        TokensSpentError: the limit was reached before all was drawn.
    """
    responses = responses_of(groups, splitter)
    planned = budget_named(budget, num_continuations)
    problems = [
        _Problem(own, planned([response.ending for _, response in own], num_continuations))
        for _, found in groupby(enumerate(responses), key=lambda placed: placed[1].group)
        for own in [list(found)]
    ]
    work = _Work(
        problems,
        servers,
        seed=seed,
        verify_many=verify_many,
        calls=calls,
        limit=limit or TokenLimit(),
        on_drawn=on_drawn,
        keep_texts=keep_texts,
    )
    counts = work.counts()
    source = monte_carlo_source(budget, num_continuations)
    labelled, rejected = labelled_with(groups, responses, counts, num_continuations, source)
    return Labelled(labelled, rejected, work.continuations, work.tokens, work.undecided)


class _Work:
    """All problems of a run: which wait, which are under way, and what they ask for."""

    def __init__(
        self,
        problems: Sequence[_Problem],
        servers: Streams,
        *,
        seed: int,
        verify_many: VerifyMany,
        calls: CallStore | None,
        limit: TokenLimit,
        on_drawn: Callable[[int], object],
        keep_texts: Callable[[Unit, dict[str, Any]], object],
    ) -> None:
        self.problems, self.servers, self.seed, self.verify_many = problems, servers, seed, verify_many
        self.calls, self.limit, self.on_drawn, self.keep_texts = calls, limit, on_drawn, keep_texts
        self.to_begin = deque(problems)
        self.requests: deque[Request] = deque()
        self.units: dict[int, Unit] = {}  # by the number that their requests carry
        self.under_way: dict[str, Unit] = {}  # by content: two responses may begin alike
        self.continuations = self.tokens = self._numbered = 0
        self.undecided = Counter[str]()

    def counts(self) -> Counts:
        for samples in self.servers.stream(self.more):
            self.take(samples)
        if any(not problem.is_done for problem in self.problems):
            self.limit.stop()
        assert all(problem.is_done for problem in self.problems), "the stream ended before the problems did"
        return {place: count for problem in self.problems for place, count in problem.counts.items()}

    def more(self, number: int) -> list[Request]:
        """Up to that many requests: of the problems under way, then of further ones."""
        while len(self.requests) < number and self.to_begin and not self.limit.reached:
            self.go_on(self.to_begin.popleft(), None)
        if self.limit.reached:
            return []
        return [self.requests.popleft() for _ in range(min(number, len(self.requests)))]

    def go_on(self, problem: _Problem, verdicts: list[list[Verdict]] | None) -> None:
        """Tell a plan what it asked for, and ask for what it wants next, until something has to be drawn."""
        while (ask := problem.next(verdicts)) is not None:
            places, n = ask
            for index, place in enumerate(places):
                self.want(problem, index, place, n)
            if problem.missing:
                return
            verdicts = problem.verdicts()

    def want(self, problem: _Problem, index: int, place: Place, n: int) -> None:
        response = problem.responses[place[0]]
        prefix = response.text[: response.steps[place[1]].end]
        unit = Unit(response, prefix, problem.drawn[place], n, self.seed)
        problem.drawn[place] += n
        result = self.calls.found(unit.about) if self.calls else None
        if result is not None:
            self.count(unit, result)
            problem.found[index] = [Verdict(name) for name in result["verdicts"]]
            return
        problem.found[index] = None
        key = digest(unit.about)
        if key in self.under_way:
            self.under_way[key].waiting.append((problem, index))
            return
        unit.waiting.append((problem, index))
        self.under_way[key] = unit
        self.ask_for(unit)

    def ask_for(self, unit: Unit) -> None:
        from rewards.sampling.openai_generator import Request

        number, size = self._numbered, self.servers.samples_a_request or unit.n
        self._numbered += 1
        self.units[number] = unit
        indexes = range(unit.first, unit.first + unit.n)
        for start in range(0, unit.n, size):
            some = tuple(indexes[start : start + size])
            self.requests.append(Request(number, unit.response.problem, unit.prefix, some, self.seed))

    def take(self, samples: Sequence[Sample]) -> None:
        """Keep what came; the problems that it completes continue."""
        number = samples[0].problem
        unit = self.units[number]
        unit.samples |= {sample.index: sample for sample in samples}
        if len(unit.samples) < unit.n:
            return
        del self.units[number]
        placed = [(unit.response.problem, unit.prefix, sample) for _, sample in sorted(unit.samples.items())]
        result = checked(placed, self.verify_many)
        self.limit.spend(result["tokens"])
        self.keep_texts(unit, result)
        if self.calls:
            self.calls.keep(unit.about, without_texts(result))
        self.count(unit, result)
        del self.under_way[digest(unit.about)]
        for problem, index in unit.waiting:
            problem.found[index] = [Verdict(name) for name in result["verdicts"]]
            if not problem.missing:
                self.go_on(problem, problem.verdicts())

    def count(self, unit: Unit, result: dict[str, Any]) -> None:
        self.continuations += unit.n
        self.tokens += result["tokens"]
        self.undecided.update(name for name in result["verdicts"] if not Verdict(name).is_decided)
        self.on_drawn(unit.n)


class _Problem:
    """The responses of a problem, its plan, and the verdicts that the plan waits for."""

    def __init__(self, placed: Sequence[tuple[int, Response]], plan: Plan) -> None:
        self.numbers, self.responses = [number for number, _ in placed], [response for _, response in placed]
        self.plan, self.is_done = plan, False
        self.drawn = Counter[Place]()
        self.found: dict[int, list[Verdict] | None] = {}
        self.counts: Counts = {}

    @property
    def missing(self) -> bool:
        return any(found is None for found in self.found.values())

    def verdicts(self) -> list[list[Verdict]]:
        """Of all places that were asked for, in order."""
        found = [self.found[index] or [] for index in sorted(self.found)]
        self.found = {}
        return found

    def next(self, verdicts: list[list[Verdict]] | None) -> Ask | None:
        """What the plan asks for next; None when it has its counts."""
        try:
            return next(self.plan) if verdicts is None else self.plan.send(verdicts)
        except StopIteration as end:
            self.counts = {(self.numbers[response], step): count for (response, step), count in end.value.items()}
            self.is_done = True
            return None
