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

from rewards.verifying import phrases
from rewards.verifying.dress import undress
from rewards.verifying.places import (
    Place,
    contradict,
    first_sentence,
    statements,
    without_courtesy,
    without_option_lists,
    without_thought,
)
from rewards.verifying.quantities import NAMED, read_quantity
from rewards.verifying.sentences import UNSURE, stated_number

MAX_BARE_CHARACTERS = 80  # a longer response without any marker is reasoning, not an answer
MAX_SENTENCE = 400  # characters of a sentence in which a letter or an option is looked for
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
_SPECIAL_END = re.compile(r"(?:<\|[A-Za-z_]{2,24}\|>|</s>|<eos>|<end_of_turn>)\Z")
_LEAD_LETTER = re.compile(
    r"[*_\"'“]{0,3}(?:(?:option|choice|answer|选项)\s*)?(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?=[.):：,，、。;\n*_]|\s*$"
    r"|\s*[-–—]\s|\s*\())"
    r"(?![.]?[A-Za-z]\b)"
)
_LAST_LINE_LETTER = re.compile(
    r"[#>\s*_\-•]*(?:(?:so|thus|hence|therefore)[,:]?\s+)?(?:[Oo]ption\s+)?(?:\(([A-Z])\)|([A-Z])[).:]"
    r"|([A-Z])[*_.\s]*$|([A-Z])\s*(?=\()).{0,300}"
)
_LETTER_LINE = re.compile(
    r"[:：][*_ \t]*\n\s*[*_]{0,2}(\([A-H]\)[^\n]{0,300}|[A-H][).:] [^\n]{0,300}|[A-H])[*_.]{0,3}[ \t]*(?=\n|$)"
)
_LETTER_BEHIND = re.compile(r"[.!?:]\s+(\([A-H]\))[.\s]*$")  # "It would sink. (D)"
_PARENTHESISED = re.compile(r"\(([A-H])\)")
_SAID = re.compile(
    r"(?:\b(?:is|are|was|be|by|for)|[:：=])\s+(?:the\s+)?(?:(?:option|choice|letter|answer)\s+)?"
    r"(?=[*_\"“]{0,3}(?:\([A-H]\)|[A-H][*_\"”]{0,3}(?:\s*[.。]?\s*$|\s*\()))"
    r"|[为是选]\s*(?=[（(]?[A-H][)）]?\s*[.。]?\s*$)"
)
_DENIES = re.compile(
    r"\b(?:not|never|neither|nor|incorrect|wrong|except|unlike|instead|cannot|unclear|unable|impossible|or"
    r"|than)\b|n't\b|不"
    r"|错|或",
    re.IGNORECASE,
)
_PREMISE = re.compile(
    r"^(?:if|when|since|because|as|given|based on|assuming|from|in|for)\b[^,，]{0,200}[,，]\s*", re.IGNORECASE
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|be|will|would|may|might|could|shows|equals)\b(?: (?:the|a|an|most|likely|also|about|around"
    r"|approximately))*\s+",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*([-+−$€£¥≈~(\\]{0,3}\s?\d[^*\n]{0,40})\*\*")
_ITEM = re.compile(r"(?:[-*•]|\d{1,2}[.)])\s+")
_NAMED_VALUE = re.compile(r"(?:[-*•]\s+)?[^=:\d]{1,40}(?:[=:]|≈)\s*[-+$]?[\d.,]+[^=:]{0,20}")
_LABELLED = re.compile(r"(?:[-*•]|\d{1,2}[.)])\s+[^:：]{1,40}[:：]")
_SUMS_UP = re.compile(r"\b(?:total|sum|final|result|answer|altogether|left|remain\w*|so|therefore)\b", re.IGNORECASE)
_REMAINS = re.compile(r"\b(?:left|remain\w*|in total|altogether)\b", re.IGNORECASE)
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
    text = _solution(response, None)
    text = _before_next_question(text, None) if text is not None else None
    places = _places(text, None) if text is not None else None
    return next(_answers_at(places), None) if places is not None else None


def candidates(response: str, want: Kind | None = None) -> Iterator[Answer] | Missing:
    """Stated answers, the one that counts first: a verifier takes the first that it can read.

    Explicit statements come alone, but that letters and numbers may also be read from weaker signs where all that is
    explicit is a box or a sentence.
    """
    text = _solution(response, want)
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


def _solution(response: str, want: Kind | None) -> str | None:
    """What is read: behind the thought, without closing phrases, and for letters without a list of the options."""
    text = without_thought(response)
    if text is None:
        return None
    text = text.strip().lstrip("\u200b\u2060\ufeff").lstrip()
    while (
        text.endswith(">") and (end := _SPECIAL_END.search(text, max(0, len(text) - 32))) and end[0] != "<|end_of_box|>"
    ):
        text = text[: end.start()].rstrip()
    text = without_courtesy(text)
    return without_option_lists(text) if want is Kind.LETTER else text


def _before_next_question(text: str, want: Kind | None) -> str | None:
    """Without a question that the model goes on to ask itself; None if its answer is another one.

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
    return next((answer for answer in found if answer.where not in ("bare", *SENTENCES)), None)


def _different(a: Answer, b: Answer) -> bool:
    if Kind.LETTER in (a.kind, b.kind):
        ours, theirs = (re.search(r"[A-Z]", answer.value) for answer in (a, b))
        return ours is None or theirs is None or ours[0] != theirs[0]
    ours, theirs = read_quantity(a.value), read_quantity(b.value)
    return a.value.casefold() != b.value.casefold() and (ours is None or theirs is None or ours.value != theirs.value)


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
    elif match := _LETTER_BEHIND.search(last):
        yield answer_of(match[1], "letter last")
    lines = _LETTER_LINE.findall(text)
    if len(lines) == 1:
        yield answer_of(lines[0], "letter line")
    first, last = first_sentence(text), last_sentence(text)
    for sentence in dict.fromkeys((last, first)):
        if stated := _letter_said(sentence):
            yield answer_of(stated, "letter in a sentence")
    if _YES_NO.match(first):
        yield answer_of(first, "first sentence")
    if _CONCLUDES.search(last) and not UNSURE.search(last):
        yield answer_of(last, "conclusion")
    for sentence in dict.fromkeys((last, first)):
        for view in _predicates(sentence):
            yield answer_of(view, "predicate")


def concludes(sentence: str) -> bool:
    """Whether a sentence says "therefore", "so", "in total" or the like."""
    return _CONCLUDES.search(sentence) is not None


def _letter_said(sentence: str) -> str | None:
    """ "The top view is option (B)." → "(B)"; None where the sentence names two or denies one."""
    if len(sentence) > MAX_SENTENCE or _DENIES.search(sentence):
        return None
    named = {letter for letter in _PARENTHESISED.findall(sentence)}
    match = _SAID.search(sentence)
    return sentence[match.end() :].strip() if match and len(named) <= 1 else None


def _predicates(sentence: str) -> Iterator[str]:
    """What a sentence says of its subject: "The function is a polynomial." → "a polynomial"."""
    if len(sentence) > MAX_SENTENCE or _DENIES.search(sentence):
        return
    main = _PREMISE.sub("", sentence, count=1)
    match = None
    for match in _VERB.finditer(main):
        pass
    if match:
        yield main[match.end() :]


def _weak_numbers(text: str) -> Iterator[Answer]:
    stated = _number_last(text)
    bold = _number_in_bold(text)
    if (
        stated
        and bold
        and read_quantity(stated[0]) != read_quantity(bold)
        and not _CONCLUDES.search(last_sentence(text))
    ):
        return  # two numbers stand out
    if stated:
        yield answer_of(*stated)
    if bold:
        yield answer_of(bold, "bold")
    first = first_sentence(text)
    if _COUNTED.match(first) and (number := stated_number(first)) is not None and not _counts_on(text, first, number):
        yield answer_of(number, "first sentence")


def _number_last(text: str) -> tuple[str, str] | None:
    """The number of the last sentence, or of a last line that is nothing else; and the rule's name."""
    lines = [line.strip() for line in text.rsplit("\n", 12) if line.strip()]
    if len(lines) > 2 and lines[-3].endswith((":", "：")) and all(_NAMED_VALUE.fullmatch(line) for line in lines[-2:]):
        return None  # a list of several values
    if len(lines) > 1 and (item := _LABELLED.match(lines[-1])) and not _SUMS_UP.search(item[0]):
        return None  # one item of a list
    number = stated_number(last_sentence(text))
    if number is not None:
        return number, "last sentence"
    if len(lines) > 1 and len(lines[-1]) <= 40 and not lines[-2][:1].isdigit() and read_quantity(lines[-1]) is not None:
        return lines[-1], "last line"
    while len(lines) > 1 and (item := _ITEM.match(lines[-1])) and not any(s.isdigit() for s in lines[-1][item.end() :]):
        lines.pop()
    if lines and lines[-1].endswith((":", "：")) and (number := stated_number(last_sentence(lines[-1]))):
        return number, "before a list"
    return None


def _number_in_bold(text: str) -> str | None:
    """The one number that is set in bold, with nothing but its unit."""
    if "**" not in text:
        return None
    found = {value.strip(" .") for value in _BOLD.findall(text)}
    numbers = [value for value in found if read_quantity(value) is not None and not NAMED.search(f"{value} ")]
    return numbers[0] if len(numbers) == 1 else None


def _counts_on(text: str, first: str, number: str) -> bool:
    """Whether a later sentence counts or concludes with another number: the first was a beginning."""
    rest = text[text.find(first) + len(first) :]
    for line in rest.split("\n")[:50]:
        for sentence in re.split(r"(?<=[.!?])\s+", line)[:20]:
            if not (_COUNTED.match(sentence) or _CONCLUDES.search(sentence) or _REMAINS.search(sentence)):
                continue
            other = stated_number(sentence.strip(" .:"))
            if other is not None and read_quantity(other) != read_quantity(number):
                return True
    return False


def _weak_math(text: str) -> Iterator[Answer]:
    last, first = last_sentence(text), first_sentence(text)
    if _CONCLUDES.search(last) and (number := stated_number(last)) is not None:
        yield answer_of(number, "concluded number")
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


SENTENCES = frozenset({"conclusion", "predicate"})  # whole ones, in which an option's text may stand
WEAK_SIGNS = SENTENCES | {
    "bare",
    "letter first",
    "letter last",
    "letter line",
    "letter in a sentence",
    "first sentence",
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
