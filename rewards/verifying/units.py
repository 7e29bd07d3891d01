"""Units as answers write them, and the factor between two of them; the library behind it is pint.

Only a short run of letters is ever given to it.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pint

CURRENCY = "$€£¥₹₩"
CODES = frozenset({"CNY", "JPY"})
_LETTER_UNITS = "mgsLlhVWAJKNCFTHΩd"  # the library knows k, c, e and others as constants


def unit_factor(unit: str, reference: str) -> float | None:
    """What a number in `unit` is multiplied with to be in `reference`; None where they cannot be compared.

    A missing unit on either side, the same text, and two texts of which neither is a unit ("apples", "digits") give 1.

    Example:
        >>> unit_factor("m", "cm"), unit_factor("kg", "cm") is None, unit_factor("", "cm"), unit_factor("apples", "")
        (100.0, True, 1.0, 1.0)
    """
    if not unit or not reference or unit == reference:
        return 1.0
    if {unit, reference} in ({"¥", "CNY"}, {"¥", "JPY"}):
        return 1.0
    ours, theirs = parsed_unit(unit), parsed_unit(reference)
    if ours is None and theirs is None:
        return 1.0 if {unit, reference}.isdisjoint({*CURRENCY, *CODES, "%"}) else None
    if ours is None or theirs is None:
        return None
    import pint

    try:
        return float((1.0 * ours).to(theirs).magnitude)
    except (pint.errors.PintTypeError, pint.errors.DimensionalityError):  # an offset or a logarithm; other dimensions
        return None


@cache
def _registry() -> pint.UnitRegistry:
    import pint

    return pint.UnitRegistry(cache_folder=None, autoconvert_offset_to_baseunit=False)


@lru_cache(maxsize=4096)
def parsed_unit(unit: str) -> pint.Unit | None:
    """The unit that a text names, in any of its spellings; None for other words."""
    import pint

    text = unit.replace("²", "^2").replace("³", "^3").replace("°C", "degC").replace("°F", "degF").replace("°", "degree")
    text = re.sub(r"\b(?:sq\.?|square) (\w+)", r"\1^2", re.sub(r"\b(?:cubic) (\w+)", r"\1^3", text))
    text = text.replace(" per ", "/").replace("·", "*").replace("^", "**").strip()
    if re.fullmatch(r"[^\W\d_]", text) and text not in _LETTER_UNITS:
        return None
    if not re.fullmatch(r"[A-Za-zµμΩÅ]+(?:\*\*-?[1-9])?(?:\s*[*/]\s*[A-Za-zµμΩÅ]+(?:\*\*-?[1-9])?)*", text):
        return None
    try:
        return _registry().parse_units(text)
    except (pint.UndefinedUnitError, ValueError, AttributeError):
        return None
