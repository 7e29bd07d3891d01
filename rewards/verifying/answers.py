r"""Response → its final answer as text: where it stands, and the form in which answers are compared and counted.

The last statement of an answer wins: a response that first writes `\boxed{3}` and ends in `\boxed{7}` answers 7.
Nothing here evaluates anything; every function is linear in the text's length.
"""

from __future__ import annotations

import re

from mpo.multimodal.errors import DataError
from rewards.types import Problem

MAX_BARE_CHARACTERS = 80  # a longer response without any marker is reasoning, not an answer

_MARKER = re.compile(r"(?:final answer|最终答案)[ \t]*+(?:\*\*)?[ \t]*+(?:[:：]|为)(?:[ \t]*\*\*)?", re.IGNORECASE)
_ANSWER_LINE = re.compile(
    r"^[ \t#>*_-]*+(?:the )?(?:correct )?(?:answer|答案)[ \t]*+(?:\*\*)?[ \t]*+[:：](?:[ \t]*\*\*)?",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_IS = re.compile(r"\b(?:answer|choice|option) is:?(?![^\W_])|答案(?:是|为|选)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!](?=\s|$)|。")
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def extract_final_answer(text: str) -> str | None:
    r"""The answer that a response states, or None.

    In this order: the last "Final answer:" (最终答案：) — a box after it, else the rest of its line; the last
    balanced `\boxed{…}`; the last line that begins with "Answer:" (答案：); "the answer is …" in the last line.
    Markdown's `**` around the answer is dropped.

    Example:
        >>> extract_final_answer("I first thought \\boxed{3}.\n\n**Final answer:** 7 cm")
        '7 cm'
        >>> extract_final_answer(r"so \boxed{3}, no: \boxed{\frac{1}{2}}")
        '\\frac{1}{2}'
        >>> extract_final_answer("Two sides are equal.\nThe answer is (B). It is isosceles.")
        '(B)'
        >>> extract_final_answer("I do not know") is None
        True
    """
    if tail := _after_last(_MARKER, text):
        boxed = last_box(tail)
        line = _line(tail)
        if boxed or line:
            return boxed or line
    if boxed := last_box(text):
        return boxed
    if (tail := _after_last(_ANSWER_LINE, text)) and (line := _line(tail)):
        return line
    last_line = text.rstrip().rpartition("\n")[2]
    if tail := _after_last(_ANSWER_IS, last_line):
        return _SENTENCE_END.split(tail, maxsplit=1)[0].strip(" \t:：*_") or None
    return None


def short_answer(text: str) -> str | None:
    """The extracted answer, else the whole response if it is one short line: what "answer with a word" asks for.

    Example:
        >>> short_answer(" 14 cm\\n"), short_answer("Final answer: 14 cm"), short_answer("First\\nsecond")
        ('14 cm', '14 cm', None)
    """
    answer = extract_final_answer(text)
    bare = text.strip().strip("*").strip()
    if answer is None and bare and "\n" not in bare and len(bare) <= MAX_BARE_CHARACTERS and "\\boxed" not in bare:
        return bare
    return answer


def canonical_answer(text: str) -> str | None:
    """The extracted final answer, stripped, inner whitespace collapsed, one trailing full stop dropped; for votes.

    Example:
        >>> canonical_answer("Final answer:  New   York.")
        'New York'
    """
    answer = extract_final_answer(text)
    return normalise(answer) or None if answer is not None else None


def reference_of(problem: Problem) -> str:
    """The problem's reference answer in canonical form.

    Raises:
        DataError: it has none.
    """
    reference = normalise(problem.answer or "")
    if not reference:
        raise DataError(f"problem {problem.id!r} has no reference answer: expected `answer`; drop it before verifying")
    return reference


def normalise(answer: str) -> str:
    """Stripped, inner whitespace collapsed, one trailing full stop dropped."""
    return " ".join(answer.split()).removesuffix(".").rstrip()


def last_box(text: str) -> str | None:
    r"""Content of the `\boxed{…}` that opens last among those whose brace closes; escaped braces do not count.

    Example:
        >>> last_box(r"\boxed{1} and \boxed{\{2\}}")
        '\\{2\\}'
    """
    open_braces: list[int | None] = []  # where a box's content starts; None for any other brace
    start, end = -1, -1
    for token in _BRACES.finditer(text):
        if token[0] == "{":
            open_braces.append(None)
        elif token[0].startswith("\\boxed"):
            open_braces.append(token.end())
        elif token[0] == "}" and open_braces:
            opened = open_braces.pop()
            if opened is not None and opened > start:
                start, end = opened, token.start()
    return text[start:end].strip() or None if start >= 0 else None


def _after_last(pattern: re.Pattern[str], text: str) -> str:
    """What follows the pattern's last match; empty without one."""
    end = -1
    for match in pattern.finditer(text):
        end = match.end()
    return text[end:].lstrip() if end >= 0 else ""


def _line(tail: str) -> str:
    """The first line, without Markdown's emphasis around it."""
    line = tail.partition("\n")[0].strip()
    return line.strip("*").strip() if line.startswith("**") else line.removesuffix("**").strip()
