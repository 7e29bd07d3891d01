"""How long the `mpo` command takes to start: an empty interpreter, `mpo --help`, one command's `--help`.

Each is a process of its own, started in turn; medians, with the range. CPU seconds, those of the process and its
children, are disturbed less by others on the machine than the wall clock. Modules are what it has imported at its end.

    python benchmarks/cli_start.py
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from statistics import median

RUN = "import sys; from recipes.cli import main; sys.exit(main(sys.argv[1:]))"
AT_EXIT = (
    "import atexit, sys; atexit.register(lambda: print(len(sys.modules), 'torch' in sys.modules, file=sys.stderr))"
)
COMMANDS = {
    "python -c pass": ["pass"],
    "mpo --help": [RUN, "--help"],
    "mpo sample --help": [RUN, "sample", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each")
    rounds = parser.parse_args().rounds
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            runs[name].append(timed(*command))
    print(f"medians of {rounds} runs, Python {platform.python_version()}, {os.cpu_count()} cores")
    print("| command | seconds | range | CPU seconds | modules | torch |\n|" + " --- |" * 6)
    for name, some in runs.items():
        wall = sorted(seconds for seconds, _ in some)
        cpu = median(seconds for _, seconds in some)
        modules, torch = imported(*COMMANDS[name])
        print(f"| `{name}` | {median(wall):.2f} | [{wall[0]:.2f}, {wall[-1]:.2f}] | {cpu:.2f} | {modules} | {torch} |")


def timed(code: str, *arguments: str) -> tuple[float, float]:
    """(wall-clock, CPU) seconds of one process."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - started, os.times()
    return seconds, sum(after[2:4]) - sum(before[2:4])


def imported(code: str, *arguments: str) -> tuple[str, str]:
    """Number of modules at the end, and whether torch is one of them."""
    command = [sys.executable, "-c", f"{AT_EXIT}\n{code}", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    modules, torch = done.stderr.split()[-2:]
    return modules, {"True": "yes", "False": "no"}[torch]


if __name__ == "__main__":
    main()
