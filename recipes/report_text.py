"""Untrusted text made readable: what would control a terminal or reorder a line becomes a visible symbol."""

from __future__ import annotations

_OVERRIDES = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # they reorder what is read


def printable(text: str) -> str:
    """Control and direction-override characters as visible symbols, broken surrogates replaced; newlines, tabs stay."""
    return "".join(map(_symbol, text)).encode("utf-8", "replace").decode("utf-8")


def _symbol(character: str) -> str:
    code = ord(character)
    if code < 32 and character not in "\n\t":
        return chr(0x2400 + code)
    if code == 127:
        return "\u2421"
    return "\ufffd" if character in _OVERRIDES or 127 < code < 160 else character


def warning_text(warning: object) -> str:
    """The sentence of a warning in a `results.json`, which names what it warns of."""
    return str(warning["message"] if isinstance(warning, dict) else warning)
