"""Which verifier a problem wants: by its reference and its options. The default of `mpo verify`."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from mpo.multimodal.errors import DataError
from rewards.types import Problem, Verdict
from rewards.verifying.answers import references_of
from rewards.verifying.choices import ChoiceVerifier, YesNoVerifier
from rewards.verifying.math_verifier import MathVerifier
from rewards.verifying.numbers import NumberVerifier, RelaxedVerifier, RoundedVerifier
from rewards.verifying.options import named_options, options_of
from rewards.verifying.quantities import read_quantity
from rewards.verifying.reading import Answer, Kind, kind_of, read_answer
from rewards.verifying.texts import ENOUGH, AnlsVerifier, ExactVerifier, ShortVerifier, VqaVerifier
from rewards.verifying.verifier import ReadingVerifier

_log = logging.getLogger(__name__)

_LETTERS = re.compile(r"\(?[A-H]\)?|[A-H]{2,5}|[A-H](?:\s*,\s*[A-H])+")
_NUMBER = re.compile(r"[-+−$€£¥]?\s*[\d.,]*\d\s*(?:%|°|[^\W\d_][^\d\\^=]{0,24})?")
_WORDS = re.compile(r"[^\W\d_]{2,}")


def picked(problem: Problem, *, rounded: bool = False) -> str:
    r"""Name of the verifier that `auto` takes for a problem; with `rounded`, that `auto_rounded` takes.

    - `choice`: there are options and the reference is one's letter, text or number; or it is a capital letter A to H;
    - `vqa`: three or more references, some of them repeated (annotators);
    - `yes_no`: the reference is yes, no, true or false;
    - `number` (or `rounded`): it is a whole or decimal number, with or without a unit;
    - `math`: it is any other formula (fractions included: they are exact);
    - `short`: it is a text.

    Raises:
        DataError: the problem has no reference answer.

    Example:
        >>> [picked(Problem("p", "?", answer=a)) for a in ("B", "No", "12 cm", r"\frac12", "Paris", ["a", "a", "b"])]
        ['choice', 'yes_no', 'number', 'math', 'short', 'vqa']
    """
    references = references_of(problem)
    first, options = references[0], options_of(problem)
    if options and named_options(first, options, numbered=first.isdigit()):
        return "choice"
    if _LETTERS.fullmatch(first):
        return "choice"
    if len(references) >= ENOUGH and len(set(references)) < len(references):
        return "vqa"
    if YesNoVerifier().read(problem, first) is not None and len(first) <= 5:
        return "yes_no"
    if _NUMBER.fullmatch(first) and read_quantity(first) is not None:
        return "rounded" if rounded else "number"
    return "math" if kind_of(first) in (Kind.MATH, Kind.NUMBER) and not _is_text(first) else "short"


def _is_text(reference: str) -> bool:
    """Words with a sign among them, such as "Mother/Father" or "12 Angry Men"."""
    return (
        "\\" not in reference
        and "=" not in reference
        and len(_WORDS.findall(reference)) >= 2
        and not re.search(r"\d\s*[-+*/^]\s*\d", reference)
    )


class AutoVerifier:
    """Checks each problem with the verifier that its row names (`meta["verifier"]`), else with the one of `picked`.

    Args:
        math: verifier for mathematics, with its workers; a new one if not given.
        rounded: whether decimal numbers must agree as benchmarks ask (`rounded`), instead of within 1 % (`number`).

    Example:
        >>> verifier, problem = AutoVerifier(), Problem("p", "How many?", answer="7")
        >>> str(verifier(problem, "There are seven.")), picked(problem)
        ('correct', 'number')
    """

    def __init__(self, *, math: MathVerifier | None = None, rounded: bool = False) -> None:
        self.math, self.rounded = math or MathVerifier(), rounded
        self._others: dict[str, ReadingVerifier] = {
            "choice": ChoiceVerifier(),
            "yes_no": YesNoVerifier(),
            "number": NumberVerifier(),
            "rounded": RoundedVerifier(),
            "short": ShortVerifier(),
            "vqa": VqaVerifier(),
            "exact": ExactVerifier(),
            "relaxed": RelaxedVerifier(),
            "anls": AnlsVerifier(),
        }

    def name_of(self, problem: Problem) -> str:
        """Name of a problem's verifier: its row's, else the one that its reference asks for.

        Raises:
            DataError: the row names none and the problem has no reference answer.
        """
        named = problem.meta.get("verifier")
        return named if isinstance(named, str) and (named in self._others or named == "math") else self._picked(problem)

    def _picked(self, problem: Problem) -> str:
        return picked(problem, rounded=self.rounded)

    def of(self, problem: Problem) -> MathVerifier | ReadingVerifier:
        """The verifier of a problem."""
        return self._by_name(self.name_of(problem))

    def _by_name(self, name: str) -> MathVerifier | ReadingVerifier:
        return self.math if name == "math" else self._others[name]

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Check one completion. Raises as the verifier that is picked."""
        return self.of(problem)(problem, text)

    def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Check many completions; those of mathematics all at once. Raises as the verifiers that are picked."""
        names = [self.name_of(problem) for problem, _ in pairs]
        formulas = [pair for pair, name in zip(pairs, names, strict=True) if name == "math"]
        checked = iter(self.math.verify_many(formulas))
        return [
            next(checked) if name == "math" else _checked(self._others[name], *pair)
            for pair, name in zip(pairs, names, strict=True)
        ]

    def faults(self, problems: Sequence[Problem]) -> list[str | None]:
        """Why each problem cannot be checked, or None."""
        return [self.of(problem).faults([problem])[0] for problem in problems]

    def answer(self, problem: Problem, text: str) -> Answer | None:
        """The answer that the problem's verifier reads from a response; without a reference, the stated one."""
        try:
            return self.of(problem).answer(problem, text)
        except DataError:
            return self._others["choice"].answer(problem, text) if options_of(problem) else read_answer(text, Kind.MATH)

    def equal(self, problem: Problem, a: Answer, b: Answer) -> bool | None:
        """Whether two answers mean the same to the problem's verifier."""
        return self.equal_many(problem, [(a, b)])[0]

    def equal_many(self, problem: Problem, pairs: Sequence[tuple[Answer, Answer]]) -> list[bool | None]:
        """The same for many pairs; without a reference, options or what the two answers look like decide."""
        try:
            names = [self.name_of(problem)] * len(pairs)
        except DataError:
            names = ["choice" if options_of(problem) else _name_for(a, b) for a, b in pairs]
        formulas = [pair for pair, name in zip(pairs, names, strict=True) if name == "math"]
        compared = iter(self.math.equal_many(problem, formulas) if formulas else ())
        return [
            next(compared) if name == "math" else self._others[name].equal(problem, *pair)
            for pair, name in zip(pairs, names, strict=True)
        ]


def _name_for(a: Answer, b: Answer) -> str:
    """What compares two answers of a problem without reference and options."""
    kinds = {a.kind, b.kind}
    if len(kinds) == 1 and (name := {Kind.LETTER: "choice", Kind.YES_NO: "yes_no"}.get(a.kind)):
        return name
    if all(read_quantity(answer.value) is not None for answer in (a, b)):
        return "math"
    return "short" if kinds & {Kind.TEXT, Kind.LETTER, Kind.YES_NO} else "math"


def _checked(verifier: ReadingVerifier, problem: Problem, text: str) -> Verdict:
    try:
        return verifier(problem, text)
    except DataError as error:
        _log.warning("%s", error)
        return Verdict.ERROR
