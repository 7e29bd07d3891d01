"""Verifiers of multiple choice and of yes or no."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rewards.types import Problem
from rewards.verifying.options import named_options, options_of
from rewards.verifying.places import first_sentence
from rewards.verifying.reading import Answer, Kind, Missing, candidates
from rewards.verifying.signs import WEAK_SIGNS
from rewards.verifying.verifier import ReadingVerifier

_YES_NO = re.compile(
    r"[\s*_\"']*(?:(?P<yes>yes|yeah|yep|true|correct|ja|oui|si|sí|sim|да|はい|是的|是|对|正确|예|네|wahr|vrai|verdadero"
    r"|verdadeiro)"
    r"|(?P<no>no|nope|false|incorrect|nein|non|não|нет|いいえ|不是|否|不对|错误|错|不|아니오|아니요|falsch|faux|falso))(?![\w'])",
    re.IGNORECASE,
)
_BOTH = re.compile(
    r"[\s,]*(?:and|or|/|&)\s*(?:yes|no|true|false)\b|\s*(?:doubt|idea|way|more|one|longer)\b", re.IGNORECASE
)
_INSIDE = re.compile(
    r"\b(?:answer|statement|claim) is\s+(?P<word>yes|no|true|false|correct|incorrect)\b", re.IGNORECASE
)


class ChoiceVerifier(ReadingVerifier[frozenset[str]]):
    r"""Multiple choice: the letter in any dress ("B", "(b)", "B. 12", "\text{B}", "Option B"), or the option's text.

    `problem.meta["choices"]` may hold the options' texts in the order of their letters (else lines "A. …" of the
    question do); then an answer that is one option's text counts as its letter, a letter beyond them is no answer, a
    letter beside another option's text neither, and two options with one text are one. A reference may be a letter,
    several letters ("AC"), an option's text or its number.

    Example:
        >>> problem, verifier = Problem("p", "Which?", answer="B", meta={"choices": ["red", "blue"]}), ChoiceVerifier()
        >>> [str(verifier(problem, t)) for t in ("The answer is (B).", "Final answer: blue", "Answer: A", "B. red")]
        ['correct', 'correct', 'wrong', 'unparsable']
    """

    want = Kind.LETTER
    expects = "a letter or an option's text"

    def read(self, problem: Problem, value: str) -> frozenset[str] | None:
        """The letters that an answer names, as many as the reference; none of them if it contradicts itself."""
        options = options_of(problem)
        for view in dict.fromkeys((value, first_sentence(value))):
            letters = named_options(view, options, numbered=_is_number(problem.answer))
            if letters is not None:
                return letters if len(letters) <= 1 or _several(problem) else frozenset()
        return None

    def views(self, value: str) -> Iterator[str]:
        """Unchanged: what follows a letter may contradict it."""
        yield value

    def reference(self, problem: Problem, value: str) -> frozenset[str] | None:
        """The letters of a reference."""
        options = options_of(problem)
        return named_options(value, options, numbered=_is_number(problem.answer))

    def _read(self, problem: Problem, text: str) -> tuple[Answer, frozenset[str]] | None:
        """The first statement that counts; weak signs, or a box of a value and a stated letter, must agree."""
        found = candidates(text, self.want)
        if isinstance(found, Missing):
            return None
        chosen: tuple[Answer, frozenset[str]] | None = None
        for answer in found:
            if (
                chosen
                and chosen[0].where not in WEAK_SIGNS
                and (answer.kind is not Kind.LETTER or answer.where != "answer is")
            ):
                continue
            value = self._first(problem, answer.value)
            if value is None:
                continue
            if self.contradicts(value) or (chosen and value != chosen[1]):
                return None
            chosen = chosen or (answer, value)
            if answer.where not in WEAK_SIGNS and not _may_be_doubted(answer):
                break
        return chosen

    def contradicts(self, value: frozenset[str]) -> bool:
        """No letter is left."""
        return not value


def _may_be_doubted(answer: Answer) -> bool:
    """A box that holds a value and a letter that was only chosen: "the answer is B" must not say otherwise."""
    return answer.where in ("chosen", "option is right") or (answer.where == "box" and answer.kind is not Kind.LETTER)


def _is_number(reference: str | None) -> bool:
    return reference is not None and re.fullmatch(r"\s*\(?\d{1,2}\)?\s*", reference) is not None


def _several(problem: Problem) -> bool:
    found = named_options(problem.answer or "", options_of(problem))
    return found is not None and len(found) > 1


class YesNoVerifier(ReadingVerifier[bool]):
    """Yes or no, true or false, at the beginning of the answer, in several languages.

    Example:
        >>> problem, verifier = Problem("p", "Is it red?", answer="Yes"), YesNoVerifier()
        >>> [str(verifier(problem, text)) for text in ("yes, it is.", "No", "Final answer: yes and no")]
        ['correct', 'wrong', 'unparsable']
    """

    want = Kind.YES_NO
    expects = "yes or no"

    def read(self, problem: Problem, value: str) -> bool | None:
        """True for yes."""
        match = _YES_NO.match(value)
        if match is None:
            inside = _INSIDE.search(value) if len(value) <= 200 else None
            return inside["word"].casefold() in ("yes", "true", "correct") if inside else None
        if _BOTH.match(value, match.end()):
            return None
        return match["yes"] is not None
