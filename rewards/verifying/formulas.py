r"""Final answers as formulas: what can be decided without a parser, and the LaTeX that math-verify likes to be given.

math-verify reads a part of a text rather than nothing ("4\sqrt(2)" as 4), knows neither "pi/2" nor "√3" nor "9 hens",
and calls a ratio a quotient. So plain numbers, ratios, clock times and words are decided here, and the rest is written
as plain LaTeX first.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from rewards.types import Verdict
from rewards.verifying.dress import balanced_end, undressed
from rewards.verifying.number_words import digits_for_words
from rewards.verifying.options import named_options, plain_text
from rewards.verifying.quantities import Quantity, read_quantity
from rewards.verifying.units import CURRENCY, unit_factor

_WORDS = re.compile(r"(?=.*[^\W\d_]{3})[^\W\d_]+(?:[ ,'’&/-]+[^\W\d_]+)*[.!?]?")
_CHOICE = re.compile(r"[A-H]")
_TEXT_MACRO = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_OPEN_ENDED = re.compile(r"\\[lcd]?dots|…|\.\.\.|\\(?:forall|exists)|∀|∃")
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::[0-5]\d)?\s*([ap])?\.?\s*(?:m\.?)?(?:\s*o'clock)?", re.IGNORECASE)
_RATIO = re.compile(r"\s*(?:x\s*:\s*y(?:\s*:\s*z)?\s*=\s*)?(-?[\d./]+(?:\s*(?::|\\colon|∶)\s*-?[\d./]+){1,5})\s*")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d{1,2}|-?0,\d+")
_ASSIGNED = re.compile(r"\s*(?:\\?[A-Za-z](?:_\{?\w\}?)?|\([A-Za-z](?:\s*,\s*[A-Za-z]){1,3}\))\s*(?:=|\\in\b|∈)\s*")
_VARIABLE = re.compile(r"\s*([A-Za-z])\s*=")
_TOLERANCE = Fraction(101, 10**8)  # math-verify rounds to six places; so does this, but relatively below one


def canon(text: str) -> str:
    """A text for comparison character by character: no dress, blanks or sizes of brackets."""
    text = re.sub(r"\\(?:left|right|displaystyle|,|!|;|:| )(?![A-Za-z])", "", undressed(text))
    return re.sub(r"\s+", "", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))


@lru_cache(maxsize=8192)
def _opened(text: str) -> str:
    return undressed(_TEXT_MACRO.sub(r"\1", undressed(text)))


def decide(gold: str, answer: str) -> Verdict | None:
    r"""What can be said of two answers without a parser; None if it needs one.

    Example:
        >>> [str(decide(*pair)) for pair in (("2:3", "4:6"), ("3:30", "3:30 PM"), ("Tokyo", "Kyoto"))]
        ['correct', 'correct', 'wrong']
        >>> decide("1000", "1,000 cm"), decide(r"\sqrt{2}", r"\frac{2}{\sqrt{2}}")
        (<Verdict.CORRECT: 'correct'>, None)
    """
    if canon(answer) == canon(gold):
        return Verdict.CORRECT
    words, said = _opened(gold), _opened(answer)
    if ({words[:1], words[-1:]} == {"(", ")"} and said[:2] == r"\{") or (said[:1] == "(" and words[:2] == r"\{"):
        return Verdict.WRONG  # a point is no set
    if _WORDS.fullmatch(words) and read_quantity(words) is None:
        return _verdict(plain_text(said) == plain_text(words) or plain_text(said.split(".")[0]) == plain_text(words))
    if _CHOICE.fullmatch(words):
        named = named_options(answer, ())
        if named is not None:
            return _verdict(named == {words}) if len(named) == 1 else Verdict.UNPARSABLE
    if _OPEN_ENDED.search(gold) or _OPEN_ENDED.search(answer):
        return None if _OPEN_ENDED.search(answer.rstrip(".…")) is None and "…" in answer + gold else Verdict.UNPARSABLE
    parts = _by_parts(words, said)
    return parts if parts is not None else _by_quantity(gold, answer)


def _verdict(right: bool) -> Verdict:
    return Verdict.CORRECT if right else Verdict.WRONG


def _by_parts(gold: str, answer: str) -> Verdict | None:
    """Clock times and ratios."""
    times = _TIME.fullmatch(gold), _TIME.fullmatch(answer)
    ratios = _ratio(gold), _ratio(answer)
    if times[0] and times[1]:
        same = int(times[0][1]) == int(times[1][1]) and times[0][2] == times[1][2]
        halves = {match[3].lower() for match in times if match and match[3]}
        if same or not (ratios[0] and ratios[0] == ratios[1]):
            return _verdict(same and len(halves) < 2)
        return Verdict.UNPARSABLE  # 10:20 and 20:40 are one ratio and two times
    if ratios[0] is None and ratios[1] is None:
        return None
    if ratios[0] and ratios[1]:
        return _verdict(ratios[0] == ratios[1])
    if times[0] or times[1]:
        return Verdict.UNPARSABLE
    ratio, other = (ratios[0], answer) if ratios[0] else (ratios[1], gold)
    quantity = read_quantity(other)
    if ratio is None or quantity is None or len(ratio) != 2:
        return None if quantity is None and ratios[0] is None else Verdict.UNPARSABLE
    return _verdict(quantity.exact == ratio[0])


@lru_cache(maxsize=4096)
def _ratio(text: str) -> tuple[Fraction, ...] | None:
    """`4:6` → (2, 3), in lowest whole terms."""
    match = _RATIO.fullmatch(text)
    if match is None or len(text) > 80:
        return None
    try:
        parts = [Fraction(part.strip()) for part in re.split(r":|\\colon|∶", match[1])]
    except (ValueError, ZeroDivisionError):
        return None
    return tuple(part / parts[-1] for part in parts) if parts[-1] else None


def _by_quantity(gold: str, answer: str) -> Verdict | None:
    theirs, ours = read_quantity(gold), read_quantity(answer)
    if theirs is None or ours is None:
        return None
    variables = _VARIABLE.match(gold), _VARIABLE.match(answer)
    if variables[0] and variables[1] and variables[0][1] != variables[1][1]:
        return None
    if _DECIMAL_COMMA.search(gold) and _DECIMAL_COMMA.search(answer):
        return None  # 1,2 may be a list
    return _verdict(same_number(ours, theirs))


def same_number(a: Quantity, b: Quantity) -> bool:
    """Equal to six places, relatively below one; exactly, where both are whole numbers or fractions. Symmetric."""
    values = [(a.exact, b.exact)]
    if (a.unit == "%") != (b.unit == "%"):
        values.append((a.exact / 100, b.exact) if a.unit == "%" else (a.exact, b.exact / 100))
    elif a.unit != b.unit:
        factor = unit_factor(a.unit, b.unit)
        if factor is not None:
            values = [(a.exact * Fraction(factor).limit_denominator(10**12), b.exact)]
        elif {a.unit, b.unit} <= {*CURRENCY, "%"}:
            return False
    loose = a.decimal or b.decimal
    return any(x == y or (loose and _close(x, y)) for x, y in values)


def _close(x: Fraction, y: Fraction) -> bool:
    size = max(abs(x), abs(y))
    return abs(x - y) <= _TOLERANCE * (size if size < 1 else 1)


_UNICODE = {
    "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "≤": r"\leq ", "⩽": r"\leq ", "≥": r"\geq ",
    "⩾": r"\geq ", "≠": r"\neq ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "π": r"\pi ",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "φ": r"\phi ", "λ": r"\lambda ",
    "μ": r"\mu ", "σ": r"\sigma ", "ω": r"\omega ", "Δ": r"\Delta ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "∅": r"\emptyset ", "°": r"^\circ", "′": "'", "∠": r"\angle ", "–": "-", "—": "-", "½": r"\frac{1}{2}",
    "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}",
    "⅛": r"\frac{1}{8}", "⁄": "/", "\u202f": "", "\u2009": "",
}  # fmt: skip
_UNICODE_SIGNS = re.compile("|".join(map(re.escape, _UNICODE)))
_SUPERSCRIPT = re.compile(r"[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ]+")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_ROOT_SIGN = re.compile(r"√\s*(?:\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")
_FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "sinh",
        "cosh",
        "tanh",
        "arcsin",
        "arccos",
        "arctan",
        "ln",
        "log",
        "exp",
        "min",
        "max",
        "gcd",
        "lcm",
        "det",
    ]
)
_GREEK = frozenset(["pi", "theta", "alpha", "beta", "gamma", "phi", "lambda", "mu", "sigma", "omega"])
_E_NOTATION = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\w.])")
_LETTER_MACRO = re.compile(r"\\(?:mathrm|text|operatorname|rm|mathit)\s*\{\s*([ei])\s*\}")
_PERCENT = re.compile(
    r"\s*(?:\\?%|\\?text\{\s*percent\s*\}|\bper ?cent\b|\bpct\b|\bpercentage points?\b)", re.IGNORECASE
)
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}")
_THIN = re.compile(r",\s*\\!\s*")
_UNIT_RUN = re.compile(
    r"(?:(?<=[\d})])|(?<=\\pi)|(?<=\\pi ))\s*(?:\b(?!and\b|or\b|in\b|pi\b|sqrt\b|sin\b|cos\b|tan\b|log\b|ln\b"
    r"|mod\b|if\b)[A-Za-z]{2,}\b\.?(?:\s*(?:/|per|of|\^)\s*\{?\w+\}?|\s+(?!and\b|or\b|in\b|pi\b"
    r"|if\b)[A-Za-z]{2,}\b)*)"
)
_LONE_UNIT = re.compile(
    r"(?<=\d) +(?:[mgsLlVWNJAKC]|cm|mm|km|kg|h|min|m/s)(?:\^\{?[23]\}?|²|³)?(?=\s*$|\s*(?:,|and\b|or\b))"
)
_TEXT_UNIT = re.compile(
    r"(?<=[\d})])\s*\\(?:text|mathrm|textrm|mbox|rm)\s*\{\s*(?!and\b|or\b|if\b|i\s*\}"
    r"|e\s*\})[^{}]{1,40}\}(?:\s*\^\s*\{?[23]\}?)?"
)
_JOINED = re.compile(r",?\s*\\(?:text|textrm|mbox|mathrm)\s*\{\s*,?\s*(?:and|or)\s*\}")
_MATRIX = re.compile(r"\[\s*\[([^\[\]]*)\](?:\s*,\s*\[[^\[\]]*\])+\s*\]")


@lru_cache(maxsize=4096)
def latex_of(text: str) -> str | None:
    r"""A final answer as LaTeX; None if words are left that no formula has.

    Example:
        >>> latex_of("4√2 cm"), latex_of("pi/2"), latex_of("9 chickens and 10 rabbits"), latex_of("I think so")
        ('4\\sqrt{2}', '\\pi /2', '9 , 10', None)
    """
    text = undressed(_THIN.sub("", text.replace("{,}", "")).replace("\\!", "")).replace("\\$", "").replace("$", "")
    text = re.sub(r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])\s*\.?", "", text)
    if not text.isascii():
        text = _ROOT_SIGN.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text).replace("√", r"\sqrt")
        text = _UNICODE_SIGNS.sub(lambda m: _UNICODE[m[0]], text)
        text = _SUPERSCRIPT.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _E_NOTATION.sub(r"\1 \\times 10^{\2}", text)
    text = _LETTER_MACRO.sub(r"\1", text).replace("\\imath", "i").replace("**", "^")
    text = re.sub(r"\\(?:ne|not\s*=)(?![A-Za-z])", r"\\neq", text)
    text = re.sub(r"(?<!\\)(?:<=|=<)", r"\\leq ", text)
    text = re.sub(r"(?<!\\)>=", r"\\geq ", text)
    text = re.sub(r"(?<!\\)(?:!=|<>)", r"\\neq ", text)
    text = re.sub(r"\+\s*-(?=\s*[\d.\\])", "-", text)
    text = re.sub(r"(?<=[\w)}])\s*\*\s*(?=[\w(\\])", r" \\cdot ", text)
    text = re.sub(r"\^\(([^()]*)\)", r"^{\1}", text)
    text = re.sub(r"(\d+)\.(\d*)\\overline\s*\{(\d+)\}", _repeating, text)
    text = _JOINED.sub(", ", _PERCENT.sub(r"\\%", text))
    text = _MATRIX.sub(_matrix, text)
    if "\\" not in text:
        text = digits_for_words(text)
    text = _TEXT_UNIT.sub(" ", text)
    text = _LONE_UNIT.sub("", _UNIT_RUN.sub(" ", text)) if "\\text" not in text else text
    text = _WORD.sub(_word, text)
    text = _bracketed_roots(text)
    text = re.sub(r"\s*,\s*,\s*", ", ", re.sub(r"\s+", " ", text)).strip().rstrip("\\").strip(" .,;")
    left = _WORD.search(re.sub(r"\\[A-Za-z]+\s*(?:\{[A-Za-z ]*\})?", " ", text))
    return (
        None
        if not text
        or "\n" in text
        or (left and len(left[0]) > 3)
        or (left and " " in text and "\\" not in text and len(_WORD.findall(text)) > 1)
        else text
    )


def _word(match: re.Match[str]) -> str:
    word = match[0].lower()
    if word in _FUNCTIONS or word in _GREEK:
        return f"\\{word} "
    if word in ("and", "or"):
        return ","
    if word == "sqrt":
        return r"\sqrt"
    return r"\infty " if word in ("infinity", "inf", "oo") else match[0]


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, period = match.groups()
    nines = 10 ** len(period) - 1
    value = int(whole) + Fraction(int(fixed or 0) * nines + int(period), 10 ** len(fixed) * nines)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _matrix(match: re.Match[str]) -> str:
    rows = re.findall(r"\[([^\[\]]*)\]", match[0][1:-1])
    return r"\begin{pmatrix}" + r"\\".join(" & ".join(row.split(",")) for row in rows) + r"\end{pmatrix}"


def _bracketed_roots(text: str) -> str:
    r"""`\sqrt(x+1)` → `\sqrt{x+1}`, `exp(2)` → `e^{2}`; math-verify would drop them."""
    for name, written in ((r"\sqrt", r"\sqrt{"), (r"\exp", "e^{")):
        for _ in range(8):
            match = re.search(re.escape(name) + r"\s*(?=\()", text)
            end = balanced_end(text, match.end(), "(", ")") if match else -1
            if match is None or end < 0:
                break
            text = f"{text[: match.start()]}{written}{text[match.end() + 1 : end - 1]}}}{text[end:]}"
    return text


def aligned(gold: str, answer: str) -> tuple[str, str]:
    r"""Both as LaTeX, with the names of variables dropped where only one side has them.

    Example:
        >>> aligned("(3, -1)", "x = 3, y = -1"), aligned(r"\pm 3", "x = 3 , x = -3"), aligned("x=1", "x=2")
        (('(3, -1)', '(3, -1)'), ('\\pm 3', '\\{3, -3\\}'), ('x=1', 'x=2'))
    """
    return _like(gold, answer), _like(answer, gold)


def _like(text: str, other: str) -> str:
    if re.match(r"\s*\([A-Za-z](?:\s*,\s*[A-Za-z]){1,3}\)\s*=", text):
        return text[text.index("=") + 1 :].strip()
    if re.match(r"\s*[A-Za-z]\s*\\in\b", text):
        return text[text.index("\\in") + 3 :].strip()
    parts = [
        part.strip() for part in re.split(r"\s*(?:,|;|\\text\s*\{\s*(?:,?\s*(?:and|or)\s*)\})\s*", text) if part.strip()
    ]
    names = [match[1] if (match := _VARIABLE.match(part)) else None for part in parts]
    if len(parts) < 2 or None in names or any(part.count("=") != 1 for part in parts):
        return text
    values = [part.partition("=")[2].strip() for part in parts]
    if len(set(names)) == 1:
        return r"\{" + ", ".join(values) + r"\}"
    return "(" + ", ".join(values) + ")" if "=" not in other else text
