r"""Response → the final answer that it states, as an `Answer`; or why none can be read, as a `Missing`.

Two steps: *where* the answer stands (`places.py`) and *how it is dressed* (`dress.py`). Nothing here evaluates anything;
every rule is linear in the text's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What an answer looks like without its dress."""

    LETTER = "letter"  # one option's letter, with or without its text
    NUMBER = "number"  # a number, with or without its unit
    MATH = "math"  # any other formula
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
        where: name of the rule of `places.py` that found it.
        dress: names of the rules of `dress.py` that were stripped, outermost first.
    """

    value: str
    kind: Kind
    where: str
    dress: tuple[str, ...] = ()


def find_answer(response: str) -> Answer | Missing:
    """The final answer of a response, or why none can be read."""
    from rewards.answers import short_answer

    value = short_answer(response)
    return Answer(value, Kind.TEXT, "old") if value else Missing.NOT_STATED


def read_answer(response: str) -> Answer | None:
    """The final answer of a response; None if none can be read (`find_answer` says why)."""
    found = find_answer(response)
    return found if isinstance(found, Answer) else None
