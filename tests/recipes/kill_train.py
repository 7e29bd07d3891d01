"""`kill_train.py KILLS TRAIN-FLAGS…`: run `mpo train-mpo`, killed with SIGKILL at random moments, until it is done.

The parent has imported everything and forks a child an attempt, so that a kill costs no start. A kill comes a random
while after the attempt's first new checkpoint, so every attempt gets on. Prints one line of JSON for test_train_mpo.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import recipes.train_mpo  # noqa: F401
from mpo.multimodal.checkpoint import MANIFEST
from recipes.cli import main


def run(kills: int, flags: list[str]) -> dict[str, object]:
    """Kill, resume, finish; says at which checkpoint each kill came, and the last attempt's exit status."""
    torch.set_num_threads(1)
    rng = random.Random(0)
    out = Path(flags[flags.index("--out") + 1])
    left: list[int] = []
    for _ in range(kills):
        before = _newest(out)
        child = _start(flags)
        deadline = time.monotonic() + 200
        while _newest(out) <= before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the run ended before it was killed"
        left.append(_newest(out))
    _, status = os.waitpid(_start(flags), 0)
    return {"left": left, "status": os.waitstatus_to_exitcode(status)}


def _start(flags: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = main(["train-mpo", *flags])
    finally:  # the child must never return into the parent's loop
        os._exit(code)


def _newest(out: Path) -> int:
    return max((int(path.parent.name.split("-")[1]) for path in out.glob(f"checkpoint-*/{MANIFEST}")), default=0)


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), sys.argv[2:])))
