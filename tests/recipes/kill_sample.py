"""`kill_sample.py KILLS SAMPLE-FLAGS…`: run `mpo sample`, killed with SIGKILL at random moments, until it is done.

The parent has imported everything and forks a child an attempt, so that a kill costs no start. A kill comes a random
while after the attempt's first new sample in the store, so every attempt gets on. The last attempt is not killed.
Prints one line of JSON for test_sample_store.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path

import torch

import rewards.generators.transformers_generator  # noqa: F401
from recipes.cli import main
from recipes.sample import STORE
from rewards.store import SampleStore


def run(kills: int, flags: list[str]) -> dict[str, object]:
    """Kill, resume, finish; says how many samples each kill left behind, and the last attempt's exit status."""
    torch.set_num_threads(1)
    rng = random.Random(0)
    store = Path(flags[flags.index("--out") + 1]) / STORE
    left: list[int] = []
    for _ in range(kills):
        before = _stored(store)
        child = _start(flags)
        deadline = time.monotonic() + 120
        while _stored(store) <= before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.2)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the run ended before it was killed"
        left.append(_stored(store))
    _, status = os.waitpid(_start(flags), 0)
    return {"left": left, "status": os.waitstatus_to_exitcode(status)}


def _start(flags: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    add = SampleStore.add

    def slowly(store: SampleStore, samples: object) -> None:
        add(store, samples)  # type: ignore[arg-type]
        time.sleep(0.3)  # so that on a busy machine too the parent gets its turn before the next call

    SampleStore.add = slowly  # type: ignore[method-assign]
    try:
        code = main(["sample", *flags])
    finally:  # the child must never return into the parent's loop
        os._exit(code)


def _stored(store: Path) -> int:
    if not store.exists():
        return 0
    try:
        connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
        try:
            return connection.execute("SELECT count(*) FROM samples").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.OperationalError:  # its tables are not there yet
        return 0


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), sys.argv[2:])))
