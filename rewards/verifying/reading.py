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

from rewards.verifying import phrases, signs
from rewards.verifying.dress import undress
from rewards.verifying.places import (
    Place,
    contradict,
    statements,
)
from rewards.verifying.quantities import read_quantity
from rewards.verifying.solution import solution, without_option_lists

MAX_BARE_CHARACTERS = 80  # a longer response without any marker is reasoning, not an answer
MIN_SOLUTION = 200  # characters before "Question: …" that are no restated question


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
    text = solution(response)
    text = _before_next_question(text, None) if text is not None else None
    places = _places(text, None) if text is not None else None
    return next(_answers_at(places), None) if places is not None else None


def candidates(response: str, want: Kind | None = None) -> Iterator[Answer] | Missing:
    """Stated answers, the one that counts first: a verifier takes the first that it can read.

    Explicit statements come alone, but that letters and numbers may also be read from weaker signs where all that is
    explicit is a box or a sentence.
    """
    text = solution(response)
    text = without_option_lists(text) if text and want is Kind.LETTER else text
    if text is None:
        return Missing.OPEN_THOUGHT
    text = _before_next_question(text, want)
    if text is None:
        return Missing.CONTRADICTORY
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


def _before_next_question(text: str, want: Kind | None) -> str | None:
    """Without a question that the model then asks itself; None if its answer is another one.

    A question that stands before any answer is the given one, repeated.
    """
    following = phrases.NEXT_QUESTION.search(text, 1)
    if following is None:
        return text
    head, tail = text[: following.start()].rstrip(), text[following.end() :].strip()
    ours, theirs = _first_stated(head, want), _first_stated(tail, want)
    if ours is None and len(head) < MIN_SOLUTION:
        return text
    return None if theirs is not None and (ours is None or _different(ours, theirs)) else head


def _first_stated(text: str, want: Kind | None) -> Answer | None:
    """The first statement of a text, explicit or weak, but not the bare text itself."""
    places = _places(text, want)
    found = _all(text, places, want) if places is not None else iter(())
    return next((answer for answer in found if answer.where not in ("bare", *signs.SENTENCES)), None)


def _different(a: Answer, b: Answer) -> bool:
    if Kind.LETTER in (a.kind, b.kind):
        ours, theirs = (re.search(r"[A-Z]", answer.value) for answer in (a, b))
        return ours is None or theirs is None or ours[0] != theirs[0]
    number, other = read_quantity(a.value), read_quantity(b.value)
    same = a.value.casefold() == b.value.casefold()
    return not same and (number is None or other is None or number.value != other.value)


WEAK: dict[Kind, Callable[[str], Iterator[signs.Sign]]] = {
    Kind.LETTER: signs.letters,  # "B. Because …", a last line "(B) 12", "Yes, the …", "So it is 65 cm."
    Kind.NUMBER: signs.numbers,  # the one number of the last sentence, or in bold; "There are 10 objects. First …"
    Kind.MATH: signs.math,  # "Therefore, x = 5."; "There are 10 objects. First …"
    Kind.YES_NO: signs.yes_no,  # "Yes, the …"
}


def _weak(text: str, want: Kind | None, *, explicit: bool) -> Iterator[Answer]:
    bare = text.strip("*").strip()
    fenced = _FENCE.fullmatch(bare)
    bare = fenced[1] if fenced else bare
    if want is Kind.MATH and signs.CONCLUDES.match(bare):
        explicit = True  # a sentence, read below
    if bare and not explicit and "\n" not in bare and len(bare) <= MAX_BARE_CHARACTERS and "\\boxed" not in bare:
        yield answer_of(bare, "bare")
    if want in WEAK:
        yield from (answer_of(*sign) for sign in WEAK[want](text))
