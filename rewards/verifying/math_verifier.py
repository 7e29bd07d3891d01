r"""Mathematical equality of final answers: math-verify in worker processes that can be killed.

math-verify's own timeouts do not always fire (its issue #65) and do not work in threads, so they are off here.
Nothing is ever evaluated: math-verify parses with ANTLR.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from mpo.multimodal.errors import ConfigError, DataError
from rewards.types import Problem, Verdict
from rewards.verifying.answers import canonical_answer, normalise, reference_of
from rewards.verifying.workers import Workers

_WORDS = re.compile(r"(?=.*[^\W\d_]{3})[^\W\d_]+(?:[ '’-][^\W\d_]+)*")
_CHOICE = re.compile(r"\(?([A-H])\)?(?:[.:,)].*)?", re.DOTALL)
_TEXT_MACRO = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
_REMEMBERED = 50_000  # verdicts, some 300 bytes each
_E_NOTATION = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\w.])")


class MathVerifier:
    r"""Mathematical equality of final answers (math-verify), each check in a process that is killed when it hangs.

    Letters and words are compared as text before any symbolic check: to math-verify "Kyoto" and "Tokyo" are
    equal products of letters, and "(B)" or "B. 12" are not the choice B. Limits that stay: units are ignored
    ("12 cm" equals "12 m"), 0.333 is not 1/3, 50% equals 0.5; `number_verifier` reads units and tolerates rounding.

    Identical (reference, answer) are checked once; past 50,000 verdicts the verifier begins to remember anew. Workers
    are spawned, so a parent with torch, threads or CUDA does no harm; a script that uses this needs
    `if __name__ == "__main__":`.

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
        if max_characters < 1:
            raise ConfigError(f"expected max_characters >= 1, got {max_characters}")
        self.max_characters = max_characters
        self._known: dict[tuple[str, str], Verdict] = {}
        self._workers = Workers(compare, workers=workers, timeout_s=timeout_s, preload="math_verify")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers; the verifier starts new ones if it is used again."""
        self._workers.close()

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
        """Check many completions, `workers` at a time; one verdict per pair, in order. Raises as `verify`."""
        keys = [(reference_of(problem), canonical_answer(text)) for problem, text in pairs]
        asked = dict.fromkeys((gold, answer) for gold, answer in keys if answer is not None)
        unsure = []
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        for key in asked.keys() - self._known.keys():
            verdict = self._decide_as_text(*key)
            if verdict is None:
                unsure.append(key)
            else:
                self._known[key] = verdict
        unsure.sort()
        self._known.update(zip(unsure, self._workers.run(unsure), strict=True))
        return [Verdict.UNPARSABLE if answer is None else self._known[gold, answer] for gold, answer in keys]

    def _decide_as_text(self, gold: str, answer: str) -> Verdict | None:
        if len(answer) > self.max_characters:
            return Verdict.UNPARSABLE
        if answer == gold:
            return Verdict.CORRECT
        plain = _TEXT_MACRO.sub(r"\1", answer).replace("$", "").strip()
        if _WORDS.fullmatch(gold):
            return Verdict.CORRECT if normalise(plain).casefold() == gold.casefold() else Verdict.WRONG
        choice = _CHOICE.fullmatch(plain)
        if choice and re.fullmatch("[A-H]", gold):
            return Verdict.CORRECT if choice[1] == gold else Verdict.WRONG
        return None


def compare(gold: str, answer: str) -> Verdict:
    """In the worker: symbolic equality of two answers.

    Raises:
        DataError: the reference cannot be parsed.
    """
    from math_verify import verify

    expected, found = _parse(gold), _parse(answer)
    if not expected:
        raise DataError(f"reference answer {gold!r} cannot be parsed")
    if not found:
        return Verdict.UNPARSABLE
    equal = verify(expected, found, timeout_seconds=None, raise_on_error=True)
    return Verdict.CORRECT if equal else Verdict.WRONG


def _parse(answer: str) -> list[object]:
    from math_verify import parse

    answer = _E_NOTATION.sub(r"\1 \\times 10^{\2}", answer.replace("−", "-"))
    return parse(answer if "$" in answer else f"${answer}$", parsing_timeout=None, raise_on_error=True)
