r"""Mathematical equality of final answers: math-verify in worker processes that can be killed.

math-verify's own timeouts do not always fire (its issue #65) and do not work in threads, so they are off here.
Nothing is ever evaluated: math-verify parses with ANTLR.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from mpo.multimodal.errors import ConfigError, DataError
from rewards.types import Problem, Verdict
from rewards.verifying.answers import references_of
from rewards.verifying.formulas import aligned, decide, latex_of
from rewards.verifying.numbers import number_views
from rewards.verifying.quantities import read_quantity
from rewards.verifying.reading import Answer, Kind, Missing, answer_of, candidates
from rewards.verifying.signs import CONCLUDES
from rewards.verifying.workers import Workers

MAX_BARE_WORDS = 2  # in a whole response that is an answer and no sentence
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_ANY_NUMBER = "0"
_REMEMBERED = 50_000  # verdicts, some 300 bytes each


class MathVerifier:
    r"""Mathematical equality of final answers (math-verify), each check in a process that is killed when it hangs.

    Numbers, ratios, clock times, letters and words are compared without the parser (`formulas.py`), everything else as
    LaTeX that it reads completely: what it reads in part is UNPARSABLE. Two numbers are equal to six places, relatively
    where they are below one. Units that can be converted must agree; 0.333 is not 1/3; 50% equals 0.5. `number` reads
    units and tolerates rounding.

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
        golds = [references_of(problem) for problem, _ in pairs]
        answers = [self._stated(text, gold) for (_, text), gold in zip(pairs, golds, strict=True)]
        keys = [(one, a.value) for a, gold in zip(answers, golds, strict=True) if a is not None for one in gold]
        self._check(keys)
        return [
            Verdict.UNPARSABLE if answer is None else _best([self._known[one, answer.value] for one in gold])
            for answer, gold in zip(answers, golds, strict=True)
        ]

    def answer(self, problem: Problem, text: str) -> Answer | None:
        """The answer that is checked: what a response votes for; None if none is stated."""
        return self._stated(text, _references_or_none(problem))

    def equal(self, problem: Problem, a: Answer, b: Answer) -> bool | None:
        """Whether two answers mean the same; None if that cannot be told. Never looks at the reference."""
        return self.equal_many(problem, [(a, b)])[0]

    def equal_many(self, problem: Problem, pairs: Sequence[tuple[Answer, Answer]]) -> list[bool | None]:
        """The same for many pairs; math-verify is not symmetric, so both orders are asked."""
        orders = [((a.value, b.value), (b.value, a.value)) for a, b in pairs]
        self._check([order for both in orders for order in both])
        return [_told([self._known[order] for order in both]) for both in orders]

    def faults(self, problems: Sequence[Problem]) -> list[str | None]:
        """Why each problem cannot be checked, or None; the parser is asked about references that need it."""
        golds = [_references_or_none(problem) for problem in problems]
        self._check([(one, _ANY_NUMBER) for gold in golds for one in gold])
        return [
            None
            if gold and any(self._known[one, _ANY_NUMBER] is not Verdict.ERROR for one in gold)
            else _fault(problem)
            for problem, gold in zip(problems, golds, strict=True)
        ]

    def _stated(self, text: str, gold: tuple[str, ...]) -> Answer | None:
        """The first stated answer that looks like mathematics, or a number where that is asked; no bare sentence."""
        numeric = bool(gold) and all(read_quantity(one) is not None for one in gold)
        found = candidates(text, Kind.NUMBER if numeric else Kind.MATH)
        if isinstance(found, Missing):
            return None
        first: Answer | None = None
        is_sentence = False
        for answer in found:
            if answer.where == "bare" and len(_WORD.findall(answer.value)) > MAX_BARE_WORDS:
                is_sentence = CONCLUDES.search(answer.value) is None
                continue
            if is_sentence and answer.where == "last sentence":
                continue
            if answer.kind in (Kind.MATH, Kind.NUMBER, Kind.LETTER):
                return answer
            if numeric and (number := next(filter(read_quantity, number_views(answer.value)), None)):
                return answer_of(number, answer.where)
            first = first or answer
        return first

    def _check(self, keys: Sequence[tuple[str, str]]) -> None:
        """Verdicts of (reference, answer) that are not known yet; the rest is remembered."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        unsure = []
        for gold, answer in dict.fromkeys(keys):
            if (gold, answer) in self._known:
                continue
            too_long = len(answer) > self.max_characters
            verdict = Verdict.UNPARSABLE if too_long else decide(gold, answer)
            if verdict is None:
                unsure.append((gold, answer))
            else:
                self._known[gold, answer] = verdict
        unsure.sort()
        self._known.update(zip(unsure, self._workers.run(unsure), strict=True))


def _references_or_none(problem: Problem) -> tuple[str, ...]:
    try:
        return references_of(problem)
    except DataError:
        return ()


def _fault(problem: Problem) -> str:
    return f"problem {problem.id!r}: the reference {problem.answer!r} cannot be read as mathematics"


def _told(verdicts: Sequence[Verdict]) -> bool | None:
    if Verdict.CORRECT in verdicts:
        return True
    return False if Verdict.WRONG in verdicts else None


def _best(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several accepted references: right by one of them, else wrong only if none is in doubt."""
    order = (Verdict.CORRECT, Verdict.TIMEOUT, Verdict.UNPARSABLE, Verdict.WRONG, Verdict.ERROR)
    return min(verdicts, key=order.index)


