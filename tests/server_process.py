"""A model server in a process of its own (`tests/serve_model.py`), with what it was asked over all its lives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parent


class ServerProcess:
    """Started at once; `kill` and `start` again at will. With `model` that folder's model answers, or `simulated`."""

    def __init__(self, log: Path, *, model: Path | str | None = None) -> None:
        self.log, self.model = log, model
        self.port = free_port()
        self.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start, and wait until it listens."""
        lives = self.lines().count("up")
        model = [str(self.model)] if self.model else []
        command = [sys.executable, str(TESTS / "serve_model.py"), str(self.port), str(self.log), *model]
        self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(TESTS.parent)})
        until(lambda: self.lines().count("up") > lives)

    def kill(self) -> None:
        """SIGKILL: it says nothing to anybody."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def lines(self) -> list[str]:
        """Its log."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def asked(self) -> list[str]:
        """What each chat request was about."""
        return [line for line in self.lines() if line not in ("up", "models")]


def until(true: Callable[[], bool]) -> None:
    """Wait for it, at most two minutes."""
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
