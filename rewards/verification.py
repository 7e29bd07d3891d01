r"""Completion → Verdict of its final answer; symbolic checks run in worker processes that can be killed.

math-verify's own timeouts do not always fire (its issue #65) and do not work in threads, so they are off
here: `MathVerifier` gives each check a wall-clock limit and kills the worker that exceeds it. A verifier's
trouble is `TIMEOUT` or `ERROR`, never `WRONG`. Nothing is ever evaluated: math-verify parses with ANTLR.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import re
import signal
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

from pebble import ProcessExpired, ProcessPool

from mpo.multimodal.errors import ConfigError, DataError
from rewards.types import Problem, Verdict

_log = logging.getLogger(__name__)

_MARKER = re.compile(r"final answer[ \t]*+(?:\*\*)?[ \t]*+:(?:[ \t]*\*\*)?", re.IGNORECASE)
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_WORDS = re.compile(r"(?=.*[^\W\d_]{3})[^\W\d_]+(?:[ '’-][^\W\d_]+)*")
_CHOICE = re.compile(r"\(?([A-H])\)?(?:[.:,)].*)?", re.DOTALL)
_TEXT_MACRO = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
_START_LIMIT_S = 120.0  # a worker's first import of sympy on a busy machine
_CHECKS_A_WORKER = 5_000  # then a fresh process takes over: sympy's caches grow
_MEMORY_HEADROOM = 2 << 30  # bytes of address space a worker may take beyond what its start needed


def extract_final_answer(text: str) -> str | None:
    r"""The rest of the line after the last "Final answer:" (any case), else the last balanced `\boxed{…}`, else None.

    A box on the marker's line is opened; markdown's `**` around the answer is dropped. Linear in the text's length.

    Example:
        >>> extract_final_answer("I first thought \\boxed{3}.\n\n**Final answer:** 7 cm")
        '7 cm'
        >>> extract_final_answer(r"so \boxed{3}, no: \boxed{\frac{1}{2}}")
        '\\frac{1}{2}'
        >>> extract_final_answer("I do not know") is None
        True
    """
    markers = list(_MARKER.finditer(text))
    if markers:
        tail = text[markers[-1].end() :].lstrip(" \t")
        line = tail.partition("\n")[0].strip().removesuffix("**").strip()
        boxed = _last_box(tail) if "\\boxed" in line else None
        if boxed or line:
            return boxed or line
    return _last_box(text)


def canonical_answer(text: str) -> str | None:
    """The extracted final answer, stripped, inner whitespace collapsed, one trailing full stop dropped; for votes.

    Example:
        >>> canonical_answer("Final answer:  New   York.")
        'New York'
    """
    answer = extract_final_answer(text)
    return _normalise(answer) or None if answer is not None else None


def exact_verifier(problem: Problem, text: str) -> Verdict:
    """Canonical final answer equal to the canonical reference, character by character.

    Raises:
        DataError: the problem has no reference answer.

    Example:
        >>> exact_verifier(Problem("p", "2 + 2?", answer="4"), "Final answer: 4.")
        <Verdict.CORRECT: 'correct'>
    """
    reference, answer = _reference(problem), canonical_answer(text)
    if answer is None:
        return Verdict.UNPARSABLE
    return Verdict.CORRECT if answer == reference else Verdict.WRONG


class MathVerifier:
    r"""Mathematical equality of final answers (math-verify), each check in a process that is killed when it hangs.

    Letters and words are compared as text before any symbolic check: to math-verify "Kyoto" and "Tokyo" are
    equal products of letters, and "(B)" or "B. 12" are not the choice B. Limits that stay: units are ignored
    ("12 cm" equals "12 m"), 0.333 is not 1/3, 50% equals 0.5.

    Identical (reference, answer) are checked once in the verifier's life. Workers are spawned, so a parent
    with torch, threads or CUDA does no harm; a script that uses this needs `if __name__ == "__main__":`.

    Args:
        workers: number of processes; they start at the first answer that needs one.
        timeout_s: seconds a single check may take before its worker is killed.
        max_characters: a longer final answer is UNPARSABLE and never reaches the parser.

    Example:
        >>> problem = Problem("p", "Half of one?", answer="1/2")
        >>> with MathVerifier() as verifier:
        ...     verifier.verify(problem, "so \\boxed{0.5}")
        <Verdict.CORRECT: 'correct'>
    """

    def __init__(self, *, workers: int = 1, timeout_s: float = 5.0, max_characters: int = 10_000) -> None:
        if workers < 1 or not timeout_s > 0 or max_characters < 1:
            raise ConfigError(
                "expected workers >= 1, timeout_s > 0 and max_characters >= 1, "
                f"got {workers}, {timeout_s} and {max_characters}"
            )
        self.workers, self.timeout_s, self.max_characters = workers, timeout_s, max_characters
        self._known: dict[tuple[str, str], Verdict] = {}
        self._pool: ProcessPool | None = None

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers; the verifier starts new ones if it is used again."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """The same as `verify`, so that the object is a `Verifier`."""
        return self.verify(problem, text)

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Check one completion.

        Raises:
            DataError: the problem has no reference answer.
            ConfigError: no worker process can be started.
        """
        return self.verify_many([(problem, text)])[0]

    def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Check many completions, `workers` at a time; one verdict a pair, in order. Raises as `verify`."""
        keys = [(_reference(problem), canonical_answer(text)) for problem, text in pairs]
        asked = dict.fromkeys((gold, answer) for gold, answer in keys if answer is not None)
        unsure = []
        for key in asked.keys() - self._known.keys():
            verdict = self._decide_as_text(*key)
            if verdict is None:
                unsure.append(key)
            else:
                self._known[key] = verdict
        self._check(sorted(unsure))
        return [Verdict.UNPARSABLE if answer is None else self._known[gold, answer] for gold, answer in keys]

    def _decide_as_text(self, gold: str, answer: str) -> Verdict | None:
        if len(answer) > self.max_characters:
            return Verdict.UNPARSABLE
        if answer == gold:
            return Verdict.CORRECT
        plain = _TEXT_MACRO.sub(r"\1", answer).replace("$", "").strip()
        if _WORDS.fullmatch(gold):
            return Verdict.CORRECT if _normalise(plain).casefold() == gold.casefold() else Verdict.WRONG
        choice = _CHOICE.fullmatch(plain)
        if choice and re.fullmatch("[A-H]", gold):
            return Verdict.CORRECT if choice[1] == gold else Verdict.WRONG
        return None

    def _check(self, keys: list[tuple[str, str]]) -> None:
        for key in self._attempt(keys):
            self._attempt([key])  # its pool broke: alone in a fresh one
        for key in keys:
            self._known.setdefault(key, Verdict.ERROR)

    def _attempt(self, keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Check `keys`; returns those whose pool broke before they were done."""
        if not keys:
            return []
        pool, alarm_s = self._running_pool(), math.ceil(2 * self.timeout_s) + 5
        futures: list[tuple[tuple[str, str], Future[Verdict]]] = []
        for key in keys:
            try:
                futures.append((key, pool.schedule(_compare, args=(*key, alarm_s), timeout=self.timeout_s)))
            except RuntimeError:  # the pool is no longer active
                break
        broken = keys[len(futures) :]
        for key, future in futures:
            try:
                self._known[key] = future.result()
            except TimeoutError:
                self._known[key] = Verdict.TIMEOUT
            except BrokenProcessPool:
                broken.append(key)
            except Exception as error:
                _log.warning("verifier worker failed on answer %.80r: %s: %s", key[1], type(error).__name__, error)
                self._known[key] = Verdict.ERROR
        return broken

    def _running_pool(self) -> ProcessPool:
        if self._pool is not None and self._pool.active:
            return self._pool
        self.close()
        pool = ProcessPool(
            max_workers=self.workers,
            max_tasks=_CHECKS_A_WORKER,
            initializer=_prepare_worker,
            context=multiprocessing.get_context("spawn"),
        )
        self._pool = pool
        try:
            pool.schedule(_ready, timeout=_START_LIMIT_S).result()
        except (BrokenProcessPool, ProcessExpired, TimeoutError) as error:
            self.close()
            raise ConfigError(
                f"no verifier process could start ({type(error).__name__}: {error}): expected math-verify to be "
                'installed and the running script to guard its entry with `if __name__ == "__main__":`'
            ) from error
        return pool