def compare(gold: str, answer: str) -> Verdict:
    """In the worker: symbolic equality of two answers.

    Raises:
        DataError: the reference cannot be parsed.
    """
    from math_verify import verify
    from sympy import Ne

    written, said = latex_of(gold), latex_of(answer)
    if written is None or not _parse(written):
        raise DataError(f"reference answer {gold!r} cannot be parsed")
    if said is None:
        return Verdict.UNPARSABLE
    written, said = aligned(written, said)
    expected, found = _imaginary(_parse(written)), _imaginary(_parse(said))
    if not expected or not found:
        return Verdict.UNPARSABLE
    if isinstance(expected[0], Ne) or isinstance(found[0], Ne):
        return _compare_inequations(expected[0], found[0])
    equal = verify(expected, found, timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True)
    if equal and differ(expected[0], found[0]):
        equal = False
    return Verdict.CORRECT if equal else Verdict.WRONG


def _imaginary(parsed: list[Any]) -> list[Any]:
    """The letter i as the imaginary unit, where it is the only variable."""
    from sympy import I, nsimplify

    symbols = {str(symbol): symbol for symbol in parsed[0].free_symbols} if parsed else {}
    if list(symbols) != ["i"]:
        return parsed
    value = parsed[0].subs(symbols["i"], I)
    return [nsimplify(value.doit().expand(), rational=True) if hasattr(value, "expand") else value, parsed[1]]


def _compare_inequations(gold: Any, answer: Any) -> Verdict:
    """x ≠ a: the same two sides, up to a factor."""
    from sympy import Ne, simplify

    if not (isinstance(gold, Ne) and isinstance(answer, Ne)):
        return Verdict.WRONG
    ours, theirs = answer.lhs - answer.rhs, gold.lhs - gold.rhs
    quotient = simplify(ours / theirs)
    return Verdict.CORRECT if quotient.is_number and quotient != 0 else Verdict.WRONG


def differ(gold: Any, answer: Any) -> bool:
    """Whether two values that math-verify calls equal differ: it rounds, so all tiny numbers are alike."""
    from sympy import FiniteSet, Tuple, simplify

    if isinstance(gold, FiniteSet | Tuple) and isinstance(answer, FiniteSet | Tuple):
        if len(gold.args) != len(answer.args) or not all(one.is_number for one in (*gold.args, *answer.args)):
            return False
        keyed = isinstance(gold, FiniteSet) or isinstance(answer, FiniteSet)
        both = [sorted(s.args, key=lambda one: _evaluated(one).sort_key()) if keyed else s.args for s in (gold, answer)]
        return any(differ(a, b) for a, b in zip(*both, strict=True))
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return False
    if gold.has(UNEVALUATED()) or answer.has(UNEVALUATED()):
        return False  # percent
    ours, theirs = _evaluated(answer), _evaluated(gold)
    size = max(abs(ours), abs(theirs))
    if not size.is_comparable or size >= 1 or abs(ours - theirs) <= size * 2e-6:
        return bool(size.is_comparable and size >= 1 and abs(ours - theirs) > size * 2e-6)
    return simplify(gold - answer) != 0


def UNEVALUATED() -> Any:
    """SymPy's class for what stays as written; percent signs are."""
    from sympy import UnevaluatedExpr

    return UnevaluatedExpr


def _evaluated(value: Any) -> Any:
    return value.evalf(30)


def _parse(latex: str) -> list[Any]:
    """math-verify's reading of a formula; empty if it cannot read all of it."""
    from math_verify import LatexExtractionConfig, parse

    parsed = parse(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=True)
    if len(parsed) != 2 or not (_consumed(parsed[1]) or _consumed(parsed[1].rpartition("=")[2])):
        return []
    return parsed


@lru_cache(maxsize=1024)
def _consumed(latex: str) -> bool:
    """Whether the grammar takes the whole text; the parser itself is content with a beginning."""
    from antlr4 import CommonTokenStream, InputStream, Token
    from latex2sympy2_extended.antlr_parser import PSLexer, PSParser

    lexer = PSLexer(InputStream(latex))
    lexer.removeErrorListeners()
    parser = PSParser(CommonTokenStream(lexer))
    parser.removeErrorListeners()
    parser.math()
    return parser.getNumberOfSyntaxErrors() == 0 and parser.getCurrentToken().type == Token.EOF
