r"""Text → a number with its unit, as answers write them: "1,000", "−3", "1.2 \times 10^{3}", "\frac{1}{2}", "12 cm²".

Only the unit is read by a library (pint), and only from a short run of letters: no text is ever evaluated.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pint

MAX_CHARACTERS = 200  # of an answer that is read as a quantity

_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d{1,18})(?:\.\d{1,30})?|\.\d{1,30}"
_EXPONENT = r"\{\s*[+-]?\d{1,3}\s*\}|[+-]?\d{1,3}"
_POWER = rf"(?:[eE][+-]?\d{{1,3}}|\s*(?:×|x|\*|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*(?:{_EXPONENT}))?"
_VALUE = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<whole>\d{{1,9}})\s+(?=\d+\s*/))?(?P<number>{_NUMBER})(?P<power>{_POWER})"
    rf"(?:\s*/\s*(?P<below>{_NUMBER}))?"
)
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_MACROS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}|\\(?:left|right|[,;!: ])|[$~]")
_FRACTION = re.compile(r"\s*\\[dt]?frac\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))")
_LEAD = re.compile(
    r"^(?:[A-Za-z]\w{0,2}\s*(?:=|≈|\\approx|:)|(?:about|approximately|approx\.?|roughly|around|is|≈|~|=|\\approx))\s*",
    re.IGNORECASE,
)
_CURRENCY = "$€£¥"
_ATOM = r"[A-Za-zµμΩ°Å]++(?:\^?\{?-?[1-9]\}?(?!\d)|[²³])?"
_UNIT = re.compile(rf"{_ATOM}(?:\s*[/*·]?\s*{_ATOM})*")
_PROSE = re.compile(r"(?:[^\W\u0370-\u03ff]|[\s,;.:?'’()°-])*")  # no Greek letters: 2π is a formula


@dataclass(frozen=True)
class Quantity:
    """A number, its unit as written ("" where there is none), and whether the number was written as an integer."""

    value: float
    unit: str = ""
    integer: bool = False


def read_quantity(text: str) -> Quantity | None:
    r"""The one quantity that a final answer states; None if there is none, or more than one number.

    Example:
        >>> read_quantity("1,250 cm")
        Quantity(value=1250.0, unit='cm', integer=True)
        >>> read_quantity(r"x = -\frac{1}{2}").value, read_quantity("between 3 and 4")
        (-0.5, None)
    """
    if len(text) > MAX_CHARACTERS:
        return None
    plain, currency = _plain(text)
    if plain.casefold() in _NUMBER_WORDS:
        return Quantity(float(_NUMBER_WORDS.index(plain.casefold())), "", True)
    match, *more = [*_VALUE.finditer(plain), None]
    if match is None:
        return None
    before, after = plain[: match.start()].strip(), plain[match.end() :].strip(" ,;.")
    unit = "" if before else _unit_text(after)
    if not unit and (more[0] is not None or not _PROSE.fullmatch(before + " " + after)):
        return None  # another number, or a formula
    if unit and plain[match.end()].isalpha() and _parsed(unit) is None:
        return None  # "2x" is a formula
    scale, _, rest = after.partition(" ")
    if scale.casefold() in _SCALES:
        unit = _unit_text(rest.strip())
    value = _value(match) * _SCALES.get(scale.casefold(), 1.0)
    integer = not match["power"] and match["below"] is None and "." not in match["number"]
    return Quantity(value, currency or unit, integer) if math.isfinite(value) else None


def unit_factor(unit: str, reference: str) -> float | None:
    """What a number in `unit` is multiplied with to be in `reference`; None where they cannot be compared.

    A missing unit on either side, the same text, and two texts of which neither is a unit ("apples", "digits") give 1.

    Example:
        >>> unit_factor("m", "cm"), unit_factor("kg", "cm") is None, unit_factor("", "cm"), unit_factor("apples", "")
        (100.0, True, 1.0, 1.0)
    """
    if not unit or not reference or unit == reference:
        return 1.0
    ours, theirs = _parsed(unit), _parsed(reference)
    if ours is None and theirs is None:
        return 1.0 if {unit, reference}.isdisjoint({*_CURRENCY, "%"}) else None
    if ours is None or theirs is None:
        return None
    import pint

    try:
        return float((1.0 * ours).to(theirs).magnitude)
    except pint.errors.PintTypeError:  # other dimensions, or a scale with an offset or a logarithm
        return None


def _plain(text: str) -> tuple[str, str]:
    """Macros opened, unusual signs replaced, a leading "x =" or "about" dropped; and the currency sign, if any."""
    text = text.replace("\\$", "＄").replace("\\%", "%").replace("\\circ", "°").replace("^{°}", "°").replace("^°", "°")
    dollar = "＄" in text or bool(re.match(r"\s*\$\s*[\d.]", text) and text.count("$") == 1)
    text = _MACROS.sub(lambda match: match[1] or " ", text).replace("＄", " ")
    for wrong, right in (("−", "-"), ("–", "-"), ("\u202f", ""), ("\u2009", ""), ("**", "")):
        text = text.replace(wrong, right)
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", text)
    signs = [sign for sign in _CURRENCY if sign in text]
    for sign in signs:
        text = text.replace(sign, " ")
    text = " ".join(text.split()).strip("()").strip()
    return _LEAD.sub("", text).strip(), "$" if dollar else "".join(signs)


def _value(match: re.Match[str]) -> float:
    """The number that was matched; not finite if it is out of range or divided by zero."""
    number = float(match["number"].replace(",", ""))
    power = re.search(r"[+-]?\d+(?=\s*\}?$)", match["power"])
    if power:
        number *= float(f"1e{power[0]}")
    if match["below"] is not None:
        below = float(match["below"].replace(",", ""))
        number = number / below if below else math.nan
    number += float(match["whole"] or 0)
    return -number if match["sign"] == "-" else number


def _unit_text(after: str) -> str:
    if after.startswith("%") or after.casefold().startswith("percent"):
        return "%"
    found = _UNIT.fullmatch(after)
    return found[0].strip() if found else ""


@cache
def _registry() -> pint.UnitRegistry:
    import pint

    return pint.UnitRegistry(cache_folder=None, autoconvert_offset_to_baseunit=False)


@lru_cache(maxsize=4096)
def _parsed(unit: str) -> pint.Unit | None:
    """The unit that a text names, in any of its spellings; None for other words."""
    import pint

    text = unit.replace("²", "^2").replace("³", "^3").replace("°C", "degC").replace("°F", "degF").replace("°", "degree")
    text = re.sub(r"\b(?:sq\.?|square) (\w+)", r"\1^2", re.sub(r"\b(?:cubic) (\w+)", r"\1^3", text))
    text = text.replace(" per ", "/").replace("·", "*").replace("^", "**").strip()
    if not re.fullmatch(r"[A-Za-zµμΩÅ]+(?:\*\*-?[1-9])?(?:\s*[*/]\s*[A-Za-zµμΩÅ]+(?:\*\*-?[1-9])?)*", text):
        return None
    try:
        return _registry().parse_units(text)
    except (pint.UndefinedUnitError, ValueError, AttributeError):
        return None
