r"""Where the thought of a thinking model ends and its solution begins.

A thinking model writes `<think>…</think>` and then its solution. Where its chat template opens the thought, the text
holds the closing tag alone. A response that was cut inside its thought has no solution.
"""

from __future__ import annotations

from mpo.multimodal.errors import ConfigError
from rewards.verifying.phrases import CLOSED, OPENED

PARTS = ("solution", "thought", "both")
OPENING, CLOSING = "<think>", "</think>"  # as most templates write them; others are read too


def solution_start(text: str) -> int:
    r"""Where the solution begins: behind the last closed thought, at 0 without one, at the end inside an open one.

    Example:
        >>> [solution_start(text) for text in ("<think>3?</think>\n\n4", "3?</think>4", "4", "<think>3")]
        [19, 10, 0, 8]
    """
    return _cuts(text)[2]


def solution_of(text: str) -> str:
    """The response without its thought; empty if it was cut inside it.

    Example:
        >>> solution_of("<think>3?</think> 4"), solution_of("<think>3")
        ('4', '')
    """
    return text[solution_start(text) :]


def scored_spans(text: str, part: str = "solution") -> list[tuple[int, int]]:
    """Where the part of a response stands whose steps are scored, without the tags around it; nothing blank.

    Args:
        text: the response.
        part: "solution", "thought" or "both".

    Returns:
        (start, end) of the thought, of the solution, or of both in that order; empty if there is no such part.

    Raises:
        ConfigError: an unknown part.

    Example:
        >>> text = "<think>3?</think>4"
        >>> [[text[start:end] for start, end in scored_spans(text, part)] for part in PARTS]
        [['4'], ['3?'], ['3?', '4']]
        >>> scored_spans("4", "thought"), scored_spans("<think>3")
        ([], [])
    """
    if part not in PARTS:
        raise ConfigError(f"unknown part {part!r} of a response: expected one of {', '.join(PARTS)}")
    opened, closed, solution = _cuts(text)
    spans = {"thought": (opened, closed), "solution": (solution, len(text))}
    asked = ("thought", "solution") if part == "both" else (part,)
    return [spans[name] for name in asked if text[slice(*spans[name])].strip()]


def with_thought(thought: str, solution: str, *, cut: bool = False) -> str:
    r"""A response whose thought came apart from it (a server's reasoning field), as thinking models write it.

    Args:
        thought: the reasoning field.
        solution: what followed it.
        cut: the response was cut at its token limit; without a solution the thought is then still open.

    Example:
        >>> with_thought("3?\n", "\n\n4"), with_thought("3", "", cut=True)
        ('<think>\n3?\n</think>\n\n4', '<think>\n3')
    """
    if cut and not solution.strip():
        return f"{OPENING}\n{thought.lstrip()}"
    return f"{OPENING}\n{thought.strip()}\n{CLOSING}\n\n{solution.lstrip()}"


def _cuts(text: str) -> tuple[int, int, int]:
    """Where the thought's own text begins and ends, and where the solution begins; 0, 0, 0 without a thought."""
    opening = OPENED.match(text, len(text) - len(text.lstrip()))
    opened = opening.end() if opening else 0
    closings = list(CLOSED.finditer(text))
    closing = closings[-1] if closings else None
    after = closing.end() if closing else 0
    if OPENED.search(text, after):
        return opened, len(text), len(text)
    if closing is None:
        return 0, 0, 0
    return opened, max(opened, closing.start()), len(text) - len(text[after:].lstrip())
