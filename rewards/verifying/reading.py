r"""Response → the final answer that it states, as an `Answer`; or why none can be read, as a `Missing`.

Two steps: *where* the answer stands (`places.py`) and *how it is dressed* (`dress.py`). A verifier says what it looks
for (`Kind`) and takes the first of `candidates` that it can read. Nothing here evaluates anything; every rule is
linear in the text's length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

from rewards.verifying.dress import undress
from rewards.verifying.places import Place, contradict, first_sentence, statements, without_thought
from rewards.verifying.quantities import read_quantity
from rewards.verifying.sentences import stated_number

MAX_BARE_CHARACTERS = 80  # a longer response without any marker is reasoning, not an answer


class Kind(StrEnum):
    """What an answer looks like without its dress; also what a verifier looks for."""

    LETTER = "letter"  # one option's letter, with or without its text
    NUMBER = "number"  # a number, with or without its unit
    MATH = "math"  # any other formula
    YES_NO = "yes or no"
    TEXT = "text"


class Missing(StrEnum):
    """Why no answer could be read."""

    NOT_STATED = "not stated"  # the response truly states no final answer
    CONTRADICTORY = "contradictory"  # it states two that differ
    OPEN_THOUGHT = "open thought"  # it was cut inside `<think>`


@dataclass(frozen=True)
class Answer:
    """The final answer of a response.

    Attributes:
        value: as stated, without its dress; never empty.
        kind: what it looks like.
        where: name of the rule of `places.py`, or of the weaker ones here, that found it.
        dress: names of the rules of `dress.py` that took something off, outermost first.
    """

    value: str
    kind: Kind
    where: str
    dress: tuple[str, ...] = ()


_LETTER = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\([A-Za-z]\)|\[[A-Z]\]|[A-Z](?:[.):,]|$))(?:\s.*)?", re.DOTALL)
_YES_NO = re.compile(r"(?:yes|no|true|false)\b.*", re.IGNORECASE | re.DOTALL)
_FORMULA = re.compile(r"\\[A-Za-z]|[=^_+*/<>≤≥≠∞π√±∪∩∈]|\d\s*[-:]\s*\d|^[(\[{].*,.*[)\]}]$")
_FENCE = re.compile(r"```[a-z]{0,12}\n([^\n]{1,200})\n```")
_SPECIAL_END = re.compile(r"(?:<\|[A-Za-z_]{2,24}\|>|</s>|<eos>|<end_of_turn>)\Z")
_LEAD_LETTER = re.compile(
    r"[*_\"'“]{0,3}(?:(?:option|choice|answer|选项)\s*)?(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?=[.):：,，、。;\n*_]|\s*$"
    r"|\s*[-–—]\s|\s*\())"
    r"(?![.]?[A-Za-z]\b)"
)
_LAST_LINE_LETTER = re.compile(
    r"[#>\s*_\-•]*(?:(?:so|thus|hence|therefore)[,:]?\s+)?(?:option\s+)?(?:\(([A-Z])\)|([A-Z])[).:]"
    r"|([A-Z])[*_.\s]*$).{0,120}"
)
_CONCLUDES = re.compile(
    r"(?:^|\W)(?:therefore|thus|hence|so|in conclusion|consequently|in total|altogether|finally|we get|we find"
    r"|this gives"
    r"|因此|所以|故|综上|一共|总共|よって|したがって|따라서)(?:\W|$|(?<=\w)(?=[^\x00-\x7f]))",
    re.IGNORECASE,
)
_RESULT = re.compile(r"(?:=|≈|\\approx|\b(?:is|are|equals|of|was|be|has|have|be|get|gives?|contains?)\b)[^=≈.]{0,12}$")
_COUNTED = re.compile(
    r"\s*(?:yes,? )?(?:there (?:are|is|were|was)|it shows|the (?:image|picture|figure|chart) (?:shows|contains"
    r"|has)|i (?:can )?(?:see|count))\b",
    re.IGNORECASE,
)


def kind_of(value: str) -> Kind:
    """What an undressed answer looks like.

    Example:
        >>> [str(kind_of(value)) for value in ("B", "(b) 12", "12 cm", "x^2", "No", "Paris")]
        ['letter', 'letter', 'number', 'math', 'yes or no', 'text']
    """
    if len(value) <= 200 and _LETTER.fullmatch(value):
        return Kind.LETTER
    if _YES_NO.fullmatch(value):
        return Kind.YES_NO
    if any(sign.isdigit() for sign in value[:200]) and read_quantity(value) is not None:
        return Kind.NUMBER
    return Kind.MATH if len(value) <= 1000 and _FORMULA.search(value[:300]) else Kind.TEXT


def answer_of(text: str, where: str) -> Answer:
    """A stated text as an `Answer`."""
    value, dress = undress(text)
    return Answer(value, kind_of(value), where, dress)


def find_answer(response: str, want: Kind | None = None) -> Answer | Missing:
    r"""The final answer of a response, or why none can be read.

    Args:
        response: the whole text, thoughts included.
        want: what the verifier looks for: weaker signs of it are read where nothing explicit stands.

    Example:
        >>> find_answer(r"<think>\boxed{3}?</think>**Final answer:** \(7\text{ cm}\)").value
        '7\\text{ cm}'
        >>> find_answer("I do not know, it depends.\nReally."), find_answer("<think>so it is")
        (<Missing.NOT_STATED: 'not stated'>, <Missing.OPEN_THOUGHT: 'open thought'>)
    """
    found = candidates(response, want)
    return found if isinstance(found, Missing) else next(found, Missing.NOT_STATED)


def read_answer(response: str, want: Kind | None = None) -> Answer | None:
    """The final answer of a response; None if none can be read (`find_answer` says why)."""
    found = find_answer(response, want)
    return found if isinstance(found, Answer) else None


def stated_answer(response: str) -> Answer | None:
    """The same from explicit statements only: a bare response of one word states none."""
    text = _solution(response)
    places = _places(text, None) if text is not None else None
    return next(_answers_at(places), None) if places is not None else None


def candidates(response: str, want: Kind | None = None) -> Iterator[Answer] | Missing:
    """Stated answers, the one that counts first: a verifier takes the first that it can read.

    Explicit statements come alone, but that letters and numbers may also be read from weaker signs where all that is
    explicit is a box or a sentence.
    """
    text = _solution(response)
    if text is None:
        return Missing.OPEN_THOUGHT
    places = _places(text, want)
    return Missing.CONTRADICTORY if places is None else _all(text, places, want)


def _places(text: str, want: Kind | None) -> Iterator[Place] | None:
    """Explicit statements; None if final ones contradict each other."""
    found = statements(text, letters=want is Kind.LETTER)
    first = next(found, None)
    if first is None:
        return iter(())
    if first.rule not in FINAL_RULES:
        return chain([first], found)
    places = [first, *found]
    return None if contradict(places) else iter(places)


def _all(text: str, places: Iterator[Place], want: Kind | None) -> Iterator[Answer]:
    stated = False
    for answer in _answers_at(places):
        yield answer
        stated = True
        if answer.where in FINAL_RULES:
            return
    yield from _weak(text, want, explicit=stated)


FINAL_RULES = ("answer tag", "token box", "final answer", "answer line", "hashes", "json")


def _answers_at(places: Iterator[Place], *, inside: str = "") -> Iterator[Answer]:
    for place in places:
        if not inside and place.rule in ("answer tag", "token box"):
            inner = [*statements(place.text)]
            if inner:
                yield from _answers_at(iter(inner), inside=place.rule)
                return
        yield answer_of(place.text, inside or place.rule)
        if place.rule in FINAL_RULES:
            return


def _solution(response: str) -> str | None:
    text = without_thought(response)
    if text is None:
        return None
    text = text.strip()
    while (
        text.endswith(">") and (end := _SPECIAL_END.search(text, max(0, len(text) - 32))) and end[0] != "<|end_of_box|>"
    ):
        text = text[: end.start()].rstrip()
    return text


def _weak(text: str, want: Kind | None, *, explicit: bool) -> Iterator[Answer]:
    bare = text.strip("*").strip()
    fenced = _FENCE.fullmatch(bare)
    bare = fenced[1] if fenced else bare
    if want is Kind.MATH and _CONCLUDES.match(bare):
        explicit = True  # a sentence, read below
    if bare and not explicit and "\n" not in bare and len(bare) <= MAX_BARE_CHARACTERS and "\\boxed" not in bare:
        yield answer_of(bare, "bare")
    if want in WEAK:
        yield from WEAK[want](text)


def _weak_letters(text: str) -> Iterator[Answer]:
    match = _LEAD_LETTER.match(text)
    if match:
        yield answer_of(
            text.partition("\n")[0] if len(text.partition("\n")[0]) <= 300 else first_sentence(text), "letter first"
        )
    last = text.rstrip().rpartition("\n")[2]
    match = _LAST_LINE_LETTER.fullmatch(last)
    if match and "\n" in text:
        yield answer_of(last, "letter last")
    first = first_sentence(text)
    if _YES_NO.match(first):
        yield answer_of(first, "first sentence")
    if _CONCLUDES.search(last_sentence(text)):
        yield answer_of(last_sentence(text), "conclusion")


def _weak_numbers(text: str) -> Iterator[Answer]:
    for where, sentence in (("last sentence", last_sentence(text)), ("first sentence", first_sentence(text))):
        if where == "first sentence" and not _COUNTED.match(sentence):
            continue
        number = stated_number(sentence)
        if number is not None:
            yield answer_of(number, where)


def _weak_math(text: str) -> Iterator[Answer]:
    last, first = last_sentence(text), first_sentence(text)
    if _CONCLUDES.search(last) and (number := stated_number(last)) is not None:
        yield answer_of(number, "conclusion")
    if _COUNTED.match(first) and (number := stated_number(first)) is not None:
        yield answer_of(number, "first sentence")


def _weak_yes_no(text: str) -> Iterator[Answer]:
    yield answer_of(first_sentence(text), "first sentence")
    yield answer_of(last_sentence(text), "last sentence")


WEAK: dict[Kind, Callable[[str], Iterator[Answer]]] = {
    Kind.LETTER: _weak_letters,  # "B. Because …", a last line "(B) 12", "Yes, the …", "So it is 65 cm."
    Kind.NUMBER: _weak_numbers,  # the one number of the last sentence; "There are 10 objects. First …"
    Kind.MATH: _weak_math,  # "Therefore, x = 5."; "There are 10 objects. First …"
    Kind.YES_NO: _weak_yes_no,  # "Yes, the …"
}


def last_sentence(text: str) -> str:
    """The last sentence of the last line that is not empty.

    Example:
        >>> last_sentence("It is 3.5 m.\\nSo we add. That makes 7.")
        'That makes 7'
    """
    line = text.rstrip().rpartition("\n")[2].strip()
    rest = line
    for _ in range(200):
        sentence = first_sentence(rest)
        after = rest[rest.find(sentence) + len(sentence) :].lstrip(".!?。！；？ \"'”*_)")
        if not after:
            return sentence.strip()
        rest = after
    return rest
