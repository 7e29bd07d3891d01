"""What a step of the digits policy takes while other processes want the same cores, by how its threads wait.

    python benchmarks/busy_machine.py --busy 2

Each run is a process of its own: `--steps` optimizer steps of the digits world's policy, 16 rows of 96 text tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from recipes.stage.threads import POLICY, SLEEP

BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=2, help="processes that compute beside it")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(work(args.steps))
        return
    waits: dict[str, dict[str, str]] = {
        "spin (libgomp's default)": {},
        "sleep at once": {POLICY: "PASSIVE", "GOMP_SPINCOUNT": "0"},
        "spin a little, then sleep (mpo's choice)": SLEEP,
    }
    print(f"| other processes | threads | waiting threads | ms per step, median of {args.repeats} |")
    print("|--:|--:|---|--:|")
    for busy in (0, args.busy):
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
        try:
            found: dict[str, list[float]] = {name: [] for name in waits}
            for _ in range(args.repeats):
                for name, settings in waits.items():
                    found[name].append(run(args.steps, args.threads, settings))
        finally:
            for other in others:
                other.kill()
                other.wait()
        for name, seconds in found.items():
            print(f"| {busy} | {args.threads} | {name} | {1000 * statistics.median(seconds):.0f} |", flush=True)


def run(steps: int, threads: int, settings: dict[str, str]) -> float:
    kept = {name: value for name, value in os.environ.items() if name not in {*SLEEP, POLICY}}
    environment = {**kept, "OMP_NUM_THREADS": str(threads), **settings}
    command = [sys.executable, __file__, "--work", "--steps", str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def work(steps: int) -> float:
    """Seconds per optimizer step, the first left out."""
    import tempfile

    import torch

    from mpo.multimodal.loading import load_model
    from recipes.worlds.digits.policy import build_policy

    model = load_model(build_policy(tempfile.mkdtemp(), seed=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(10, 300, (16, 96), generator=torch.Generator().manual_seed(0))
    started = 0.0
    for step in range(steps + 1):
        started = time.perf_counter() if step == 1 else started
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - started) / steps


if __name__ == "__main__":
    main()
