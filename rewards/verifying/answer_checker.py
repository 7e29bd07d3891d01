"""Responses of a training run → verdicts, in worker processes that are killed when a check hangs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from mpo.multimodal.errors import ConfigError
from rewards.types import Completion, FinishReason, Problem, Verdict
from rewards.verifying.verification import VERIFIERS, own_verifier
from rewards.verifying.workers import Workers

PRELOAD = "rewards.verifying.in_worker"
REMEMBERED = 50_000  # verdicts


class AnswerChecker:
    """Checks the final answers of a training run's responses; the same response is checked once.

    Nothing that reads a response runs in the trainer's process, so a check that hangs costs `timeout_s` and becomes
    `Verdict.TIMEOUT`. A script that uses this needs `if __name__ == "__main__":`, since workers are spawned.

    Args:
        problems: id → problem.
        verifier: a name of `rewards.verifying.verification.VERIFIERS`, or `package.module:function`.
        workers: number of processes, at least 1.
        timeout_s: seconds that a check may take, above 0.

    Raises:
        ConfigError: no such verifier, or `judge`: a server's replies have no limit in time that a trainer could keep.

    Example:
        >>> problems = {"p": Problem("p", "2 + 2?", answer="4"), "q": Problem("q", "?")}
        >>> with AnswerChecker(problems) as checker:
        ...     checker.verdicts(["p", "p", "q"], [Completion(text) for text in ("It is 4.", "It is 5.", "4")])
        [<Verdict.CORRECT: 'correct'>, <Verdict.WRONG: 'wrong'>, None]
    """

    def __init__(
        self, problems: Mapping[str, Problem], *, verifier: str = "auto", workers: int = 1, timeout_s: float = 5.0
    ) -> None:
        check_name(verifier)
        self.verifier = verifier
        self.problems = {id: replace(one, images=(), placed=False) for id, one in problems.items()}
        self._known: dict[tuple[str, str, bool], Verdict] = {}
        self._workers, self._timeout_s = workers, timeout_s
        self._pool: Workers | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes; new ones start if the object is used again."""
        if self._pool is not None:
            self._pool.close()

    def verdicts(self, ids: Sequence[str], completions: Sequence[Completion]) -> list[Verdict | None]:
        """One verdict per response, in order; `None` for a problem without a reference answer.

        Args:
            ids: of the problems, as many as there are responses.
            completions: the responses.

        Raises:
            ConfigError: no worker process can be started.
        """
        keys = [
            (id, one.text, one.finish_reason is FinishReason.LENGTH)
            for id, one in zip(ids, completions, strict=True)
        ]  # fmt: skip
        asked = [key for key in dict.fromkeys(keys) if key not in self._known and self.has_reference(key[0])]
        if len(self._known) > REMEMBERED:
            self._known.clear()
            asked = [key for key in dict.fromkeys(keys) if self.has_reference(key[0])]
        calls = [(self.verifier, self.problems[id], text, cut) for id, text, cut in asked]
        self._known |= dict(zip(asked, self._run("answer", calls), strict=True))
        return [self._known.get(key) for key in keys]

    def states_answers(self, completions: Sequence[Completion]) -> list[bool | None]:
        """Whether each response ended by itself and states a final answer; `None` if that could not be read."""
        calls = [(one.text, one.finish_reason is FinishReason.LENGTH) for one in completions]
        found = {Verdict.CORRECT: True, Verdict.WRONG: False}
        return [found.get(verdict) for verdict in self._run("format", calls)]

    def unreadable(self) -> list[str]:
        """Ids of the problems whose reference answer the verifier cannot read."""
        ids = [id for id in self.problems if self.has_reference(id)]
        found = self._run("reference", [(self.verifier, self.problems[id]) for id in ids])
        return [id for id, verdict in zip(ids, found, strict=True) if verdict is not Verdict.CORRECT]

    def has_reference(self, id: str) -> bool:
        """Whether a response to this problem can be checked."""
        return ":" in self.verifier or bool((self.problems[id].answer or "").strip())

    def _run(self, what: str, calls: Sequence[tuple[Any, ...]]) -> list[Verdict]:
        if not calls:
            return []
        if self._pool is None:
            work = import_module(PRELOAD).work
            self._pool = Workers(work, workers=self._workers, timeout_s=self._timeout_s, preload=PRELOAD)
        return self._pool.run([(what, *call) for call in calls])


def check_name(verifier: str) -> None:
    """Raise ConfigError for a verifier that a training run cannot use."""
    if verifier == "judge":
        raise ConfigError("verifier judge is not supported in training: a server's reply can hang; verify afterwards")
    if own_verifier(verifier) is None and verifier not in VERIFIERS:
        raise ConfigError(
            f"unknown verifier {verifier!r}: expected one of {', '.join(VERIFIERS)}, or package.module:function"
        )
