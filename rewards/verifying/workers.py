"""Checks in worker processes that are killed: a wall-clock limit for each check, a memory limit for each worker.

A thread cannot be killed and a signal needs the main thread, so only a process keeps the promise that one hanging
check costs `timeout_s` and nothing else. What goes wrong is `TIMEOUT` or `ERROR`, never `WRONG`.
"""

from __future__ import annotations

import importlib
import logging
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self

from pebble import ProcessExpired, ProcessPool

from mpo.multimodal.errors import ConfigError
from rewards.types import Problem, Verdict, Verifier

_log = logging.getLogger(__name__)

_START_LIMIT_S = 120.0  # a worker's first imports on a busy machine
_CHECKS_A_WORKER = 5_000  # then a fresh process takes over: caches of the checked code grow
_MEMORY_HEADROOM = 2 << 30  # bytes of address space a worker may take beyond what its start needed


class Workers:
    """Runs one module-level function, `workers` calls at a time; each call gives a verdict.

    Workers are spawned, so a parent with torch, threads or CUDA does no harm; a script that uses this needs
    `if __name__ == "__main__":`. They start at the first call.

    Args:
        check: picklable by name; returns a `Verdict` or the name of one. An exception or anything else is `ERROR`.
        workers: number of processes.
        timeout_s: seconds a call may take before its worker is killed.
        preload: module to import in a worker before any call's time runs.
    """

    def __init__(
        self, check: Callable[..., Verdict], *, workers: int = 1, timeout_s: float = 5.0, preload: str = ""
    ) -> None:
        if workers < 1 or not timeout_s > 0:
            raise ConfigError(f"expected workers >= 1 and timeout_s > 0, got {workers} and {timeout_s}")
        self.check, self.workers, self.timeout_s, self.preload = check, workers, timeout_s, preload
        self._pool: ProcessPool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes; new ones start if the object is used again."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def run(self, calls: Sequence[tuple[Any, ...]]) -> list[Verdict]:
        """One verdict for each tuple of arguments, in order.

        Raises:
            ConfigError: no worker process can be started.
        """
        verdicts: dict[int, Verdict] = {}
        broken = self._attempt(list(enumerate(calls)), verdicts)
        for call in broken:
            self._attempt([call], verdicts)  # its pool broke: alone in a fresh one
        return [verdicts.get(index, Verdict.ERROR) for index in range(len(calls))]

    def _attempt(
        self, calls: list[tuple[int, tuple[Any, ...]]], verdicts: dict[int, Verdict]
    ) -> list[tuple[int, tuple[Any, ...]]]:
        """Fill in verdicts; returns the calls whose pool broke before they were done."""
        if not calls:
            return []
        pool, alarm_s = self._running_pool(), math.ceil(2 * self.timeout_s) + 5
        futures: list[Future[Verdict]] = []
        for _, arguments in calls:
            try:
                futures.append(pool.schedule(guarded, args=(self.check, arguments, alarm_s), timeout=self.timeout_s))
            except RuntimeError:  # the pool is no longer active
                break
        broken = calls[len(futures) :]
        for (index, arguments), future in zip(calls, futures, strict=False):
            try:
                verdicts[index] = future.result()
            except TimeoutError:
                verdicts[index] = Verdict.TIMEOUT
            except BrokenProcessPool:
                broken.append((index, arguments))
            except Exception as error:
                _log.warning("check failed on %.80r: %s: %s", arguments[-1], type(error).__name__, error)
                verdicts[index] = Verdict.ERROR
        return broken

    def _running_pool(self) -> ProcessPool:
        if self._pool is not None and self._pool.active:
            return self._pool
        self.close()
        pool = ProcessPool(
            max_workers=self.workers,
            max_tasks=_CHECKS_A_WORKER,
            initializer=prepare_worker,
            initargs=(self.preload,),
            context=multiprocessing.get_context("spawn"),
        )
        self._pool = pool
        try:
            pool.schedule(_ready, timeout=_START_LIMIT_S).result()
        except (BrokenProcessPool, ProcessExpired, TimeoutError) as error:
            self.close()
            raise ConfigError(
                f"no verifier process could start ({type(error).__name__}: {error}): expected "
                f"{self.preload or 'the verifier'} to be importable and the running script to guard its entry with "
                '`if __name__ == "__main__":`'
            ) from error
        return pool


class WorkerVerifier(Workers):
    """Any verifier function, such as a user's own, in processes that are killed when they hang.

    Args:
        check: a `Verifier` at the top level of an importable module.
        workers: number of processes.
        timeout_s: seconds a check may take.
    """

    def __init__(self, check: Verifier, *, workers: int = 1, timeout_s: float = 5.0) -> None:
        super().__init__(check, workers=workers, timeout_s=timeout_s)

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Check one completion."""
        return self.run([(problem, text)])[0]

    def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Check many completions; one verdict per pair, in order."""
        return self.run(pairs)


def prepare_worker(preload: str = "") -> None:
    """In the worker: import `preload` outside any check's time, then cap the address space."""
    if preload:
        importlib.import_module(preload)
        logging.getLogger(preload).setLevel(logging.CRITICAL)
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as statm:
            in_use = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        return  # no such limit on this system
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = in_use + _MEMORY_HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def guarded(check: Callable[..., Verdict], arguments: tuple[Any, ...], alarm_s: int) -> Verdict:
    """In the worker: one call. The alarm ends a hanging worker whose parent is gone."""
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(alarm_s)
    try:
        return Verdict(check(*arguments))
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _ready() -> bool:
    return True
