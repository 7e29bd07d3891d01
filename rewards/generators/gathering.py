"""From a generator's samples, which come in any order, to n completions a problem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError, DataError
from rewards.types import Completion, Problem, Sample, SamplingParams


def gather(
    batches: Iterable[list[Sample]], problems: Sequence[Problem], n: int, *, describe: str = ""
) -> list[list[Completion]]:
    """The completions of each problem, in order of their index.

    Args:
        batches: what `Generator.draw` gives, with nothing done before.
        problems: what was asked.
        n: completions a problem.
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
