"""Verifiers of numbers: with units and a tolerance, rounded as benchmarks do, and ChartQA's relaxed accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rewards.types import Problem
from rewards.verifying.options import plain_text
from rewards.verifying.places import first_sentence
from rewards.verifying.quantities import Quantity, read_quantity
from rewards.verifying.reading import Kind
from rewards.verifying.sentences import stated_number
from rewards.verifying.texts import yes_or_no
from rewards.verifying.units import unit_factor
from rewards.verifying.verifier import ReadingVerifier

MAX_TEXT = 1_000  # characters of an answer that is compared as text
_EPSILON = 1e-9
_REASON = re.compile(
    r",?\s+(?:because|since|as (?:there|it|the|we)|which|where|due to|based on|given that|i\.e\.|with)\s|\s+\("
    r"|\s[-–—]\s(?!\d)|[,;]\s(?=\D*$)",
    re.IGNORECASE,
)
_BEGINS = re.compile(r"[-+$€£¥√\\(\d.]|[A-Za-z]\w?\s*=|(?:about|approximately|exactly)\b", re.IGNORECASE)
_DECIMALS = re.compile(r"\d[.,](\d+)(?!.*\d[.,]\d)", re.DOTALL)
_YEAR = re.compile(r"1[89]\d\d|20\d\d|2100")


def number_views(value: str) -> Iterator[str]:
    """The text itself, its first sentence, the part before the reasons, and the one number that it states."""
    yield value
    first = first_sentence(value)
    yield first
    if stated := stated_number(first):
        yield stated
    before = _REASON.split(first, maxsplit=1)[0]
    if _BEGINS.match(before):
        yield before


class NumberVerifier(ReadingVerifier[Quantity]):
    r"""A number with its unit, within a relative tolerance; an integer reference must be met exactly.

    Units are converted ("0.12 m" is "12 cm") and may be left out; a percent sign may be missing on either side, and
    "50%" is also 0.5. Words after the number that are no unit ("7 apples") are ignored. Two answers are equal for a
    vote if they lie within the tolerance of each other; integers only if they are the same.

    Args:
        tolerance: |answer − reference| ≤ tolerance·|reference| for a reference that is no integer.

    Example:
        >>> problem, verifier = Problem("p", "How long?", answer="1/3 m"), NumberVerifier()
        >>> [str(verifier(problem, f"Final answer: {a}")) for a in ("0.333 m", "33.3 cm", "0.4 m", "0.333 s")]
        ['correct', 'correct', 'wrong', 'wrong']
    """

    want = Kind.NUMBER
    expects = "one number"

    def __init__(self, *, tolerance: float = 0.01) -> None:
        self.tolerance = tolerance

    def read(self, problem: Problem, value: str) -> Quantity | None:
        """The quantity that an answer states."""
        return read_quantity(value)

    def views(self, value: str) -> Iterator[str]:
        """See `number_views`."""
        return number_views(value)

    def matches(self, reference: Quantity, answer: Quantity) -> bool:
        """Within the tolerance of the reference, in its unit."""
        limit = 0.0 if reference.integer else self.tolerance
        return any(close(a, r, limit) for a, r in _on_one_scale(answer, reference))

    def same(self, a: Quantity, b: Quantity) -> bool:
        """Within the tolerance of each other."""
        limit = 0.0 if a.integer or b.integer else self.tolerance
        both = [*_on_one_scale(a, b), *((x, y) for y, x in _on_one_scale(b, a))]
        return any(abs(x - y) <= limit * min(abs(x), abs(y)) + _EPSILON * max(abs(x), abs(y)) for x, y in both)


@dataclass(frozen=True)
class _Rounded:
    number: Quantity
    decimals: int


class RoundedVerifier(ReadingVerifier[_Rounded]):
    """A number that rounds to the reference, or differs from it by at most 0.001: how benchmarks compare.

    MathVista rounds an answer to the reference's decimals (arXiv 2310.02255); DynaMath, which asks for three decimals,
    allows 0.001 (its evaluation in VLMEvalKit). An integer reference must be met exactly; units are those of `number`.

    Args:
        absolute: largest difference that is allowed whatever the decimals.

    Example:
        >>> problem, verifier = Problem("p", "How long?", answer="11.50"), RoundedVerifier()
        >>> [str(verifier(problem, f"Final answer: {a}")) for a in ("11.5", "11.502", "11.51", "11.25")]
        ['correct', 'correct', 'wrong', 'wrong']
    """

    want = Kind.NUMBER
    expects = "one number"

    def __init__(self, *, absolute: float = 0.001) -> None:
        self.absolute = absolute

    def read(self, problem: Problem, value: str) -> _Rounded | None:
        """The quantity that an answer states, and its decimals."""
        number = read_quantity(value)
        decimals = _DECIMALS.search(value)
        return None if number is None else _Rounded(number, len(decimals[1]) if decimals else 0)

    def views(self, value: str) -> Iterator[str]:
        """See `number_views`."""
        return number_views(value)

    def matches(self, reference: _Rounded, answer: _Rounded) -> bool:
        """Rounded to the reference's decimals, or within the absolute limit, in its unit."""
        both = _on_one_scale(answer.number, reference.number)
        limit = 0.0 if reference.number.integer else max(self.absolute, 0.5 * 10.0**-reference.decimals)
        return any(abs(a - r) <= limit + _EPSILON * max(abs(a), abs(r)) for a, r in both)

    def same(self, a: _Rounded, b: _Rounded) -> bool:
        """One rounds to the other; integers only if they are the same."""
        coarse = min(a.decimals, b.decimals)
        limit = 0.0 if a.number.integer or b.number.integer else max(self.absolute, 0.5 * 10.0**-coarse)
        both = [
            *_on_one_scale(a.number, b.number),
            *((x, y) for y, x in _on_one_scale(b.number, a.number)),
        ]
        return any(abs(x - y) <= limit + _EPSILON * max(abs(x), abs(y)) for x, y in both)


