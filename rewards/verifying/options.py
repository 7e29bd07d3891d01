r"""Options of a multiple-choice problem, and which of them a stated answer names: by letter, number or text.

A letter and a text that contradict each other name none, nor do two letters; two options with one text are one option.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from rewards.types import Problem
from rewards.verifying.dress import undressed
from rewards.verifying.quantities import read_quantity
from rewards.verifying.units import unit_factor

MAX_TEXT = 1_000  # characters of an answer that is compared with options

_LETTER = re.compile(
    r"(?:(?:the |my )?(?:(?:correct|right|best) )?(?:option|choice|answer|letter|选项|選項|选|選|choose|pick"
    r"|select)(?: letter| is|是|为)?\s*[:：]?\s*)?"
    r"[*_\"']{0,3}(?:\(\s*([A-Za-z])\s*\)|\[\s*([A-Za-z])\s*\]|\{\s*([A-Za-z])\s*\}|<\s*([A-Za-z])\s*>"
    r"|([A-Za-z])(?![A-Za-z0-9_'’À-ÿ]))[)\]}>]?[*_\"']{0,3}(?:选项|選項|项)?",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"(?:(?:option|choice|answer|选项)\s*)?[(\[]?\s*(\d{1,2}|[①-⑨])\s*[)\].]?(?:[\s.:,、].*)?",
    re.IGNORECASE | re.DOTALL,
)
_SEVERAL = re.compile(
    r"(?:\s*(?:,|;|/|&|、|，|和|与|及|\+|\band\b|\bor\b|\s)\s*(?:(?:option"
    r"|choice)\s*)?[(\[]?((?-i:[A-Z]))[)\]]?(?![\w'’]))+",
    re.IGNORECASE,
)
_MULTI = re.compile(
    r"[(\[]?\s*([A-Z])\s*[)\]]?(?:\s*(?:,|;|/|&|、|，|和|与|及|\+|\band\b|\s)?\s*[(\[]?\s*([A-Z])\s*[)\]]?){1,10}"
)
_DENIED = re.compile(
    r"\s*(?:is|are|was|seems|would be|can be|could be)?\s*(?:not\b|n't|wrong|incorrect|false|ruled out|excluded"
    r"|invalid|(?:does|do) not)|是?(?:错|不)|不对",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"\s*(?:[.:：,，、;。]|[-–—](?=\s)|=|\bis\b|\(|\s)\s*")
_CLAUSE = re.compile(
    r"[;:(\n。，；]|[.,](?!\d)|\s[-–—]\s|\b(?:because|since|as|which|where|so|with|for|when|while|and)\b", re.IGNORECASE
)
_OR = re.compile(r"\b(?:or|either|neither|nor|not|n't|both|except|none of)\b|或|不是|不", re.IGNORECASE)
_ANOTHER = re.compile(r"[\s,]*(?:or|and|nor|/|&)\b")
_LETTER_BESIDE = re.compile(r"\(([A-Z])\)\W*$|\b[Oo]ption \(?([A-Z])\)?(?!\w)|(?<!\w)\(([A-Z])\)")
_IN_QUESTION = re.compile(r"^[ \t]*\(?([A-Z])[).:：、][ \t]*(\S[^\n]*)$", re.MULTILINE)
_MACRO_LETTER = re.compile(r"^\\(?:text|textbf|mathrm|mathbf|textrm)\s*\{\s*(\(?[A-Z]\)?[.:]?)\s*\}")  # \textbf{(C) } 7
_ARTICLE = re.compile(r"\b(?:a|an|the)\s+(?=\w)")


def options_of(problem: Problem) -> tuple[str, ...]:
    """Texts of the options, in the order of their letters: `meta["choices"]`, else the lines "A. …" of the question.

    Example:
        >>> options_of(Problem("p", "Which?\\nA. red\\nB. blue"))
        ('red', 'blue')
    """
    choices = problem.meta.get("choices")
    if isinstance(choices, list | tuple) and choices:
        return tuple(str(choice) for choice in choices)
    if isinstance(choices, dict) and list(choices) == [chr(65 + i) for i in range(len(choices))]:
        return tuple(str(choice) for choice in choices.values())
    return _lettered(problem.question)


@lru_cache(maxsize=1024)
def _lettered(question: str) -> tuple[str, ...]:
    if "\n" not in question or len(question) > 20_000:
        return ()
    lines = _IN_QUESTION.findall(question)
    letters = "".join(letter for letter, _ in lines)
    complete = len(lines) >= 2 and letters == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(lines)]
    return tuple(text.strip() for _, text in lines) if complete else ()


@lru_cache(maxsize=8192)
def plain_text(text: str) -> str:
    r"""In lower case, without dress, articles, trailing punctuation and blanks that say nothing.

    Example:
        >>> plain_text("The **Strix Aluco**."), plain_text(r"70^\circ")
        ('strix aluco', '70°')
    """
    text = undressed(text).casefold()
    if "\\" in text:
        text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text)
        text = re.sub(r"\s*\^\s*\{?\s*\\circ\s*\}?|\\degree", "°", text).replace("\\left", "").replace("\\right", "")
        text = re.sub(r"\\[dt]frac", r"\\frac", text)
        text = re.sub(r"\\sqrt\s*\{\s*(\w+)\s*\}", r"√\1", text)
    text = re.sub(r"\s*√\s*\{?\s*(\w+)\s*\}?", r"√\1", text) if "√" in text else text
    text = text.replace("$", "").replace("**", "").replace("`", "")
    text = re.sub(r"\s*°", "°", text.strip().strip("!?.;:,。"))
    return " ".join(_ARTICLE.sub("", text).split()) or text


def named_options(stated: str, options: Sequence[str], *, numbered: bool = False) -> frozenset[str] | None:
    r"""The letters that a stated answer names; empty if it contradicts itself, None if it names none.

    Args:
        stated: an answer, dressed or not.
        options: the options' texts; empty if only letters are known.
        numbered: "(2)" and "2" are the second option: for problems whose reference is a number.

    Example:
        >>> options = ("60°", "70°", "80°", "85°")
        >>> [sorted(named_options(s, options) or "") for s in ("B", "(b) 70°", "70 degrees", "A, C", "B (80°)")]
        [['B'], ['B'], ['B'], ['A', 'C'], []]
    """
    if len(stated) > MAX_TEXT:
        return None
    value = _MACRO_LETTER.sub(r"\1 ", undressed(stated)).strip()
    texts = tuple(plain_text(option) for option in options)
    whole = plain_text(value)
    if whole in texts and not _is_letter_of(value, whole, options, texts):
        return _same(texts.index(whole), texts)
    if numbered and (match := _NUMBERED.fullmatch(value)):
        place = int(match[1]) if match[1].isdigit() else "①②③④⑤⑥⑦⑧⑨".index(match[1]) + 1
        return frozenset(chr(64 + place)) if 1 <= place <= (len(options) or 26) else None
    lettered = _by_letter(value, texts)
    if lettered is not None:
        return lettered
    return _by_text(value, texts)


def _is_letter_of(value: str, whole: str, options: Sequence[str], texts: tuple[str, ...]) -> bool:
    """Whether options are letters themselves, in other places, and this is written as none of them: a place then."""
    letter = whole.strip("()")
    if len(letter) != 1 or not letter.isalpha() or not 0 <= ord(letter) - 97 < len(texts):
        return False
    return value.strip("()") not in {option.strip(" ()") for option in options}


def _by_letter(value: str, texts: tuple[str, ...]) -> frozenset[str] | None:
    """Letters named; empty if they cannot count; None if the text does not begin with a letter."""
    known = len(texts) or 26
    match = _LETTER.match(value)
    if match and texts:
        place = ord(_letter_in(match).upper()) - 65
        if place < known and value[match.end() :].strip() and _is_own_text(value[match.end() :], texts[place]):
            return _same(place, texts)
    multi = _MULTI.fullmatch(value)
    if multi and not re.search(r"\bor\b", value) and value.upper() == value.replace("and", "AND"):
        letters = frozenset(re.findall(r"[A-Z]", value.replace("and", "")))
        if all(ord(letter) - 65 < known for letter in letters):
            return letters
        return frozenset() if " " in value or "," in value else None
    if match is None:
        return None
    bare, letter = match[5] is not None, _letter_in(match)
    rest = value[match.end() :]
    if bare and letter.islower() and rest.strip() and not re.match(r"\s*[).:]", value[match.start(5) + 1 :]):
        return None  # "a good one"
    separated = _SEPARATOR.match(rest)
    if (
        rest.strip()
        and not separated
        and match.group().rstrip()[-1] not in ")]}>*_\"'"
        and not re.match(r"[^\x00-\x7f]", rest)
    ):
        return None
    if (
        bare
        and letter.upper() in "AI"
        and re.match(r"\s+[a-z]", rest)
        and match.start(5) == 0
        and not re.match(r"\s+(?:is|because|since|as)\b", rest)
    ):
        return None  # "A good question", "I am not sure"
    place = ord(letter.upper()) - 65
    if place >= known:
        return frozenset()
    if _DENIED.match(rest) or _SEVERAL.match(rest):
        return frozenset()
    if texts and _contradicts(rest, place, texts):
        return frozenset()
    return _same(place, texts) if texts else frozenset(letter.upper())


def _contradicts(rest: str, place: int, texts: tuple[str, ...]) -> bool:
    """Whether the text after a letter is another option's text and not its own."""
    stated = rest.strip().lstrip(".:：,，、;-–—=( ").strip()
    if not stated:
        return False
    readings = {plain_text(stated), plain_text(stated.rstrip(")")), plain_text(_CLAUSE.split(stated, maxsplit=1)[0])}
    if texts[place] in readings or _begins_with(plain_text(stated), texts[place]):
        return False
    return any(
        text in readings or _begins_with(plain_text(stated), text) for text in texts if text and text != texts[place]
    )


