"""Problems that a server never answers are set aside after some runs, so that they do not block a stage for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from rewards.errors import ServerError
from rewards.kept.store import Store

RUNS_BEFORE_ASIDE = 3  # in which a problem got no usable reply from a server that was there


Result = TypeVar("Result")


def without_failing(
    store: Store, keys: Mapping[str, str], attempt: Callable[[Mapping[str, str]], Result]
) -> tuple[Result, dict[str, str]]:
    """What an attempt gives, and id → reason of the problems that it was made without; see `set_aside`.

    Args:
        store, keys: see `set_aside`.
        attempt: is given the problems to leave out; none at first.
    """
    aside: dict[str, str] = {}
    while True:
        try:
            return attempt(aside), aside
        except ServerError as error:
            aside |= set_aside(store, error, keys)


def set_aside(store: Store, error: ServerError, keys: Mapping[str, str]) -> dict[str, str]:
    """Id → reason of the problems that failed, when each has failed in `RUNS_BEFORE_ASIDE` runs.

    Args:
        store: counts the runs.
        error: names the problems.
        keys: problem id → the key under which it is counted.

    Raises:
        ServerError: one of them has not failed so often; the same command tries it again.
    """
    runs = {id: store.failed(keys[id]) for id in error.problems}
    if not runs or min(runs.values()) < RUNS_BEFORE_ASIDE:
        raise error
    return {id: f"no usable reply in {runs[id]} runs: {reason}" for id, reason in error.problems.items()}
