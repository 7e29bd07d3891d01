"""The one number that a sentence states: "So there are 8 apples." → "8"; operands, bounds and doubts are none."""

from __future__ import annotations

import re

from rewards.verifying.quantities import BEHIND, NAMED, SCALES, VALUE, opened
from rewards.verifying.units import CURRENCY, parsed_unit

MAX_CHARACTERS = 400  # of a sentence

_BOUND = re.compile(
    r"(?:n't\b|\b(?:not|no|none of|never|less than|fewer than|more than|greater than|larger than|smaller than"
    r"|higher than|lower than|under|below"
    r"|above|over|exceeds?|between|at (?:least|most)|up to|either|cannot|can't)\b"
    r"|不是|不到|小于|大于|少于|多于|超过|低于|高于|至少|至多)"
    r"(?:(?!\b(?:is|are|was|were)\b|=)[^.,;，]){0,16}$",
    re.IGNORECASE,
)
_OPERAND = re.compile(
    r"(?:\b(?:than|under|below|above|over|exceeding|out of|of the|in|at|on|by|for|since|until|after|before|during"
    r"|year|figure|fig\.?|table|step|option"
    r"|choice|question|problem|example|case|part|row|column|line|page|grade|class|number|no\.?|times|divided by"
    r"|minus|plus|each|every|least|most|per|than the)\s+(?:the )?\$?|, with\s+|[/×x*÷+(^:#]\s?|\d\s?-\s?|\\(?:times|div"
    r"|cdot)\s*|第)$",
    re.IGNORECASE,
)
UNSURE = re.compile(
    r"\b(?:unknown|unsure|unclear|cannot|unable|impossible|maybe|perhaps|might|no idea|not (?:sure|clear|possible"
    r"|enough|known))\b|n't (?:know|be|tell|determine)\b|无法|不知道|不确定",
    re.IGNORECASE,
)
_EQUALS = re.compile(r"=|≈|\\approx")
_A_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}|[\u3040-\u9fff\uac00-\ud7a3]")
_FORMULA = re.compile(
    r"[<>≤≥±|]|\d\s?:\s?\d|\\(?:g|l)eq?\b|\\(?:pm|neq?|mp|gt|lt)\b|\b(?:log|ln)\b|\d\+(?!\s*\d)|\d\s*(?:!(?=\s*$)|\^|\*\*"
    r"|[πθ√²³]|\\(?:pi|sqrt|theta|frac|log))|\d[xyzknπ](?![A-Za-z])|[√^]\s*\d|\\(?:sqrt|frac|log|sin|cos|tan)"
)
_AFTER_EQUALS = re.compile(r"(?:=|≈|\\approx)\s*$")
_OPERATOR = re.compile(r"\s*(?:[×÷*/+^:]|x|-|\\times|\\div|\\cdot|times|plus|minus|divided by)\s*\(?\s*[-\d.]")
_RESULT = re.compile(
    r"\b(?:there (?:is|are|were|was|remain)|is|are|was|were|equals?|leaves?|left with|get|gives?|has|have|makes"
    r"|total(?: of)?)"
    r"(?: (?:about|approximately|only|exactly|roughly|around|a total of|just|equal to|of))?\s+$",
    re.IGNORECASE,
)


_ALONE = re.compile(r"(?:\b(?:is|are|be|about|approximately|equals)|=|≈)\s*\($", re.IGNORECASE)  # "is (2) inches"
_COMPARED = re.compile(r"times (?:more|as|greater|higher|larger|bigger|longer|less|smaller|the)\b", re.IGNORECASE)


