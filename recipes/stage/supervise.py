"""`python -P supervise.py PARENT COMMAND…`: a command whose processes end with ours, however we end.

A process that is killed cannot end what it started. So this one stands between: it is in a group of its own with the
command, and ends that group when its parent is gone or when it is told to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType

GRACE_S = 5.0  # between asking a command to end and ending it
LOOK_EVERY_S = 0.2


def main(parent: int, command: list[str]) -> int:
    """Run the command; its exit code."""
    asked_at: list[float] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked_at.append(time.monotonic())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as child:
        told = False
        while child.poll() is None:
            if os.getppid() != parent and not asked_at:
                asked_at.append(time.monotonic())
            if asked_at and not told:
                told = True
                child.terminate()
            if asked_at and time.monotonic() > asked_at[0] + GRACE_S:
                break
            time.sleep(LOOK_EVERY_S)
        code = child.poll()
        if asked_at:
            os.killpg(0, signal.SIGKILL)  # this process too: what the command has started may be left
    return 1 if code is None else code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
