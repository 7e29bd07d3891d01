"""What the parts of `benchmarks/gpu.py` share: sizes, models in memory, clocks and the growing report."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _models import Width, device


@dataclass(frozen=True)
class Sizes:
    """What is measured: real shapes for a GPU of 80 GB, tiny ones that show on a CPU that the script runs."""

    small: Width
    large: Width
    dtype: torch.dtype
    kernel: tuple[tuple[int, int, int], ...]  # prefix, responses, tokens of each
    tiles: tuple[int, ...]
    responses: tuple[int, ...]
    response: int  # tokens
    lengths: tuple[int, ...]  # of responses, for the tolerance
    rows: tuple[int, ...]  # of a sampling call
    new_tokens: int
    pairs: int  # of the run end to end; a third warms up, a third is timed, a third is profiled
    accumulation: tuple[int, ...]
    workers: tuple[int, ...]
    steps: int
    matrix: int


REAL = Sizes(
    small=Width(896, 24, 14, 2, 4864, 1024, 24, 16),
    large=Width(3584, 28, 28, 4, 18_944, 1024, 24, 16),
    dtype=torch.bfloat16,
    kernel=((1919, 2, 300), (3455, 32, 360)),
    tiles=(3, 7, 13),
    responses=(8, 32),
    response=300,
    lengths=(1, 2, 5, 20, 300),
    rows=(64, 256),
    new_tokens=128,
    pairs=48,
    accumulation=(16, 1),
    workers=(8, 0),
    steps=3,
    matrix=8192,
)
_TINY = Width(32, 2, 4, 2, 64, 32, 1, 2, vocabulary=600, tile=56)
TINY = Sizes(
    small=_TINY,
    large=_TINY,
    dtype=torch.float32,
    kernel=((12, 2, 5),),
    tiles=(3,),
    responses=(2,),
    response=6,
    lengths=(1, 4),
    rows=(4,),
    new_tokens=4,
    pairs=6,
    accumulation=(1, 2),
    workers=(0,),
    steps=1,
    matrix=64,
)


@dataclass
class Report:
    """Figures, printed as they come and kept in a file that is whole after each of them."""

    path: Path
    figures: list[dict[str, Any]] = field(default_factory=list)
    ends: float = inf  # `time.monotonic` after which nothing more begins
    only: Sequence[str] = ()  # words of the rows that are wanted; none wants all

    def wants(self, row: str) -> bool:
        return not self.only or any(words in row for words in self.only)

    def late(self) -> bool:
        return time.monotonic() > self.ends

    def add(self, part: str, what: str, **values: Any) -> None:
        shown = {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
        self.figures.append({"part": part, "what": what, **shown})
        print(f"{part:<10} {what:<46} " + "  ".join(f"{name} {value}" for name, value in shown.items()), flush=True)
        self.path.write_text(json.dumps(self.figures, indent=1))

    @contextmanager
    def trying(self, part: str, what: str) -> Iterator[None]:
        """A way that fails is a line of the report, so that a run of minutes is not lost to it."""
        try:
            yield
        except Exception as error:
            self.add(part, what, failed=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], *, times: int = 3, before: int = 1) -> float:
    """Median seconds of a call on the wall, the device's work included."""
    for _ in range(before):
        work()
    found = []
    for _ in range(times):
        wait()
        started = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - started)
    return median(found)


def peak_gib(*, reset: bool = False) -> float:
    """Most memory that was allocated on the device since the last reset; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0.0
    most = torch.cuda.max_memory_allocated() / 2**30
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return most


class Profile:
    """Share of the time between enter and exit in which the device computes; `busy` is None on a CPU."""

    busy: float | None = None

    def __enter__(self) -> Profile:
        if torch.cuda.is_available():
            from torch.profiler import ProfilerActivity, profile

            wait()
            self._trace = profile(activities=[ProfilerActivity.CUDA])
            self._trace.__enter__()
            self._started = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        if torch.cuda.is_available():
            wait()
            elapsed = time.perf_counter() - self._started
            self._trace.__exit__(None, None, None)
            self.busy = sum(event.self_device_time_total for event in self._trace.key_averages()) / 1e6 / elapsed


def matmul_rate(sizes: Sizes) -> float:
    """FLOPs a second of one large product in the number type of the run."""
    a, b = (torch.randn(sizes.matrix, sizes.matrix, device=device(), dtype=sizes.dtype) for _ in range(2))
    return 2 * sizes.matrix**3 / seconds(lambda: a @ b, times=10, before=3)
