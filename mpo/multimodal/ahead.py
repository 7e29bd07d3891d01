"""Work on the CPU that runs one piece ahead of whoever uses it, in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def ahead(make: Callable[[Given], Made], items: Iterable[Given], *, pieces: int = 1) -> Iterator[Made]:
    """`make(item)` of each item, in order; the next `pieces` are made while the caller uses one.

    Args:
        make: runs in a thread of its own, one call at a time; what it raises is raised here, in its place.
        items: are read here.
        pieces: made ahead, at least 1; so many wait in memory.

    Example:
        >>> list(ahead(len, ["a", "bb", "ccc"]))
        [1, 2, 3]
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            for item in items:
                waiting.append(thread.submit(make, item))
                if len(waiting) > pieces:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
