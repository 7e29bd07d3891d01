"""Rows per second of `--engine ray` with 1, 2 and 4 workers, and of one process.

The PRM is replaced by one that takes a fixed time per call without a processor, as one on a GPU of its own or behind
a server does. The rest is real: the cut into calls, Ray, the store with one transaction per call. So what is measured
is what the engine costs, and how many workers one driver keeps busy. Starting Ray and loading is not in the rows per
second; it has its own column. Parallel efficiency is the speed over that of as many single workers.

    python benchmarks/scaling.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

from recipes.config import EngineConfig
from recipes.stage.engine import engine
from rewards.kept.calls import CallStore
from rewards.scoring.groups import StoredScorer
from rewards.types import Problem

ROWS_A_CALL = 64


@contextmanager
def fake_prm(seconds: float) -> Iterator[Callable[[Any], Any]]:
    """Two step scores per row, after some time per call."""

    def work(items: list[Any]) -> list[Any]:
        time.sleep(seconds)
        return [[[0.5, 0.25], None] for _ in items]

    yield work


def measured(name: str, actors: int, calls: int, seconds: float, repeats: int) -> tuple[float, float]:
    """Seconds to the first results, and the median rows per second after them."""
    problems = [Problem(f"p{i}", "What is the sum?") for i in range(calls * ROWS_A_CALL // 8)]
    items = [(problem, f"First is {i}\n\nFinal answer: {i}") for problem in problems for i in range(8)]
    speeds = []
    with engine(EngineConfig(engine=name, actors=actors), partial(fake_prm, seconds)) as run:
        began = time.perf_counter()
        list(run([[]] * 4 * actors))  # every worker has loaded
        start = time.perf_counter() - began
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder, CallStore(f"{folder}/calls.sqlite", {}) as store:
                began = time.perf_counter()
                StoredScorer(run, store.each, rows_a_call=ROWS_A_CALL).outcomes(items)
                speeds.append(len(items) / (time.perf_counter() - began))
    return start, median(speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.2, help="that a call takes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    print(f"{options.calls} calls of {ROWS_A_CALL} rows, {options.seconds} s each; {os.cpu_count()} cores")
    print("| engine | workers | start, s | rows per second | parallel efficiency |\n|---|---|---|---|---|")
    single = 0.0
    for name, actors in [("local", 1), *(("ray", number) for number in options.workers)]:
        start, speed = measured(name, actors, options.calls, options.seconds, options.repeats)
        single = single or speed
        print(f"| {name} | {actors} | {start:.1f} | {speed:.0f} | {speed / (actors * single):.0%} |", flush=True)


if __name__ == "__main__":
    main()
