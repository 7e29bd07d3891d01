r"""Completion → Verdict of its final answer: one function per kind of question, and the table of them.

A verifier's trouble (a reference that it cannot read, a check that hangs) is `ERROR` or `TIMEOUT`, never `WRONG`.
`VERIFIERS` is a plain dict; any callable of the type `Verifier` is accepted in place of a name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from mpo.multimodal.errors import DataError
from rewards.types import Problem, Verdict, Verifier
from rewards.verifying.answers import canonical_answer, extract_final_answer, normalise, reference_of, short_answer
from rewards.verifying.math_verifier import MathVerifier
from rewards.verifying.quantities import Quantity, read_quantity, unit_factor

__all__ = [
    "VERIFIERS",
    "MathVerifier",
    "anls",
    "anls_verifier",
    "canonical_answer",
    "choice_verifier",
    "exact_verifier",
    "extract_final_answer",
    "number_verifier",
    "relaxed_verifier",
    "verify_many",
]

_log = logging.getLogger(__name__)

ANLS_CUT = 0.5  # a similarity below it counts as 0 (arXiv 1905.13648, Eq. 1)
MAX_TEXT = 1_000  # characters of an answer that is compared as text
_EPSILON = 1e-9
_MACRO = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf)\s*\{([^{}]*)\}|[$*`]|\\(?:left|right)")
_AFTER = r"(?!\s*(?:and|or|&)\b|\s*\(?[A-Za-z]\)?\s*(?:$|[,.;]))"  # not another letter
_LETTER = re.compile(
    rf"(?:(?:option|choice|answer)\b)?\s*[:(\[<]*+\s*([A-Za-z])\s*+(?:[)\]>]++(?:\s{_AFTER}.*)?)?(?:[.:,：、-]{_AFTER}.*)?",
    re.DOTALL | re.IGNORECASE,
)


def exact_verifier(problem: Problem, text: str) -> Verdict:
    """Canonical final answer equal to the canonical reference, character by character.

    Raises:
        DataError: the problem has no reference answer (as for every verifier here).

    Example:
        >>> exact_verifier(Problem("p", "2 + 2?", answer="4"), "Final answer: 4.")
        <Verdict.CORRECT: 'correct'>
    """
    reference, answer = reference_of(problem), canonical_answer(text)
    if answer is None:
        return Verdict.UNPARSABLE
    return _verdict(answer == reference)


def choice_verifier(problem: Problem, text: str) -> Verdict:
    r"""Multiple choice: the letter, in any dress ("B", "(b)", "B. 12", "\text{B}", "Option B"), or the option's text.

    `problem.meta["choices"]` may hold the options' texts in the order of their letters; then an answer that is one
    option's text counts as its letter, and a letter beyond them is no answer. A reference may be either form.

    Example:
        >>> problem = Problem("p", "Which?", answer="B", meta={"choices": ["red", "blue"]})
        >>> [choice_verifier(problem, text).value for text in ("The answer is (B).", "Final answer: blue", "Answer: A")]
        ['correct', 'correct', 'wrong']
    """
    choices = problem.meta.get("choices")
    options = [str(choice) for choice in choices] if isinstance(choices, list | tuple) else []
    reference = _letter(reference_of(problem), options)
    if reference is None:
        raise DataError(f"problem {problem.id!r}: answer {problem.answer!r} names no choice; expected a letter")
    stated = short_answer(text)
    letter = _letter(stated, options) if stated and len(stated) <= MAX_TEXT else None
    if letter is None:
        return Verdict.UNPARSABLE
    return _verdict(letter == reference)


def number_verifier(problem: Problem, text: str, *, tolerance: float = 0.01) -> Verdict:
    r"""A number with its unit, within a relative tolerance; an integer reference must be met exactly.

    Units are converted ("0.12 m" is "12 cm") and may be left out; a percent sign may be missing on either side, and
    "50%" is also 0.5. Words after the number that are no unit ("7 apples") are ignored.

    Args:
        problem: its reference states one number.
        text: the completion.
        tolerance: |answer − reference| ≤ tolerance·|reference| for a reference that is no integer.

    Example:
        >>> problem = Problem("p", "How long?", answer="1/3 m")
        >>> [number_verifier(problem, f"Final answer: {a}").value for a in ("0.333 m", "33.3 cm", "0.4 m", "0.333 s")]
        ['correct', 'correct', 'wrong', 'wrong']
    """
    reference = read_quantity(reference_of(problem))
    if reference is None:
        raise DataError(f"problem {problem.id!r}: answer {problem.answer!r} states no number; use another verifier")
    stated = short_answer(text)
    answer = read_quantity(stated) if stated else None
    if answer is None:
        return Verdict.UNPARSABLE
    limit = 0.0 if reference.integer else tolerance
    return _verdict(any(_close(a, r, limit) for a, r in _on_one_scale(answer, reference)))


def relaxed_verifier(problem: Problem, text: str, *, tolerance: float = 0.05) -> Verdict:
    """ChartQA's relaxed accuracy: 5 % for numbers, else the same text in any case (arXiv 2203.10244, §5.1).

    As there, units are ignored and a year counts as a number: 2005 passes for 2010. A reference of 0 must be met
    exactly. A percent sign on one side only is dropped.

    Example:
        >>> problem = Problem("p", "What share?", answer="20")
        >>> [relaxed_verifier(problem, text).value for text in ("19.2", "Final answer: 21.5", "twenty")]
        ['correct', 'wrong', 'wrong']
    """
    reference, answer = reference_of(problem), short_answer(text)
    if answer is None or len(answer) > MAX_TEXT:
        return Verdict.UNPARSABLE
    theirs, ours = read_quantity(reference), read_quantity(answer)
    if theirs is not None and ours is not None:
        return _verdict(_close(ours.value, theirs.value, tolerance))
    return _verdict(_plain(answer).casefold() == _plain(reference).casefold())


def anls_verifier(problem: Problem, text: str, *, threshold: float = 0.9) -> Verdict:
    """Text answers of documents and scene text: right if `anls` is at least `threshold` (MMPR takes more than 0.9).

    Example:
        >>> problem = Problem("p", "Which town?", answer="Williamsburg")
        >>> [anls_verifier(problem, text).value for text in ("williamsburg", "Wiliamsburg", "Wilmington")]
        ['correct', 'correct', 'wrong']
    """
    reference, answer = reference_of(problem), short_answer(text)
    if answer is None or len(answer) > MAX_TEXT:
        return Verdict.UNPARSABLE
    return _verdict(anls(_plain(reference), _plain(answer)) >= threshold)


def anls(reference: str, answer: str) -> float:
    """Normalised Levenshtein similarity of two texts in any case, 1 for equal ones, 0 below 0.5.

    s = 1 − d / max(|reference|, |answer|), and 0 where s < 0.5 (arXiv 1905.13648, Eq. 1). It is a similarity: a
    pipeline that takes the distance in its place calls every miss a hit.

    Example:
        >>> anls("Paris", "paris"), anls("Paris", "Pari"), anls("Paris", "London")
        (1.0, 0.8, 0.0)
    """
    from rapidfuzz.distance import Levenshtein

    similarity = float(Levenshtein.normalized_similarity(reference.casefold(), answer.casefold()))
    return similarity if similarity >= ANLS_CUT else 0.0


VERIFIERS: dict[str, Verifier] = {
    "exact": exact_verifier,
    "math": MathVerifier(),  # starts its process when it is first needed; make your own for limits or more workers
    "choice": choice_verifier,
    "number": number_verifier,
    "relaxed": relaxed_verifier,
    "anls": anls_verifier,
}


def verify_many(verifier: Verifier, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
    """One verdict per pair, in order; a verifier that raises gives `ERROR`, logged with the problem's id.

    A verifier with a `verify_many` of its own (`MathVerifier`, `WorkerVerifier`) is given all pairs at once.
    """
    batched = getattr(verifier, "verify_many", None)
    return batched(pairs) if batched is not None else [_safely(verifier, problem, text) for problem, text in pairs]


def _safely(verifier: Verifier, problem: Problem, text: str) -> Verdict:
    try:
        return Verdict(verifier(problem, text))
    except Exception as error:
        _log.warning("verifier failed on problem %r: %s: %s", problem.id, type(error).__name__, error)
        return Verdict.ERROR


def _verdict(right: bool) -> Verdict:
    return Verdict.CORRECT if right else Verdict.WRONG


def _plain(answer: str) -> str:
    r"""Without `\text{…}`, `$` and Markdown emphasis."""
    return normalise(_MACRO.sub(lambda match: match[1] or "", answer))


def _letter(answer: str, options: Sequence[str]) -> str | None:
    """The capital letter of the option that an answer names, by letter or by text."""
    plain = _plain(answer)
    texts = [_plain(option).casefold() for option in options]
    if texts.count(plain.casefold()) == 1:
        return chr(ord("A") + texts.index(plain.casefold()))
    match = _LETTER.fullmatch(plain)
    if match is None:
        return None
    letter = match[1].upper()
    return letter if not options or ord(letter) - ord("A") < len(options) else None


def _close(answer: float, reference: float, tolerance: float) -> bool:
    return abs(answer - reference) <= tolerance * abs(reference) + _EPSILON * max(abs(reference), abs(answer))


def _on_one_scale(answer: Quantity, reference: Quantity) -> list[tuple[float, float]]:
    """(answer, reference) in the reference's unit; two readings where only one side has a percent sign; none if the
    units cannot be compared."""
    if (answer.unit == "%") != (reference.unit == "%") and "" in (answer.unit, reference.unit):
        ours, theirs = answer.value, reference.value
        return [(ours, theirs), (ours / 100, theirs) if answer.unit == "%" else (ours * 100, theirs)]
    factor = unit_factor(answer.unit, reference.unit)
    return [] if factor is None else [(answer.value * factor, reference.value)]