def stated_number(sentence: str) -> str | None:
    """The one number that a sentence states, with its unit; operands ("lower than 8", "in 2010", "3 ×") are left out.

    Number words are read only where no other number is stated; "one" is mostly a pronoun.

    Example:
        >>> stated_number("Therefore, the range of the miles hiked is 8 miles")
        '8 miles'
        >>> stated_number("There are three algorithms with accuracy lower than 8"), stated_number("It is 3 or 4")
        ('3', None)
    """
    if len(sentence) > MAX_CHARACTERS or UNSURE.search(sentence):
        return None
    if len(_A_WORD.findall(sentence)) < 2 and not _EQUALS.search(sentence):
        return None  # no sentence
    for words in (False, True):
        plain, currency = opened(sentence, words=words)
        if _FORMULA.search(plain):
            return None
        stated = [
            match
            for match in VALUE.finditer(plain)
            if not _in_word(plain, match) and not _BOUND.search(plain[: match.start()])
        ]
        if len(stated) > 1:
            result = [match for match in stated if _AFTER_EQUALS.search(plain[: match.start()])]
            others = [match for match in stated if not _is_operand(plain, match)]
            if result and result[-1] is stated[-1]:
                others = result[-1:]
            elif len(others) > 1 and (ahead := _described(plain, others)):
                others = ahead
            elif len(others) > 1 and others[-1] is stated[-1] and _RESULT.search(plain[: stated[-1].start()]):
                others = others[-1:] if _one_result(plain, others) else []
            stated = others
        elif stated and NAMED.search(plain[: stated[0].start()]):
            stated = []
        if stated:
            return _with_unit(plain, stated[0], currency) if len(stated) == 1 else None
    return None


def _described(plain: str, numbers: list[re.Match[str]]) -> list[re.Match[str]]:
    """The number before a clause that describes it: "There is 1 block that has 36 houses"; else nothing."""
    first, second = numbers[:2]
    before, between = plain[: first.start()], plain[first.end() : second.start()]
    if _THERE_IS.search(before) and re.match(r"[\w\s'-]{1,60}\b(?:that|which|who|whose|with)\b", between):
        return [first]
    told = _RESULT.search(before) and re.match(r"[\w\s%°'-]{0,60}, (?:with|which|where|while|since|because)\b", between)
    return [first] if told else []


_THERE_IS = re.compile(r"\bthere (?:is|are|was|were)(?: only| exactly)?\s+$", re.IGNORECASE)


def _one_result(plain: str, numbers: list[re.Match[str]]) -> bool:
    """Not "the voltage is 3 V and the current is 1 A", where another result stands before the last."""
    *_, before, last = numbers
    between = plain[before.end() : last.start()]
    return not (
        _RESULT.search(plain[: before.start()]) and re.match(r"[^.;]{0,20},? and\b(?! so| thus| therefore)", between)
    )


def _is_operand(plain: str, match: re.Match[str]) -> bool:
    before = plain[: match.start()]
    signed = match["sign"] is not None and re.search(r"[\d)}]\s*$", before)
    return bool(signed or _OPERAND.search(before) or _OPERATOR.match(plain, match.end()))


def _with_unit(plain: str, match: re.Match[str], currency: str) -> str | None:
    """The number and the unit behind it; None for a bound such as "5 or more"."""
    after = re.split(r"[.,;:!?()]|\d", plain[match.end() :], maxsplit=1)[0].strip()
    if BEHIND.match(after) and not _COMPARED.match(after):
        return None
    words = after.split()[:3]
    names = (" ".join(words[:count]) for count in range(len(words), 0, -1))
    unit = next((name for name in names if name[0] == "%" or name.casefold() in SCALES or parsed_unit(name)), "")
    return (
        f"{currency if currency in CURRENCY else ''}{match[0].strip()} {unit[:1] if unit[:1] == '%' else unit}".strip()
    )


def _in_word(plain: str, match: re.Match[str]) -> bool:
    """Part of a name such as A4, x2 or 3D; "one" as a pronoun is left to the reader of words."""
    before, after = plain[: match.start()], plain[match.end() :]
    return (
        bool(re.search(r"[A-Za-z_]$", before))
        or bool(re.match(r"(?:D|st|nd|rd|th)\b|\s*\)?\s*[=≈]\s*\S", after))
        or bool(
            re.search(r"\([^()]*$", before)
            and re.match(r"[^()]*\)\s*\S", after)
            and not (_ALONE.search(before) and after[:1] == ")")
        )
    )
