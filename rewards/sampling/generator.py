"""From a generator's samples, which come in any order, to n completions per problem."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError, DataError
from rewards.types import Completion, Problem

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    ImageLike = str | Path | Image.Image


def gather(
    batches: Iterable[list[Sample]], problems: Sequence[Problem], n: int, *, describe: str = ""
) -> list[list[Completion]]:
    """The completions of each problem, in order of their index.

    Args:
        batches: what `Generator.draw` gives, with nothing done before.
        problems: what was asked.
        n: completions per problem.
        describe: text of a progress bar; empty for none.

    Raises:
        DataError: a completion was refused; its reason is given.
    """
    found: dict[tuple[int, int], Completion] = {}
    with tqdm(total=len(problems) * n, desc=describe, unit="sample", disable=not describe) as bar:
        for samples in batches:
            for sample in samples:
                if sample.completion is None:
                    raise DataError(f"no completion for problem {problems[sample.problem].id!r}: {sample.reason}")
                found[sample.problem, sample.index] = sample.completion
            bar.update(len(samples))
    return [[found[place, index] for index in range(n)] for place in range(len(problems))]


def check_number(n: int, params: SamplingParams) -> None:
    """Raise ConfigError if n completions cannot be drawn: n < 1, or n > 1 at temperature 0, one text n times."""
    if n < 1 or (n > 1 and params.temperature == 0):
        raise ConfigError(f"cannot draw {n} completions at temperature {params.temperature}: greedy takes n=1")


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
    """

    problem: int
    index: int
    seed: int
    completion: Completion | None
    reason: str = ""


class Generator(Protocol):
    """Draws completions of a policy: `generate` all at once, `draw` as they come, without those that are done."""

    def draw(
        self,
        problems: Sequence[Problem],
        n: int,
        *,
        prefixes: Sequence[str] | None = None,
        seed: int,
        done: Container[tuple[int, int]] = frozenset(),
    ) -> Iterator[list[Sample]]:
        """Samples 0 … n-1 of each problem, in any order, each once, but those (problem, index) that are `done`.

        A sample is the same whatever is done before, on a backend that can promise it.
        """
        ...

    def generate(
        self, problems: Sequence[Problem], n: int, *, prefixes: Sequence[str] | None = None, seed: int
    ) -> list[list[Completion]]:
        """n completions per problem, in order; each continues its problem's prefix, if there are prefixes."""
        ...
