"""Weaker signs of an answer, each a function of the text that yields (text, name of the rule), the best first.

They are read where nothing explicit stands: a letter at the beginning or in a plain sentence, an option's text that a
sentence ends with, the one number of the last sentence or in bold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rewards.verifying.places import first_sentence, last_sentence
from rewards.verifying.quantities import NAMED, read_quantity
from rewards.verifying.sentences import UNSURE, stated_number

MAX_SENTENCE = 400  # characters of a sentence in which a letter or an option is looked for

Sign = tuple[str, str]
SENTENCES = frozenset({"conclusion", "predicate"})  # whole ones, in which an option's text may stand
WEAK_SIGNS = SENTENCES | {
    "bare", "letter first", "letter last", "letter line", "letter in a sentence", "first sentence"
}  # fmt: skip

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
CONCLUDES = re.compile(
    r"(?:^|\W)(?:therefore|thus|hence|so|in conclusion|consequently|in total|altogether|finally|we get|we find"
    r"|this gives"
    r"|因此|所以|故|综上|一共|总共|よって|したがって|따라서)(?:\W|$|(?<=\w)(?=[^\x00-\x7f]))",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"\s*(?:yes,? )?(?:there (?:are|is|were|was)|it shows|the (?:image|picture|figure|chart) (?:shows|contains"
    r"|has)|i (?:can )?(?:see|count))\b",
    re.IGNORECASE,
)
_YES_NO = re.compile(r"(?:yes|no|true|false)\b.*", re.IGNORECASE | re.DOTALL)


def letters(text: str) -> Iterator[Sign]:
    """A letter first, last, alone in a line or in a plain sentence; an option's text at a sentence's end."""
    match = _LEAD_LETTER.match(text)
    if match:
        yield text.partition("\n")[0] if len(text.partition("\n")[0]) <= 300 else first_sentence(text), "letter first"
    last = text.rstrip().rpartition("\n")[2]
    match = _LAST_LINE_LETTER.fullmatch(last)
    if match and "\n" in text:
        yield last, "letter last"
    elif match := _LETTER_BEHIND.search(last):
        yield match[1], "letter last"
    lines = _LETTER_LINE.findall(text)
    if len(lines) == 1:
        yield lines[0], "letter line"
    first, last = first_sentence(text), last_sentence(text)
    for sentence in dict.fromkeys((last, first)):
        if stated := _letter_said(sentence):
            yield stated, "letter in a sentence"
    if _YES_NO.match(first):
        yield first, "first sentence"
    if CONCLUDES.search(last) and not UNSURE.search(last):
        yield last, "conclusion"
    for sentence in dict.fromkeys((last, first)):
        for view in _predicates(sentence):
            yield view, "predicate"


def _letter_said(sentence: str) -> str | None:
    """ "The top view is option (B)." → "(B)"; None where the sentence names two or denies one."""
    if len(sentence) > MAX_SENTENCE or _DENIES.search(sentence):
        return None
    named = set(_PARENTHESISED.findall(sentence))
    match = _SAID.search(sentence)
    return sentence[match.end() :].strip() if match and len(named) <= 1 else None


def _predicates(sentence: str) -> Iterator[str]:
    """What a sentence says of its subject: "The function is a polynomial." → "a polynomial"."""
    if len(sentence) > MAX_SENTENCE or _DENIES.search(sentence):
        return
    main = _PREMISE.sub("", sentence, count=1)
    verbs = [*_VERB.finditer(main)]
    if verbs:
        yield main[verbs[-1].end() :]


def numbers(text: str) -> Iterator[Sign]:
    """The one number of the last sentence or line, the one in bold, or the one counted first."""
    stated = _number_last(text)
    bold = _number_in_bold(text)
    if (
        stated
        and bold
        and read_quantity(stated[0]) != read_quantity(bold)
        and not CONCLUDES.search(last_sentence(text))
    ):
        return  # two numbers stand out
    if stated:
        yield stated
    if bold:
        yield bold, "bold"
    first = first_sentence(text)
    if _COUNTED.match(first) and (number := stated_number(first)) is not None and not _counts_on(text, first, number):
        yield number, "first sentence"


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
            if not (_COUNTED.match(sentence) or CONCLUDES.search(sentence) or _REMAINS.search(sentence)):
                continue
            other = stated_number(sentence.strip(" .:"))
            if other is not None and read_quantity(other) != read_quantity(number):
                return True
    return False


def math(text: str) -> Iterator[Sign]:
    """A number that is concluded, or counted first."""
    last, first = last_sentence(text), first_sentence(text)
    if CONCLUDES.search(last) and (number := stated_number(last)) is not None:
        yield number, "concluded number"
    if _COUNTED.match(first) and (number := stated_number(first)) is not None:
        yield number, "first sentence"


def yes_no(text: str) -> Iterator[Sign]:
    """The first sentence, then the last."""
    yield first_sentence(text), "first sentence"
    yield last_sentence(text), "last sentence"