def _letter_in(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group)


def _is_own_text(rest: str, own: str) -> bool:
    """Whether a letter is followed by its option's text and then by nothing, or by another clause."""
    stated = rest.strip().lstrip('.:：,，、;-–—=(["“ ').strip()
    for view in (stated, _CLAUSE.split(stated, maxsplit=1)[0]):
        if own and own in (plain_text(view), plain_text(view.rstrip(')]"”.,'))):
            return True
    return False


def _begins_with(stated: str, text: str) -> bool:
    rest = stated[len(text) :]
    return bool(text) and stated.startswith(text) and not re.match(r"[\w°%^/√π\\]|[.,]\d|\s*[-+*/^=√\\]", rest)


def _by_text(value: str, texts: tuple[str, ...]) -> frozenset[str] | None:
    if not texts:
        return None
    named = [match for match in _LETTER_BESIDE.finditer(value) if ord(_letter_in(match)) - 65 < len(texts)]
    if len(named) == 1:  # "70° (B)", "It is option (B) 70°"
        rest = _by_text(f"{value[: named[0].start()]} {value[named[0].end() :]}".strip(), texts)
        own = _same(ord(_letter_in(named[0])) - 65, texts)
        if _OR.search(value) or rest not in (None, own):
            return frozenset()
        return own if rest == own or named[0].end() == len(value) else None
    stated = plain_text(value)
    first = plain_text(_CLAUSE.split(stated, maxsplit=1)[0])
    if first in texts and not _ANOTHER.match(stated, len(first)):
        return _same(texts.index(first), texts)
    found = [text for text in dict.fromkeys(texts) if text and _contains(stated, text)]
    found = [text for text in found if not any(text != other and text in other for other in found)]
    if len(found) == 1 and not _OR.search(stated) and len(stated) <= len(found[0]) + 120:
        return _same(texts.index(found[0]), texts)
    if found:
        return None
    return _by_quantity(value, texts)


def _contains(stated: str, text: str) -> bool:
    if (len(text) < 2 and not text.isdigit()) or (text in ("no", "yes") and not stated.endswith(f" {text}")):
        return False
    return re.search(rf"(?<![\w.,/^\\+*-]){re.escape(text)}(?![\w°%/^]|[.,]\d|\s*[-+*/^=]\s*\w)", stated) is not None


def _by_quantity(value: str, texts: tuple[str, ...]) -> frozenset[str] | None:
    stated = read_quantity(value)
    if stated is None:
        return None
    equal = []
    for place, text in enumerate(texts):
        option = read_quantity(text)
        factor = unit_factor(stated.unit, option.unit) if option else None
        if option and factor is not None and abs(stated.value * factor - option.value) <= 1e-6 * abs(option.value):
            equal.append(place)
    distinct = {texts[place] for place in equal}
    return _same(equal[0], texts) if len(distinct) == 1 else None


def _same(place: int, texts: tuple[str, ...]) -> frozenset[str]:
    """The first letter of those options that have this one's text."""
    return frozenset(chr(65 + texts.index(texts[place])))
