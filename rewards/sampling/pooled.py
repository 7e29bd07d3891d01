"""Sampling by several workers: a generator that hands its problems to others, some at a time."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

from rewards.kept.calls import Run
from rewards.sampling.generator import Generator, Sample
from rewards.types import Problem


@dataclass(frozen=True)
class DrawTask:
    """Some problems of a draw; their places are counted from the first of them."""

    problems: Sequence[Problem]
    n: int
    prefixes: Sequence[str] | None
    seed: int
    done: frozenset[tuple[int, int]]


def drawn(generator: Generator, task: DrawTask) -> list[Sample]:
    """The samples of a task: the work of one call."""
    batches = generator.draw(task.problems, task.n, prefixes=task.prefixes, seed=task.seed, done=task.done)
    return [sample for batch in batches for sample in batch]


class PooledGenerator(Generator):
    """Draws what one generator would, with `run` making the calls; arguments are those of `Generator`.

    Args:
        run: makes calls: `drawn` with a generator, on several workers.
        problems_a_task: neighbouring problems that one worker gets. A `TransformersGenerator` gives the bits of a draw
            from the whole list if it is the number of problems that it takes per call, or a multiple.
    """

    def __init__(self, run: Run, *, problems_a_task: int) -> None:
        self.run, self.problems_a_task = run, problems_a_task

    def draw(
        self,
        problems: Sequence[Problem],
        n: int,
        *,
        prefixes: Sequence[str] | None = None,
        seed: int,
        done: Container[tuple[int, int]] = frozenset(),
    ) -> Iterator[list[Sample]]:
        """Samples 0 … n-1 of each problem but those in `done`, one task at a time, in any order of the tasks."""
        firsts, tasks = [], []
        for first in range(0, len(problems), self.problems_a_task):
            some = problems[first : first + self.problems_a_task]
            units = [(place, index) for place in range(len(some)) for index in range(n)]
            have = frozenset((place, index) for place, index in units if (first + place, index) in done)
            if len(have) < len(units):
                starts = None if prefixes is None else prefixes[first : first + len(some)]
                firsts.append(first)
                tasks.append(DrawTask(some, n, starts, seed, have))
        for number, samples in self.run(tasks):
            yield [replace(sample, problem=sample.problem + firsts[number]) for sample in samples]