@dataclass(frozen=True)
class _Relaxed:
    text: str
    number: Quantity | None
    year: bool


class RelaxedVerifier(ReadingVerifier[_Relaxed]):
    """ChartQA's relaxed accuracy: 5 % for numbers, else the same text in any case (arXiv 2203.10244, §5.1).

    Units are ignored and a percent sign on one side only is dropped. A reference of 0 must be met exactly, and so must
    a year (1800 to 2100, no unit): ChartQA's own rule lets 2005 pass for 2010, which names another bar.

    Args:
        tolerance: |answer − reference| ≤ tolerance·|reference|.

    Example:
        >>> problem, verifier = Problem("p", "What share?", answer="20"), RelaxedVerifier()
        >>> [str(verifier(problem, text)) for text in ("19.2", "Final answer: 21.5", "twenty", "many")]
        ['correct', 'wrong', 'correct', 'unparsable']
    """

    want = Kind.NUMBER
    expects = "a number or a text"

    def __init__(self, *, tolerance: float = 0.05) -> None:
        self.tolerance = tolerance

    def read(self, problem: Problem, value: str) -> _Relaxed | None:
        """An answer; none where the reference is a number and it is not."""
        found = self.reference(problem, value)
        if found is None or (found.number is None and _asks_for_number(problem)):
            return None
        return found

    def reference(self, problem: Problem, value: str) -> _Relaxed | None:
        """A text and the number that it states, if any."""
        if len(value) > MAX_TEXT:
            return None
        return _Relaxed(yes_or_no(value) or plain_text(value), read_quantity(value), bool(_YEAR.fullmatch(value)))

    def views(self, value: str) -> Iterator[str]:
        """See `number_views`."""
        return number_views(value)

    def matches(self, reference: _Relaxed, answer: _Relaxed) -> bool:
        """Within the tolerance, or the same text."""
        if reference.number is None or answer.number is None:
            return reference.text == answer.text
        limit = 0.0 if reference.year else self.tolerance
        return close(answer.number.value, reference.number.value, limit)

    def same(self, a: _Relaxed, b: _Relaxed) -> bool:
        """Within the tolerance of each other, or the same text."""
        if a.number is None or b.number is None:
            return a.text == b.text
        x, y = a.number.value, b.number.value
        limit = 0.0 if a.year or b.year else self.tolerance
        return abs(x - y) <= limit * min(abs(x), abs(y)) + _EPSILON * max(abs(x), abs(y))


def _asks_for_number(problem: Problem) -> bool:
    return problem.answer is not None and read_quantity(problem.answer) is not None


def close(answer: float, reference: float, tolerance: float) -> bool:
    """|answer − reference| ≤ tolerance·|reference|, and a little more for rounding."""
    return abs(answer - reference) <= tolerance * abs(reference) + _EPSILON * max(abs(reference), abs(answer))


def _on_one_scale(answer: Quantity, reference: Quantity) -> list[tuple[float, float]]:
    """(answer, reference) in the reference's unit; two readings where only one side has a percent sign; none if the
    units cannot be compared."""
    if (answer.unit == "%") != (reference.unit == "%") and "" in (answer.unit, reference.unit):
        ours, theirs = answer.value, reference.value
        return [(ours, theirs), (ours / 100, theirs) if answer.unit == "%" else (ours * 100, theirs)]
    factor = unit_factor(answer.unit, reference.unit)
    return [] if factor is None else [(answer.value * factor, reference.value)]
