r"""Where the thought of a thinking model ends and its solution begins.

A thinking model writes `<think>…</think>` and then its solution. Where its chat template opens the thought, the text
holds the closing tag alone. A response that was cut inside its thought has no solution.
"""

from __future__ import annotations

import re

OPENING, CLOSING = "<think>", "</think>"  # as most templates write them; others are read too
CLOSED = re.compile(r"</(?:think|thinking|thought|reasoning)>|◁/think▷|<\|/think\|>|</seed:think>", re.IGNORECASE)
OPENED = re.compile(r"<(?:think|thinking|thought|reasoning)>|◁think▷|<\|think\|>|<seed:think>", re.IGNORECASE)


def solution_start(text: str) -> int:
    r"""Where the solution begins: behind the last closed thought, at 0 without one, at the end inside an open one.

    Example:
        >>> [solution_start(text) for text in ("<think>3?</think>\n\n4", "3?</think>4", "4", "<think>3")]
        [19, 10, 0, 8]
    """
    end = max((match.end() for match in CLOSED.finditer(text)), default=0)
    if OPENED.search(text, end):
        return len(text)
    return len(text) - len(text[end:].lstrip()) if end else 0


def solution_of(text: str) -> str:
    """The response without its thought; empty if it was cut inside it.

    Example:
        >>> solution_of("<think>3?</think> 4"), solution_of("<think>3")
        ('4', '')
    """
    return text[solution_start(text) :]


def with_thought(thought: str, solution: str, *, cut: bool = False) -> str:
    r"""A response whose thought came apart from it (a server's reasoning field), as the model's template writes it.

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
