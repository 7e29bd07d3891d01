"""Untrusted text (data, model outputs, server replies) made safe to print."""

from __future__ import annotations

_OVERRIDES = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # they reorder what is read


def printable(text: str) -> str:
    """The text with control and direction-override characters as visible symbols; newlines and tabs stay.

    Example:
        >>> printable("a\\x1b[1m\\nb")
        'a␛[1m\\nb'
    """
    return "".join(map(_symbol, text)).encode("utf-8", "replace").decode("utf-8")


def one_line(text: str, longest: int | None = None) -> str:
    """The text on one line of a terminal: white space folded, what cannot be printed replaced, at most `longest` long.

    Example:
        >>> one_line("two\\n  lines \\x1b[1m"), one_line("abcdef", 4)
        ('two lines ␛[1m', 'abc…')
    """
    # printable() knows the controls; whatever else has no glyph (unassigned, private, format) is replaced here
    line = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in printable(_folded(text)))
    return line if longest is None or len(line) <= longest else line[: longest - 1] + "…"


def _folded(text: str) -> str:
    return " ".join(text.split())


def _symbol(character: str) -> str:
    code = ord(character)
    if code < 32 and character not in "\n\t":
        return chr(0x2400 + code)
    if code == 127:
        return "\u2421"
    return "\ufffd" if character in _OVERRIDES or 127 < code < 160 else character
