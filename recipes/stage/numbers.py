"""How numbers and tables are printed: per cent, points, intervals; untrusted text is made readable first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mpo.multimodal.text import one_line

MOST_COLUMNS = 8


Header = list[str]


Rows = list[list[str]]


def percent(value: float, *, digits: int = 1) -> str:
    """A share in per cent.

    Example:
        >>> percent(0.5625)
        '56.2'
    """
    return f"{100 * value:.{digits}f}"


def interval(estimate: Mapping[str, Any] | None) -> str:
    """A share with its interval.

    Example:
        >>> interval({"mean": 0.5, "low": 0.45, "high": 0.55})
        '50.0 [45.0, 55.0]'
    """
    if not estimate:
        return "–"
    return f"{percent(estimate['mean'])} [{percent(estimate['low'])}, {percent(estimate['high'])}]"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign.

    Example:
        >>> points(-0.031)
        '−3.1'
    """
    return f"{100 * difference:+.1f}".replace("-", "−")


def change(difference: float) -> str:
    """A difference of scores, with its sign.

    Example:
        >>> change(-0.031), change(0.0)
        ('−0.03', '0.00')
    """
    text = f"{difference:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def real_minus(text: str) -> str:
    """A text with minus signs before its negative numbers, not hyphens.

    Example:
        >>> real_minus("best-of-8 falls by -0.2 [-0.3, 0.1], seed-1")
        'best-of-8 falls by −0.2 [−0.3, 0.1], seed-1'
    """
    return re.sub(r"(?<![\w.\-])-(?=\.?\d)", "−", text)


def signed(estimate: Mapping[str, Any]) -> str:
    """A difference of shares in percentage points, with its interval.

    Example:
        >>> signed({"mean": 0.031, "low": -0.002, "high": 0.064})
        '+3.1 [−0.2, +6.4]'
    """
    mean, low, high = (points(estimate[key]) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def short(estimate: Mapping[str, Any] | None) -> str:
    """A share with its interval in whole points, for the terminal.

    Example:
        >>> short({"mean": 0.5, "low": 0.45, "high": 0.55})
        '50.0 [45–55]'
    """
    if not estimate:
        return "–"
    low, high = (percent(estimate[end], digits=0) for end in ("low", "high"))
    return f"{percent(estimate['mean'])} [{low}–{high}]"


def columns(ks: Sequence[int]) -> list[int]:
    """The numbers of responses that a table has room for: all, or of many the powers of two; figures show all.

    Example:
        >>> columns([1, 2, 4]), columns(range(1, 33))
        ([1, 2, 4], [1, 2, 4, 8, 16, 32])
    """
    return list(ks) if len(ks) <= MOST_COLUMNS else [k for k in ks if k & (k - 1) == 0]


def rich_table(title: str, header: Sequence[str], rows: Rows) -> Table:
    """A table for the terminal; every cell is text, never markup or control codes."""
    table = Table(title=Text(one_line(title)), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index and name not in ("selector", "verdict") else "left")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table
