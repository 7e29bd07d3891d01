"""Processes that end when they are told to, and with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

PARENT = "MPO_PARENT_PID"  # of a process that is to end with the one that started it
GRACE_S = 5.0  # to put things away after Ctrl-C; all work that was finished is on the disk anyway
LOOK_EVERY_S = 0.5
INTERRUPTED = "interrupted; finished stages and stored work are kept; run the same command to continue"


@contextmanager
def ends_promptly() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in this block; one that does not end then is ended, as is one whose parent died.

    A library may swallow the exception or wait for a thread of its own; a second Ctrl-C, or `GRACE_S` seconds, end the
    process with exit code 130 all the same. A process that ignores SIGINT keeps ignoring it.
    """
    _watch_parent()
    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not plain or threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[threading.Timer] = []

    def interrupt(*_: Any) -> None:
        if waiting:
            _end()
        waiting.append(threading.Timer(GRACE_S, _end))
        waiting[0].daemon = True
        waiting[0].start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for timer in waiting:
            timer.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_together(commands: Sequence[Sequence[str]], *, jobs: int, environment: Mapping[str, str]) -> list[int]:
    """Exit codes of commands, `jobs` of them at a time; all that run are ended if this process is, in whatever way.

    Args:
        commands: each runs `mpo …`, which looks after its parent.
        jobs: at least 1.
        environment: of each, besides this process's own.
    """
    own = {**os.environ, **environment, PARENT: str(os.getpid())}
    running: dict[int, subprocess.Popen[bytes]] = {}
    codes: dict[int, int] = {}
    try:
        for place, command in enumerate(commands):
            while len(running) >= jobs:
                codes |= _ended(running)
            running[place] = subprocess.Popen(command, env=own)
        while running:
            codes |= _ended(running)
    finally:
        _stop([*running.values()])
    return [codes[place] for place in range(len(commands))]


def _ended(running: dict[int, subprocess.Popen[bytes]]) -> dict[int, int]:
    """Those that have ended since, taken out; waits a little."""
    time.sleep(0.05)
    done = {place: code for place, child in running.items() if (code := child.poll()) is not None}
    for place in done:
        del running[place]
    return done


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE_S - 1
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _watch_parent() -> None:
    parent = os.environ.pop(PARENT, "")
    if parent:
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:  # a process whose parent died gets another
        time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE_S)
    _end()


def _end() -> None:
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(130)
