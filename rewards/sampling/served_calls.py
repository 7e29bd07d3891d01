"""Calls that servers make side by side: each is kept as soon as its own replies are there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rewards.kept.calls import Run
from rewards.sampling.generator import Sample, Task
from rewards.sampling.openai_generator import OpenAIGenerator, Request


def side_by_side(servers: OpenAIGenerator, finish: Callable[[Task, list[Sample]], Any]) -> Run:
    """A `Run` whose calls are under way together, as many as the servers take.

    Args:
        servers: of one model.
        finish: makes a call's result, a JSON value, of its samples: those of the first prefix first.

    Raises:
        ServerError: while it runs: some calls got no usable reply; all others were given.
    """

    def run(calls: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        requests = deque[Request]()
        left = deque(enumerate(calls))
        asked: list[tuple[int, int]] = []  # of each number that requests carry: the call, and the prefix in it
        came: dict[int, dict[tuple[int, int], Sample]] = {}

        def more(number: int) -> list[Request]:
            while len(requests) < number and left:
                call, task = left.popleft()
                came[call] = {}
                for place, (problem, prefix) in enumerate(zip(task.problems, task.prefixes, strict=True)):
                    asked.append((call, place))
                    size = servers.samples_a_request or task.n
                    for start in range(0, task.n, size):
                        indexes = tuple(range(start, min(start + size, task.n)))
                        requests.append(Request(len(asked) - 1, problem, prefix, indexes, task.seed))
            return [requests.popleft() for _ in range(min(number, len(requests)))]

        for samples in servers.stream(more):
            call, place = asked[samples[0].problem]
            found, task = came[call], calls[call]
            found |= {(place, sample.index): sample for sample in samples}
            if len(found) == len(task.prefixes) * task.n:
                del came[call]
                yield call, finish(task, [sample for _, sample in sorted(found.items(), key=lambda item: item[0])])

    return run
