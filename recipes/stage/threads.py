"""How a command's threads wait, and how many there are: on a busy machine they take their share, and no more.

OpenMP's threads spin while they wait for each other. If other processes want the same cores, a thread that spins keeps
the one off that it waits for, and a step takes many times as long. If they sleep at once, each wait on an idle machine
costs a wake-up. So they spin a little and then sleep, unless the user says otherwise (docs/performance.md has the
figures). Their number never depends on the load, since the last bits of a result depend on it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

# Of OpenMP, of GNU's and of Intel's run-time library; they are read when torch is imported.
SLEEP = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}  # turns of a loop, and milliseconds
POLICY = "OMP_WAIT_POLICY"
NUMBER = "OMP_NUM_THREADS"
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU per period, or "max"


def choose_threads(environment: MutableMapping[str, str] = os.environ) -> str:
    """Set how threads wait, and their number in a container with fewer CPUs than the machine; gives a line about it.

    Nothing is set that the user has set, nor once torch is imported.
    """
    if "torch" not in sys.modules:
        if not {*SLEEP, POLICY} & environment.keys():
            environment.update(SLEEP)
        allowed = _allowed_by_quota()
        if NUMBER not in environment and allowed is not None and allowed < _cores():
            environment[NUMBER] = str(allowed)
    ours = all(environment.get(name) == value for name, value in SLEEP.items())
    wait = "spin a little and then sleep while they wait" if ours else "wait for each other as your settings say"
    number = environment.get(NUMBER) or f"{_cores()}"
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    busy = f"; the load is {load:.1f}, so a step takes longer than on an idle machine" if load >= cores else ""
    return f"threads: {number} on {cores} cores; they {wait}{busy}"


def threads_used() -> int | None:
    """The number of threads that torch computes with; None if it was not needed."""
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()


def _cores() -> int:
    """Physical cores that this process may use, which is what torch takes."""
    import psutil

    allowed = len(os.sched_getaffinity(0))
    return min(psutil.cpu_count(logical=False) or allowed, allowed)


def _allowed_by_quota() -> int | None:
    try:
        quota, period = QUOTA.read_text().split()
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None
