"""Work for the tests of `recipes/stage/engine.py`, in a module that the workers can import."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import DataError


@contextmanager
def squares(folder: Path) -> Iterator[Callable[[int], Any]]:
    """Says which process has loaded; one task kills its process the first time, one always, one is refused."""
    with (folder / "loaded").open("a") as file:
        file.write(f"{os.getpid()}\n")

    def work(task: int) -> Any:
        if task == 13 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task == -1:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == -2:
            raise DataError("not this one", reason="refused")
        return task * task

    yield work
    (folder / f"closed-{os.getpid()}").touch()
