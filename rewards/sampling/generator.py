"""What draws completions of a policy, whatever its backend: the abstract `Generator`, its settings and its samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError, DataError
from rewards.types import Completion, Problem


@dataclass(frozen=True)
class SamplingParams:
    """How to draw: `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 sample from the whole distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and 0 < self.top_p <= 1 and self.top_k >= 0 < self.max_new_tokens):
            raise ConfigError(
                f"expected temperature >= 0, 0 < top_p <= 1, top_k >= 0 and max_new_tokens >= 1, got {self}"
            )


@dataclass(frozen=True)
class Sample:
    """One outcome of a generator: completion `index` of a problem, or why there is none.

    Attributes:
        problem: place of the problem in the sequence that was asked.
        index: of the sample, from 0.
        seed: that it was drawn with; a server's request may draw several samples with one seed.
        completion: the response; `None` if it was refused.
        reason: why it was refused, e.g. a prompt that is too long for the server.
        share: of the tokens of a server's request that drew several samples and counts their sum alone; 0 if the
            completion has its own number.
    """

    problem: int
    index: int
    seed: int
    completion: Completion | None
    reason: str = ""
    share: int = 0

    @property
    def tokens(self) -> int:
        """Tokens generated for it; exact in the sum over a request, and not for one of its samples."""
        return self.share or (self.completion.num_tokens if self.completion else 0)


class Generator(ABC):
    """Draws completions of a policy; a backend writes `draw`.

    Attributes:
        describe: text of the progress bar of `generate`; empty for none.

    Example:
        >>> class Echo(Generator):
        ...     def draw(self, problems, n, *, prefixes=None, seed, done=frozenset()):
        ...         for place, problem in enumerate(problems):
        ...             yield [Sample(place, index, seed, Completion(problem.question)) for index in range(n)]
        >>> [[completion.text for completion in own] for own in Echo().generate([Problem("p", "2 + 2?")], 2, seed=0)]
        [['2 + 2?', '2 + 2?']]
    """

    describe: str = ""

    @abstractmethod
    def draw(
        self,
        problems: Sequence[Problem],
        n: int,
        *,
        prefixes: Sequence[str] | None = None,
        seed: int,
        done: Container[tuple[int, int]] = frozenset(),
    ) -> Iterator[list[Sample]]:
        """Samples 0 … n-1 of each problem as they come, in any order, each once.

        A sample is the same whatever is done before, on a backend that can promise it.

        Args:
            problems: what to ask; a problem may occur more than once (with different prefixes).
            n: completions per problem, at least 1.
            prefixes: text that each response starts with (same length as `problems`); completions continue it and do
                not repeat it.
            seed: changes the draw.
            done: (place of the problem, sample index) that are not wanted.
        """

    def generate(
        self, problems: Sequence[Problem], n: int, *, prefixes: Sequence[str] | None = None, seed: int
    ) -> list[list[Completion]]:
        """n completions per problem, in order; arguments and errors are those of `draw`.

        Raises:
            DataError: a completion was refused, with the reason; or `draw` left some out.
        """
        found: dict[tuple[int, int], Completion] = {}
        total = len(problems) * n
        with tqdm(total=total, desc=self.describe, unit="sample", disable=not self.describe) as bar:
            for samples in self.draw(problems, n, prefixes=prefixes, seed=seed):
                for sample in samples:
                    if sample.completion is None:
                        raise DataError(f"no completion for problem {problems[sample.problem].id!r}: {sample.reason}")
                    found[sample.problem, sample.index] = sample.completion
                bar.update(len(samples))
        if len(found) != total:
            raise DataError(f"expected {total} completions, got {len(found)}: {type(self).__name__} left some out")
        return [[found[place, index] for index in range(n)] for place in range(len(problems))]


@dataclass(frozen=True)
class Task:
    """One call: n continuations of each prefix, which is the beginning of a response to the problem of its place."""

    problems: Sequence[Problem]
    prefixes: Sequence[str]
    n: int
    seed: int


def continuations_of(generator: Generator, task: Task) -> list[Sample]:
    """What a call gives: the n samples of the first prefix, then those of the second, and so on.

    Raises:
        DataError: the generator gave another number.
    """
    drawn = generator.draw(task.problems, task.n, prefixes=task.prefixes, seed=task.seed)
    samples = {(sample.problem, sample.index): sample for some in drawn for sample in some}
    expected = len(task.problems) * task.n
    if len(samples) != expected:
        raise DataError(f"expected {expected} continuations, got {len(samples)}: they would be other prefixes'")
    return [sample for _, sample in sorted(samples.items(), key=lambda item: item[0])]


def as_values(completion: Completion | None) -> tuple[str, str, int] | None:
    """A completion as JSON values: text, finish reason, tokens; None for one that was refused."""
    return None if completion is None else (completion.text, completion.finish_reason.value, completion.num_tokens)


def check_number(n: int, params: SamplingParams) -> None:
    """Raise ConfigError if n completions cannot be drawn: n < 1, or n > 1 at temperature 0, one text n times."""
    if n < 1 or (n > 1 and params.temperature == 0):
        raise ConfigError(f"cannot draw {n} completions at temperature {params.temperature}: greedy decoding takes n=1")