def _last_box(text: str) -> str | None:
    r"""Content of the `\boxed{…}` that opens last among those whose brace closes; escaped braces do not count."""
    open_braces: list[int | None] = []  # where a box's content starts; None for any other brace
    start, end = -1, -1
    for token in _BRACES.finditer(text):
        if token[0] == "{":
            open_braces.append(None)
        elif token[0].startswith("\\boxed"):
            open_braces.append(token.end())
        elif token[0] == "}" and open_braces:
            opened = open_braces.pop()
            if opened is not None and opened > start:
                start, end = opened, token.start()
    return text[start:end].strip() or None if start >= 0 else None


def _normalise(answer: str) -> str:
    return " ".join(answer.split()).removesuffix(".").rstrip()


def _reference(problem: Problem) -> str:
    reference = _normalise(problem.answer or "")
    if not reference:
        raise DataError(f"problem {problem.id!r} has no reference answer: expected `answer`; drop it before verifying")
    return reference


def _prepare_worker() -> None:
    """In the worker: import math-verify outside any check's time, then cap the address space."""
    import math_verify  # noqa: F401

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as statm:
            in_use = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        return  # no such limit on this system
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = in_use + _MEMORY_HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _ready() -> bool:
    return True


def _compare(gold: str, answer: str, alarm_s: int) -> Verdict:
    """In the worker: symbolic equality. The alarm ends a hanging worker whose parent is gone."""
    from math_verify import verify

    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(alarm_s)
    try:
        expected, found = _parse(gold), _parse(answer)
        if not expected:
            raise DataError(f"reference answer {gold!r} cannot be parsed")
        if not found:
            return Verdict.UNPARSABLE
        equal = verify(expected, found, timeout_seconds=None, raise_on_error=True)
        return Verdict.CORRECT if equal else Verdict.WRONG
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _parse(answer: str) -> list[object]:
    from math_verify import parse

    answer = answer.replace("−", "-")
    return parse(answer if "$" in answer else f"${answer}$", parsing_timeout=None, raise_on_error=True)
