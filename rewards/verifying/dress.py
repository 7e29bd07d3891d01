r"""How an answer is dressed: `**\(\text{B}\)**.` → `B`, one named rule a dress.

`DRESSES` is the table. `undress` tries the rules from the top, starts again after each that took something off, and
stops when none does. References go the same way, so that only what is left is compared.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

MAX_CHARACTERS = 10_000  # a longer answer keeps its dress: it is no answer
_ROUNDS = 16

_TOKEN = re.compile(r"(?:<\|[A-Za-z_]{2,24}\|>|</?s>|<eos>|<end_of_turn>|\[/INST\]|<br\s*/?>)$", re.IGNORECASE)
_HTML = re.compile(r"<(b|i|u|em|strong|p|span|div|code|mark|answer|final_answer)>(.*)</\1>", re.IGNORECASE | re.DOTALL)
_FENCE = re.compile(r"```[A-Za-z]{0,12}\n(.*)\n?```", re.DOTALL)
_MACRO = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|emph|mathrm|mathbf|mathsf|mathit|mathtt|mbox|operatorname|boldsymbol"
    r"|bm|boxed|fbox|framebox|underline|bold)\*?\s*(?=\{)"
)
_SWITCH = re.compile(r"\\(?:displaystyle|textstyle|bf|it|rm)(?![A-Za-z])\s*")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=[^\s{])")
_INLINE = re.compile(r"\\[()\[\]]")
_STOP = re.compile(r"(?:\\\\|\\[,;!]|[。．，；;、,:]|(?<!\.)\.)$")
_LEAD = re.compile(r"^(?:[:：=]|➡|→|✅|☑|✔|•|👉|[-–—]{2,}|[-—] )\s*|^#{1,6} +")
_PLAIN = re.compile(r"[A-Za-z0-9(+-](?:[A-Za-z0-9(),.:;/%+=-]| (?! ))*[A-Za-z0-9)%]|[A-Za-z0-9]")  # nothing to take off
_SPACES = re.compile(r"\\(?:quad|qquad| |~)|~(?=\S)|&nbsp;")

_SIGNS = {
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},  # full-width ASCII
    **dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"), None),
    **dict.fromkeys(map(ord, "−﹣‐‑"), "-"),
    **dict.fromkeys(map(ord, "’‘‛"), "'"),
    0x3000: " ",
    0xFE0F: None,
}
_PAIRS = (
    ("“", "”"),
    ("„", "“"),
    ("„", "”"),
    ("«", "»"),
    ("»", "«"),
    ("「", "」"),
    ("『", "』"),
    ("《", "》"),
    ("【", "】"),
)


def plain_signs(text: str) -> str:
    """Full-width signs, unusual minus signs and invisible characters as ASCII; letters composed (NFC).

    Example:
        >>> plain_signs("（Ｂ）"), plain_signs("−３")
        ('(B)', '-3')
    """
    return unicodedata.normalize("NFC", text).translate(_SIGNS)


def balanced_end(text: str, start: int, opener: str = "{", closer: str = "}") -> int:
    """Place after the bracket that closes the one at `start`; -1 if none does. Escaped brackets do not count.

    Example:
        >>> balanced_end("{a{b}}c", 0), balanced_end("{a", 0)
        (6, -1)
    """
    depth, place = 0, start
    while place < len(text):
        sign = text[place]
        if sign == "\\":
            place += 1
        elif sign == opener:
            depth += 1
        elif sign == closer:
            depth -= 1
            if depth == 0:
                return place + 1
        place += 1
    return -1


def _within(text: str, opener: str, closer: str) -> str | None:
    """The text inside a pair that encloses the whole text and does not close inside; None otherwise."""
    if len(text) <= len(opener) + len(closer) or not (text.startswith(opener) and text.endswith(closer)):
        return None
    inner = text[len(opener) : len(text) - len(closer)]
    if not inner.strip() or (closer in inner and not _nested(inner, opener, closer)):
        return None
    return inner


def _nested(inner: str, opener: str, closer: str) -> bool:
    """Whether pairs inside close inside."""
    if opener == closer or inner.count(opener) != inner.count(closer):
        return False
    depth = 0
    for sign in inner:
        depth += (sign == opener) - (sign == closer)
        if depth < 0:
            return False
    return True


def _tokens(text: str) -> str:
    return _TOKEN.sub("", text)


def _html(text: str) -> str:
    match = _HTML.fullmatch(text)
    return match[2] if match else text


def _markdown(text: str) -> str:
    fence = _FENCE.fullmatch(text)
    if fence:
        return fence[1]
    for mark in ("***", "**", "__", "*", "_", "``", "`", "~~"):
        inner = _within(text, mark, mark)
        if inner is not None and inner == inner.strip(mark[0]):
            return inner
    if re.fullmatch(r"\*(?!\*).+(?<!\*)\*", text) and "*" not in text[1:-1].replace("**", ""):
        return text[1:-1]  # bold inside italic
    for mark in ("**", "__"):  # one half stayed outside
        if text.count(mark) == 1 and (text.startswith(mark) or text.endswith(mark)):
            return text.removeprefix(mark).removesuffix(mark)
    bold = text.split("**")
    if len(bold) == 3 and len(bold[0]) <= 1 and not re.match(r"\s*\d", bold[2]):  # **7** cm
        return "".join(bold)
    return text


def _quotes(text: str) -> str:
    for opener, closer in (('"', '"'), ("'", "'"), ("''", "''"), *_PAIRS):
        inner = _within(text, opener, closer)
        if inner is not None:
            return inner
    return text


def _delimiters(text: str) -> str:
    r"""`$x$`, `$$x$$`, `\(x\)`, `\[x\]` around the answer or a part of it; a dollar sign before an amount stays."""
    if "\\(" in text or "\\[" in text:
        return _INLINE.sub(lambda match: "" if text[match.start() - 1 : match.start()] != "\\" else match[0], text)
    inner = _within(text, "$$", "$$")
    if inner is not None:
        return inner
    places = [m.start() for m in re.finditer(r"(?<!\\)\$", text)]
    if not places or len(places) % 2:
        return text
    if any(re.match(r"\$\s?\d", text[place:]) and place + 1 < len(text) for place in places[1::2]):
        return text  # "$5 or $6"
    return re.sub(r"(?<!\\)\$", "", text)


def _macro(text: str) -> str:
    r"""`\text{B}`, `\boxed{7}`, `{\bf B}`: a macro or braces around the whole answer."""
    text = _BARE_BOX.sub("", _SWITCH.sub("", text)) if "\\" in text else text
    match = _MACRO.match(text)
    start = match.end() if match else 0
    if text[start : start + 1] == "{" and balanced_end(text, start) == len(text):
        return text[start + 1 : -1]
    return text


def _brackets(text: str) -> str:
    """`[17]` or `<B>`; a list or an interval keeps its brackets."""
    for opener, closer in (("[", "]"), ("<", ">")):
        inner = _within(text, opener, closer)
        if inner is not None and re.fullmatch(r"[^,;|<>\[\]/]{1,40}", inner):
            return inner
    return text


def _stop(text: str) -> str:
    return text if text.endswith(("...", "…", r"\right.")) else _STOP.sub("", text)


def _lead(text: str) -> str:
    return _LEAD.sub("", text)


def _blanks(text: str) -> str:
    return " ".join(_SPACES.sub(" ", text).split()) if "\n" not in text or len(text) < 200 else text.strip()


DRESSES: dict[str, Callable[[str], str]] = {
    "blanks": _blanks,  # at the ends, several in a row, \quad, non-breaking ones
    "tokens": _tokens,  # </s>, <|im_end|>
    "html": _html,  # <b>7</b>
    "markdown": _markdown,  # **7**, _7_, `7`, ```7```
    "delimiters": _delimiters,  # \(7\), \[7\], $7$
    "macro": _macro,  # \text{B}, \boxed{7}, {7}
    "quotes": _quotes,  # "7", “7”, «7», 「7」
    "brackets": _brackets,  # [7]
    "stop": _stop,  # 7. 7。 7\\
    "lead": _lead,  # : 7, ✅ 7
}


@lru_cache(maxsize=8192)
def undress(text: str) -> tuple[str, tuple[str, ...]]:
    r"""The answer without its dress, and the names of the rules that took it off, outermost first.

    Example:
        >>> undress(r"**\(\text{B}\).**")
        ('B', ('markdown', 'delimiters', 'stop', 'macro'))
        >>> undress("$5 or $6")[0], undress("[0, 1)")[0]
        ('$5 or $6', '[0, 1)')
    """
    text = (text if text.isascii() else plain_signs(text)).strip()
    if len(text) > MAX_CHARACTERS or _PLAIN.fullmatch(text):
        return text, ()
    taken: list[str] = []
    for _ in range(_ROUNDS):
        for name, rule in DRESSES.items():
            bare = rule(text).strip()
            if bare != text and bare:
                if name != "blanks":
                    taken.append(name)
                text = bare
                break
        else:
            break
    return text, tuple(taken)


def undressed(text: str) -> str:
    """The same without the names."""
    return undress(text)[0]
