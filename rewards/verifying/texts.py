"""Verifiers of texts: exact, short answers, documents (ANLS), and the consensus of VQAv2's annotators."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache

from rewards.types import Problem, Verdict
from rewards.verifying.answers import references_of
from rewards.verifying.dress import undressed
from rewards.verifying.number_words import digits_for_words
from rewards.verifying.places import first_sentence
from rewards.verifying.verifier import ReadingVerifier

ANLS_CUT = 0.5  # a similarity below it counts as 0 (arXiv 1905.13648, Eq. 1)
MAX_TEXT = 1_000  # characters of an answer that is compared as text
ENOUGH = 3  # annotators that say the same make an answer fully right (VQAv2)

_ARTICLES = re.compile(r"\b(?:a|an|the|der|die|das|le|la|les|el|los|las|o|os|as)\b\s+", re.IGNORECASE)
_PUNCTUATION = re.compile(r"[^\w\s%°.,/:+'-]|(?<!\d)[.,:/]|[.,:/](?!\d)|(?<!\w)'|'(?!\w)|_")
_MACRO = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|operatorname)\s*\{([^{}]*)\}|\\(?:left|right)(?![A-Za-z])|\*\*"
    r"|(?<!\\)\$(?!\d)"
)
_YES_OR_NO = re.compile(r"(yes|no)(?=\s*(?:[,.;!:]|$))(?!,? (?:and|or) )", re.IGNORECASE)
_CURRENCY = re.compile(r"\\?[$€£¥]\s?(?=\d)|(?<=\d)\s?[€£¥](?!\w)")


def collapsed(value: str) -> str:
    """Without dress and macros, blanks collapsed."""
    return " ".join(_MACRO.sub(lambda match: match[1] or "", undressed(value)).split())


@lru_cache(maxsize=8192)
def simple_text(value: str) -> str:
    """In lower case, without articles and punctuation, number words as digits: what VQA's own scoring compares.

    Example:
        >>> simple_text("The **Eiffel Tower**!"), simple_text("two dogs."), simple_text("3.5 m")
        ('eiffel tower', '2 dogs', '3.5 m')
    """
    text = digits_for_words(collapsed(value).casefold())
    text = _PUNCTUATION.sub(" ", text.replace("-", " ") if not re.search(r"\d", text) else text)
    return " ".join(_ARTICLES.sub("", f"{' '.join(text.split())} ").split()) or collapsed(value).casefold()


def yes_or_no(value: str) -> str | None:
    """ "yes" or "no" if the text begins with that word and a comma or a stop, or is it.

    Example:
        >>> yes_or_no("Yes, it is."), yes_or_no("no"), yes_or_no("No idea")
        ('yes', 'no', None)
    """
    match = _YES_OR_NO.match(value)
    return match[1].casefold() if match else None


class _TextVerifier(ReadingVerifier[tuple[str, ...]]):
    """Compares texts. An answer is read as its whole text and its first sentence; either may match."""

    expects = f"a text of at most {MAX_TEXT} characters"

    @abstractmethod
    def plain(self, value: str) -> str:
        """The form in which two texts are compared."""

    def read(self, problem: Problem, value: str) -> tuple[str, ...] | None:
        """Whole text, then first sentence."""
        if len(value) > MAX_TEXT:
            return None
        found = dict.fromkeys(self.plain(text) for text in (value, first_sentence(value), yes_or_no(value) or value))
        return tuple(text for text in found if text) or None

    def views(self, value: str) -> Iterator[str]:
        """As it stands."""
        yield value

    def matches(self, reference: tuple[str, ...], answer: tuple[str, ...]) -> bool:
        """One of the answer's readings is the reference's whole text."""
        return reference[0] in answer

    def same(self, a: tuple[str, ...], b: tuple[str, ...]) -> bool:
        """The same whole text."""
        return a[0] == b[0]


class ExactVerifier(_TextVerifier):
    """The same characters, but for dress, blanks and, unless `case` is set, upper and lower case.

    Args:
        case: "Cat" is not "cat".

    Example:
        >>> [str(ExactVerifier()(Problem("p", "2 + 2?", answer="4"), text)) for text in ("Answer: 4.", "4", "4.0")]
        ['correct', 'correct', 'wrong']
    """

    def __init__(self, *, case: bool = False) -> None:
        self.case = case

    def plain(self, value: str) -> str:
        """Blanks collapsed, in lower case unless case counts."""
        text = collapsed(value)
        return text if self.case else text.casefold()


class ShortVerifier(_TextVerifier):
    """Short answers of words: case, articles and punctuation are ignored, number words are digits.

    Example:
        >>> problem = Problem("p", "What?", answer="the Eiffel Tower")
        >>> [str(ShortVerifier()(problem, text)) for text in ("eiffel tower!", "Rome")]
        ['correct', 'wrong']
    """

    def plain(self, value: str) -> str:
        """See `simple_text`."""
        return simple_text(value)


class AnlsVerifier(_TextVerifier):
    """Text answers of documents and scene text: right if `anls` is at least `threshold` (MMPR takes more than 0.9).

    Digits must agree whatever the threshold: one wrong digit of a date or an invoice is another one.

    Args:
        threshold: of the similarity to the nearest reference.

    Example:
        >>> problem, verifier = Problem("p", "Which town?", answer="Williamsburg"), AnlsVerifier()
        >>> [str(verifier(problem, text)) for text in ("williamsburg", "Wiliamsburg", "Wilmington")]
        ['correct', 'correct', 'wrong']
    """

    def __init__(self, *, threshold: float = 0.9) -> None:
        self.threshold = threshold

    def plain(self, value: str) -> str:
        """Blanks collapsed, lower case, no currency signs."""
        return _CURRENCY.sub("", collapsed(value)).casefold().strip()

    def matches(self, reference: tuple[str, ...], answer: tuple[str, ...]) -> bool:
        """Similar enough, with the same digits."""
        return any(
            re.findall(r"\d", text) == re.findall(r"\d", reference[0]) and anls(reference[0], text) >= self.threshold
            for text in answer
        )


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


class VqaVerifier(_TextVerifier):
    """VQAv2: right if `vqa_accuracy` over the annotators' answers is at least `threshold`.

    `answer` is the list of all annotators' answers, repeated as often as they were given; with fewer than three of
    them, each is accepted.

    Args:
        threshold: 0.5 asks for two of ten annotators.

    Example:
        >>> problem = Problem("p", "What color?", answer=["red"] * 6 + ["dark red"] * 3 + ["brown"])
        >>> [str(VqaVerifier()(problem, text)) for text in ("Red.", "dark red", "brown", "blue")]
        ['correct', 'correct', 'wrong', 'wrong']
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def plain(self, value: str) -> str:
        """See `simple_text`."""
        return simple_text(value)

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Check one completion. Raises as `ReadingVerifier`."""
        given = references_of(problem)
        found = self._read(problem, text)
        if found is None:
            return Verdict.UNPARSABLE
        score = max(vqa_accuracy(given, reading) for reading in found[1])
        return Verdict.CORRECT if score >= self.threshold else Verdict.WRONG


def vqa_accuracy(references: Sequence[str], answer: str) -> float:
    """Mean over the annotators left out one at a time of min(1, others that gave this answer / 3).

    As https://visualqa.org/evaluation.html defines it. With fewer than three references, 1 if one of them is met.

    Example:
        >>> vqa_accuracy(["red"] * 2 + ["blue"] * 8, "red"), vqa_accuracy(["red"], "Red.")
        (0.6, 1.0)
    """
    texts, stated = [simple_text(reference) for reference in references], simple_text(answer)
    given = texts.count(stated)
    if len(texts) < ENOUGH:
        return float(given > 0)
    others = len(texts) - given
    total = given * min(1.0, (given - 1) / ENOUGH) + others * min(1.0, given / ENOUGH)
    return round(total / len(texts), 12)
