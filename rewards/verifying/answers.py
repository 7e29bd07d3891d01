r"""Final answers as text, for those who need no more: the stated one, a short one, and a problem's references.

The reading itself is in `reading.py` (what), `places.py` (where an answer is) and `dress.py` (how it is dressed).
"""

from __future__ import annotations

from mpo.multimodal.errors import DataError
from rewards.types import Problem
from rewards.verifying.dress import undressed
from rewards.verifying.places import last_box
from rewards.verifying.reading import read_answer, stated_answer

__all__ = [
    "canonical_answer",
    "extract_final_answer",
    "last_box",
    "normalise",
    "reference_of",
    "references_of",
    "short_answer",
]


def extract_final_answer(text: str) -> str | None:
    r"""The answer that a response states explicitly, without its dress; or None.

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
    answer = stated_answer(text)
    return answer.value if answer else None


def short_answer(text: str) -> str | None:
    """The extracted answer, else the whole response if it is one short line: what "answer with a word" asks for.

    Example:
        >>> short_answer(" 14 cm\\n"), short_answer("Final answer: 14 cm"), short_answer("First\\nsecond")
        ('14 cm', '14 cm', None)
    """
    answer = read_answer(text)
    return answer.value if answer else None


def canonical_answer(text: str) -> str | None:
    """The extracted final answer, inner whitespace collapsed.

    Example:
        >>> canonical_answer("Final answer:  New   York.")
        'New York'
    """
    answer = extract_final_answer(text)
    return normalise(answer) or None if answer is not None else None


def references_of(problem: Problem) -> tuple[str, ...]:
    """The accepted reference answers without their dress: `meta["answers"]` where there are several, else `answer`.

    Raises:
        DataError: it has none.

    Example:
        >>> references_of(Problem("p", "Which?", answer=" $7$. ")), references_of(Problem("p", "?", answer=["a", "b"]))
        (('7',), ('a', 'b'))
    """
    several = problem.meta.get("answers")
    given = several if isinstance(several, list | tuple) and several else [problem.answer or ""]
    references = tuple(text for one in given if (text := normalise(str(one))))
    if not references:
        raise DataError(f"problem {problem.id!r} has no reference answer: expected `answer`; drop it before verifying")
    return references


def reference_of(problem: Problem) -> str:
    """The first of `references_of`."""
    return references_of(problem)[0]


def normalise(answer: str) -> str:
    """Without its dress, inner whitespace collapsed.

    Example:
        >>> normalise(" **New   York**. ")
        'New York'
    """
    return " ".join(undressed(answer).split()).strip(".")
