"""Requests of many clients, scored together: a PRM's calls take responses of whoever waits.

One thread has the PRM. It takes what waits, up to a call's size, and puts responses to one question about the same
images side by side, whoever asked, so that they share their prompt's work; the same response is scored once. What a
client no longer waits for is not begun.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mpo.multimodal.errors import DataError
from mpo.multimodal.images import image_sha256
from rewards.kept.keys import digest
from rewards.scoring.aggregation import aggregate
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.types import Aggregator, Problem, StepScores


class QueueFullError(Exception):
    """As many responses wait as may; the client is to ask again later."""


@dataclass(frozen=True)
class Scored:
    """A response's reward and step scores, or why it has none.

    Attributes:
        reward: aggregated step scores, 0 to 1 for the usual aggregations; None without scores.
        steps: P(correct) of each step, in order.
        spreads: standard deviation of each, as `StepScores.spreads`; None where the PRM tells none.
        reason: why there are none, in a few words.
    """

    reward: float | None
    steps: tuple[float, ...] = ()
    spreads: tuple[float, ...] | None = None
    reason: str | None = None


@dataclass
class Counts:
    """What a queue has done since it was made."""

    requests: int = 0
    responses: int = 0
    calls: int = 0
    seconds: float = 0.0
    refused: int = 0
    given_up: int = 0
    unscored: Counter[str] = field(default_factory=Counter)


class ScoringQueue:
    """Scores responses for many threads; a context manager, which ends when all that waits is scored.

    Args:
        prm: any; only the queue's thread calls it.
        how: aggregation of step scores.
        rows: responses per call of the PRM, about: a request is never divided.
        most_waiting: responses that may wait; a request on top is refused.

    Example:
        >>> from rewards.types import StepScores
        >>> class Short(ProcessRewardModel):
        ...     def outcomes(self, items, *, describe=""):
        ...         return [StepScores((1 / len(text),)) for _, text in items]
        >>> with ScoringQueue(Short()) as queue:
        ...     [scored.reward for scored in queue.put("2 + 2?", [], ["4", "five"]).result()]
        [1.0, 0.25]
    """

    def __init__(
        self, prm: ProcessRewardModel, *, how: str | Aggregator = "mean", rows: int = 32, most_waiting: int = 1024
    ) -> None:
        self.prm, self.how, self.rows, self.most_waiting = prm, how, rows, most_waiting
        self.counts = Counts()
        self._jobs: deque[_Job] = deque()
        self._waiting, self._closed = 0, False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    def __enter__(self) -> ScoringQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, question: str, images: Sequence[Any], responses: Sequence[str]) -> Future[list[Scored]]:
        """The scores of the responses, in order, when their turn has come; `cancel` takes them back before that.

        Args:
            question: what was asked.
            images: decoded, in order.
            responses: at least one.

        Raises:
            QueueFullError: too much waits, or the queue is closed.
        """
        job = _Job(question, tuple(images), tuple(responses))
        with self._change:
            if self._closed or self._waiting + len(responses) > max(self.most_waiting, len(responses)):
                self.counts.refused += 1
                raise QueueFullError
            self._waiting += len(responses)
            self._jobs.append(job)
            self._change.notify()
        return job.future

    @property
    def waiting(self) -> int:
        """Responses that wait."""
        return self._waiting

    def close(self) -> None:
        """Refuse what comes from now on, score what waits, and end."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            begun = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            self.counts.given_up += len(jobs) - len(begun)
            self._score(begun)

    def _next(self) -> list[_Job]:
        """What waits, up to a call's size; waits for something; nothing when the queue is closed and empty."""
        with self._change:
            while not self._jobs and not self._closed:
                self._change.wait()
            jobs: list[_Job] = []
            while self._jobs and (not jobs or sum(len(job.responses) for job in [*jobs, self._jobs[0]]) <= self.rows):
                jobs.append(self._jobs.popleft())
            self._waiting -= sum(len(job.responses) for job in jobs)
            return jobs

    def _score(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        started = time.monotonic()
        try:
            found = self._scores(jobs)
        except Exception as error:  # one request may be what the PRM breaks at: the others must not pay for it
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                self._score([job])
            return
        self.counts.calls += 1
        self.counts.seconds += time.monotonic() - started
        for job, scored in zip(jobs, found, strict=True):
            self.counts.requests += 1
            self.counts.responses += len(scored)
            self.counts.unscored.update(one.reason for one in scored if one.reason)
            job.future.set_result(scored)

    def _scores(self, jobs: Sequence[_Job]) -> list[list[Scored]]:
        problems = {job.key: Problem(job.key, job.question, job.images) for job in jobs}
        wanted = sorted({(job.key, text) for job in jobs for text in job.responses})
        outcomes = self.prm.outcomes([(problems[key], text) for key, text in wanted])
        by_text = {pair: self._scored(outcome) for pair, outcome in zip(wanted, outcomes, strict=True)}
        return [[by_text[job.key, text] for text in job.responses] for job in jobs]

    def _scored(self, outcome: StepScores | DataError) -> Scored:
        if isinstance(outcome, DataError):
            return Scored(None, reason=outcome.reason)
        return Scored(float(aggregate(outcome, how=self.how)), outcome.values, outcome.spreads)


class _Job:
    """One request."""

    def __init__(self, question: str, images: tuple[Any, ...], responses: tuple[str, ...]) -> None:
        self.question, self.images, self.responses = question, images, responses
        self.key = digest([image_sha256(image) for image in images], question)
        self.future: Future[list[Scored]] = Future()
