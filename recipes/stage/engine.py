"""Where a stage's calls are made: in this process, or on several workers (Ray actors, here or on other machines).

The stage cuts the calls, reads the store and writes it; the workers only make calls, each with a model that it has
loaded once. A call is cut the same way whoever makes it, and its random numbers are its own. So the export has the same
bytes, whatever the number of workers, and whichever of them died: a call that was lost is made again, elsewhere.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, partial
from typing import Any

from mpo.multimodal.errors import ConfigError
from recipes.config import EngineConfig
from rewards.errors import WorkerError
from rewards.kept.calls import Run, in_turn

# Loads what is needed, gives what makes one call (task → JSON value), and puts it away. It is sent to the workers, so
# it is a function of a module, or a `functools.partial` of one with settings.
Work = Callable[[], AbstractContextManager[Callable[[Any], Any]]]

CALLS_A_WORKER = 2  # under way: one is made, one waits at the worker, so that it never waits for us
RETRIES = 3  # of a call whose worker died
OBJECT_STORE_BYTES = 200 << 20  # of a Ray of our own; calls are small, most of them do not pass through it
# Of a Ray of our own: it sends nothing home, listens on the loopback address alone, and wants its token.
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its name for "nodes find each other by addresses of the network"
    "RAY_AUTH_MODE": "token",
}


@contextmanager
def engine(config: EngineConfig, work: Work) -> Iterator[Run]:
    """Makes calls with `config.engine`; nothing is loaded or started before there is a call to make.

    Args:
        config: of the stage.
        work: what a worker loads and does.

    Raises:
        ConfigError: an unknown engine, fewer than one worker, more than the cluster has room for, or no Ray.
        WorkerError: a call cost the lives of several workers.
    """
    if config.engine not in ENGINES:
        raise ConfigError(f"unknown engine {config.engine!r}: expected one of {', '.join(ENGINES)}")
    if config.actors < 1:
        raise ConfigError(f"expected at least 1 actor, got actors={config.actors}")
    with ExitStack() as stack:
        started = cache(lambda: stack.enter_context(ENGINES[config.engine](work, config.actors)))
        yield lambda tasks: started()(tasks) if tasks else iter(())


@contextmanager
def _in_this_process(work: Work, actors: int) -> Iterator[Run]:
    with work() as make:
        yield in_turn(make)


@contextmanager
def _on_ray(work: Work, actors: int) -> Iterator[Run]:
    """Actors of the Ray that RAY_ADDRESS names or that this process is connected to, else of one of our own."""
    ours = "RAY_ADDRESS" not in os.environ
    for name, value in QUIET_RAY.items() if ours else ():
        os.environ.setdefault(name, value)  # Ray reads them when it is imported
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"engine ray needs the extra: pip install -e '.[ray]' ({error})") from error
    import torch

    connected = ray.is_initialized()
    if not connected:
        own: dict[str, Any] = {"address": "local", "num_cpus": actors, "object_store_memory": OBJECT_STORE_BYTES}
        more = {**own, "include_dashboard": False} if ours else {}
        ray.init(log_to_driver=False, logging_level=logging.WARNING, **more)
    workers: list[Any] = []
    try:
        options = {"num_cpus": 1, "num_gpus": _gpus_each(actors, ray.cluster_resources())}
        lives = {"max_restarts": -1, "max_task_retries": RETRIES, "scheduling_strategy": "SPREAD"}
        remote: Any = ray.remote(Worker)
        actor = remote.options(**options, **lives)
        workers += [actor.remote(work, torch.get_num_threads()) for _ in range(actors)]
        yield partial(_spread, workers)
        ray.get([worker.close.remote() for worker in workers])
    finally:
        for worker in workers:
            ray.kill(worker)
        if not connected:
            ray.shutdown()


ENGINES: dict[str, Callable[[Work, int], AbstractContextManager[Run]]] = {"local": _in_this_process, "ray": _on_ray}


class Worker:
    """What lives in an actor: the work, ready from its first call on.

    Args:
        work: see `engine`.
        threads: of torch, as many as the driver has: the last bits of a result depend on their number.
    """

    def __init__(self, work: Work, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._stack = ExitStack()
        self._ready = cache(lambda: self._stack.enter_context(work()))

    def run(self, task: Any) -> Any:
        """Make one call."""
        return self._ready()(task)

    def close(self) -> None:
        """Put away what the work has opened, such as processes of its own."""
        self._stack.close()


def _spread(workers: Sequence[Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """`Run` on actors: a worker gets its next task when it has given back a result, so few are in progress."""
    import ray

    waiting = iter(enumerate(tasks))
    free = deque([*workers] * CALLS_A_WORKER)
    under_way: dict[Any, tuple[int, Any]] = {}
    while True:
        while free and (task := next(waiting, None)):
            worker = free.popleft()
            under_way[worker.run.remote(task[1])] = task[0], worker
        if not under_way:
            return
        (done, *_), _ = ray.wait([*under_way], num_returns=1)
        place, worker = under_way.pop(done)
        result = _result(done)
        free.append(worker)
        yield place, result


def _result(done: Any) -> Any:
    """What a call gave; its own error if it has raised one."""
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from error
    except ray.exceptions.RayError as error:
        raise WorkerError(
            f"a call could not be made: its worker died, {RETRIES + 1} times ({type(error).__name__}); a process that "
            "takes too much memory is killed: try smaller batch_rows or fewer actors. Finished calls are kept; run the "
            "same command to continue"
        ) from error


def _gpus_each(actors: int, resources: dict[str, float]) -> float:
    """The share of a GPU that each actor gets, so that all of them find a place; 0 where there is none.

    Raises:
        ConfigError: there is no room for that many actors.
    """
    if resources.get("CPU", 0) < actors:
        raise ConfigError(
            f"actors={actors}: this Ray cluster has {resources.get('CPU', 0):g} CPUs, and each actor needs one"
        )
    gpus = int(resources.get("GPU", 0))
    return 1 / math.ceil(actors / gpus) if gpus else 0
