r"""Text → a number with its unit, as answers write them: "1,000", "−3", "1.2 \times 10^{3}", "\frac{1}{2}", "12 cm²".

No text is ever evaluated. Units are in `units.py`, a number inside a sentence in `sentences.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

from rewards.verifying.dress import undressed
from rewards.verifying.number_words import digits_for_words, unit_signs
from rewards.verifying.units import CODES, CURRENCY, parsed_unit

MAX_CHARACTERS = 200  # of an answer that is read as a quantity

_NUMBER = (
    r"(?:\d{1,3}(?:[ '’\u00a0\u202f\u2009]\d{3}){1,6}(?![\d/]|\s*/)(?:[.,]\d{1,30})?"  # 1 000 000,5
    r"|\d{1,3}(?:\.\d{3}){2,6}(?:,\d{1,30})?(?![\d.])|\d{1,3}(?:\.\d{3}){1,6},\d{1,30}"  # 1.000.000,5
    r"|\d{1,3}(?:,\d{3}){1,6}(?:\.\d{1,30})?(?![\d])"  # 1,000.5
    r"|\d{1,2}(?:,\d{2}){1,6},\d{3}(?:\.\d{1,30})?(?!\d)"  # 12,34,567
    r"|\d{1,18},\d{1,30}(?![\d,.]*\d)|\d{1,18}(?:\.\d{1,30})?|\.\d{1,30})"  # 1000,5; 1000.5
)
_EXPONENT = r"\{\s*[+-]?\d{1,3}\s*\}|\(\s*[+-]?\d{1,3}\s*\)|[+-]?\d{1,3}"
_POWER = rf"(?:[eE][+-]?\d{{1,3}}(?![\d.])|\s*(?:×|x|X|\*|·|⋅|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*(?:{_EXPONENT}))?"
VALUE = re.compile(
    rf"(?:(?<![\w)}}])(?P<sign>[+-])\s*)?(?:(?P<whole>\d{{1,9}})(?:\s+|\s?-\s?"
    rf"|\s*\+\s*|\s*&\s*)(?=\d{{1,6}}\s*/))?(?P<number>{_NUMBER})(?P<power>{_POWER})"
    rf"(?:\s*/\s*(?P<below>{_NUMBER}))?"
)
SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "mn": 10**6,
    "bn": 10**9,
    "lakh": 10**5,
    "crore": 10**7,
}
_MACROS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|rm)\s*\{([^{}]*)\}|\\(?:left|right"
    r"|displaystyle)(?![A-Za-z])|\\[,;: ]|~|\\q?quad"
)
_FRACTION = re.compile(r"(-?)\s*\\[cdt]?frac\s*(?:\{\s*(-?)\s*([\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))")
_REPEATING = re.compile(r"(\d{0,9})\.(\d{0,12})\\(?:overline|bar|dot)\s*(?:\{(\d{1,12})\}|(\d))")
_LEAD = re.compile(
    r"^(?:[A-Za-z\u0391-\u03c9∠△\\][\w\\{}'^ ]{0,24}(?:=|≈|\\approx|:=)(?!=)|[A-Za-z]\w{0,2}\s*:"
    r"|(?:just |only |exactly |precisely )?(?:about|approximately|approx\.?|roughly|around|nearly|almost|circa"
    r"|ca\.|is|equals?|≈|~|=|\\approx|\\sim|约为?|大约|大约为|約|ungefähr|etwa|environ|aproximadamente"
    r"|circa)(?![A-Za-z]))\s*",
    re.IGNORECASE,
)
_ATOM = r"[A-Za-zµμΩ°Å]++(?:\^?\{?-?[1-9]\}?(?!\d)|[²³])?"
_UNIT = re.compile(rf"{_ATOM}(?:\s*[/*·⋅]?\s*{_ATOM})*")
_PROSE = re.compile(r"(?:[^\W\u0370-\u03ff\d]|[\s,;.:?'’\"“”()°-])*")  # no Greek letters: 2π is a formula
_HEDGED = re.compile(
    r"n't\b|\b(?:log|ln|sqrt|sin|cos|tan|not|no|none|never|neither|except|without|less|fewer|more|greater|larger"
    r"|smaller|higher|lower|under|below|above|over|beyond|exceeds?"
    r"|between|from|at (?:least|most)|up to|minimum|maximum of|until|before|after|than|either|or|nor|unknown"
    r"|unsure|cannot|can't)\b|不是|不到|小于|大于|少于|多于|超过|低于|高于|至少|至多|不足|以上|以下",
    re.IGNORECASE,
)
BEHIND = re.compile(
    r"(?:st|nd|rd|th)\b|\b(?:or (?:more|less|fewer|so)|below|above|at (?:least|most)|minus|plus|times|squared"
    r"|cubed|factorial)\b|以上|以下|左右各",
    re.IGNORECASE,
)
_TWICE = re.compile(r"(\S{1,20}) ?\((\S{1,20})\)")
NAMED = re.compile(
    r"\b(?:figure|fig\.?|table|step|option|choice|question|problem|example|case|row|column|line|page)\s+$",
    re.IGNORECASE,
)
_THIN = re.compile(r",\s*\\!\s*")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
           "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}  # fmt: skip
_MIN_SHOUTED = 13  # "5!" may be a factorial; nobody leaves 17! as an answer


@dataclass(frozen=True)
class Quantity:
    """A number as answers state it.

    Attributes:
        value: finite.
        unit: as written, "" where there is none.
        integer: whether the number was written as an integer.
        exact: the value as written, without rounding.
        decimal: whether it was written with decimals, which may have been rounded.
    """

    value: float
    unit: str = ""
    integer: bool = False
    exact: Fraction = field(default=Fraction(0), repr=False, compare=False)
    decimal: bool = field(default=False, repr=False, compare=False)


def read_quantity(text: str) -> Quantity | None:
    r"""The one quantity that a final answer states; None if there is none, or more than one number.

    A number behind "not", "less than" or "at least" is none.

    Example:
        >>> read_quantity("1,250 cm")
        Quantity(value=1250.0, unit='cm', integer=True)
        >>> read_quantity(r"x = -\frac{1}{2}").value, read_quantity("between 3 and 4"), read_quantity("less than 5")
        (-0.5, None, None)
        >>> [read_quantity(t).value for t in ("1.234.567", "1 000", "2,5 €", "twenty-three", r"0.\overline{3}")]
        [1234567.0, 1000.0, 2.5, 23.0, 0.3333333333333333]
    """
    return _read(text) if len(text) <= MAX_CHARACTERS else None


@lru_cache(maxsize=4096)
def _read(text: str) -> Quantity | None:
    plain, currency = opened(text)
    match, *more = [*VALUE.finditer(plain), None]
    if match is None:
        return None
    if len(more) == 2 and (twice := _TWICE.fullmatch(plain)) and _exact(twice[1]) == _exact(twice[2]):
        plain, more = twice[1], [None]  # "6 (6)"
    before, after = plain[: match.start()].strip(), plain[match.end() :].strip(" ,;.")
    if NAMED.search(plain[: match.start()]) or plain[: match.start()][-1:].isalpha():
        return None
    unit = "" if before else _unit_text(after)
    if unit and BEHIND.match(unit):
        return None
    if not unit and (
        more[0] is not None
        or not _PROSE.fullmatch(before + " " + after)
        or _HEDGED.search(before)
        or BEHIND.match(after)
    ):
        return None  # another number, a formula, or a bound
    if unit and plain[match.end() : match.end() + 1].isalpha() and parsed_unit(unit) is None and unit not in CODES:
        return None  # "2x" is a formula
    scale, _, rest = after.partition(" ")
    factor = Fraction(SCALES.get(scale.casefold(), 1))
    if factor != 1:
        unit = _unit_text(rest.strip())
    if unit in ("cent", "cents"):
        unit, factor = "$", Fraction(1, 100)
    exact = _value(match)
    if exact is None:
        return None
    exact *= factor
    decimal = "." in decimal_text(match["number"]) and match["below"] is None
    try:
        value = float(exact)
    except OverflowError:
        return None
    integer = exact.denominator == 1 and not (match["power"] or match["below"] or (decimal and factor == 1))
    return Quantity(value, currency or unit, integer, exact, decimal)


def _exact(text: str) -> Fraction | None:
    match = VALUE.fullmatch(text)
    return _value(match) if match else None


def opened(text: str, *, words: bool = True) -> tuple[str, str]:
    """Macros opened, unusual signs replaced, a leading "x =" or "about" dropped; and the currency sign, if any."""
    text = text.replace("\\$", "＄").replace("\\%", "%").replace("\\circ", "°").replace("^{°}", "°").replace("^°", "°")
    dollar = "＄" in text or bool(re.search(r"(?<![\d$])\$\s*[\d.]", text) and text.count("$") == 1)
    text = undressed(_THIN.sub(",", text.replace("{,}", ",")).replace("\\!", "")).replace("＄", " ")
    text = text.replace("$", " ") if not dollar or text.count("$") != 1 else text
    text = (
        text.replace("–", "-").replace("—", "-").replace("△", "-").replace("▲", "-").replace("**", "").replace("⁄", "/")
    )
    if "\\" in text:
        text = _MACROS.sub(lambda match: f" {match[1]} " if match[1] else " ", text)
        text = _REPEATING.sub(_repeating, text)
        text = _FRACTION.sub(lambda m: f" {'-' if m[1] or m[2] else ''}{m[3] or m[4]}/{m[5] or m[6]}", text)
        text = re.sub(r"\\(?:angle|triangle)", "∠", text)
    if not text.isascii():
        text = re.sub("[" + "".join(_VULGAR) + "]", lambda match: f" {_VULGAR[match[0]]}", text)
        text = re.sub(r"(?<=10)[⁻⁺]?[⁰¹²³⁴-⁹]+", lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    text = re.sub(r"(?<=\d)(?:\.\.\.|…)$", "", text)
    shouted = re.fullmatch(r"(\d{2,9})!", text)
    if shouted and int(shouted[1]) >= _MIN_SHOUTED:
        text = shouted[1]
    text = unit_signs(digits_for_words(text) if words else text)
    signs = [sign for sign in CURRENCY if sign in text]
    for sign in signs:
        text = text.replace(sign, " ")
    for code in CODES:
        if code in text:
            text, signs = text.replace(code, " "), [code]
    text = " ".join(text.split())
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        text = text[1:-1].strip()
    for _ in range(2):
        text = _LEAD.sub("", text).strip()
    return text, "$" if dollar else "".join(signs[:1])


def _repeating(match: re.Match[str]) -> str:
    """`0.1\\overline{6}` → `1/6`."""
    whole, fixed, period = match[1] or "0", match[2], match[3] or match[4]
    value = int(whole) + Fraction(
        int(fixed or 0) * (10 ** len(period) - 1) + int(period), 10 ** len(fixed) * (10 ** len(period) - 1)
    )
    return f"{value.numerator}/{value.denominator}"


def decimal_text(number: str) -> str:
    """A number as written, in any of its languages → digits with a point.

    Example:
        >>> [decimal_text(n) for n in ("1,234.5", "1.234,5", "1.234.567", "12,34,567", "1000,99", "1'000", "1,000")]
        ['1234.5', '1234.5', '1234567', '1234567', '1000.99', '1000', '1000']
    """
    number = re.sub(r"[\s'’]", "", number)
    comma, point = number.rfind(","), number.rfind(".")
    if comma >= 0 and point >= 0:
        return number.replace(",", "") if point > comma else number.replace(".", "").replace(",", ".")
    if number.count(".") > 1:
        return number.replace(".", "")
    if comma >= 0 and not re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d\d)*,\d{3}", number):
        return number.replace(",", ".")
    return number.replace(",", "")


def _value(match: re.Match[str]) -> Fraction | None:
    """The number that was matched; None if it is divided by zero."""
    number = Fraction(decimal_text(match["number"]))
    power = re.search(r"[+-]?\d+(?=\s*[})]?$)", match["power"])
    if power:
        number *= Fraction(10) ** int(power[0])
    if match["below"] is not None:
        below = Fraction(decimal_text(match["below"]))
        if not below:
            return None
        number /= below
    number += int(match["whole"] or 0)
    return -number if match["sign"] == "-" else number


def _unit_text(after: str) -> str:
    if after.startswith("%"):
        return "%" if not re.search(r"\d", after) else ""
    found = _UNIT.fullmatch(after)
    return found[0].strip() if found else ""
