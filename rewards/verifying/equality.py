"""Two answers of one problem → do they mean the same? One function per verifier, for votes.

`equal(problem, a, b)` never looks at the problem's reference answer: a vote may not know it. It is symmetric, and
True for two answers of one value. None means "cannot be told" (one side cannot be read as the verifier wants it, a
check that hangs): count it as different. It need not be transitive (a tolerance cannot be): who groups, compares with
one member of each group, and asks about many pairs at once with `equal_many`, so that mathematics goes through its
workers in one piece. A check that hangs costs its limit once; verdicts are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from rewards.types import Problem, Verifier
from rewards.verifying.reading import Answer, read_answer
from rewards.verifying.verification import VERIFIERS

Equal = Callable[[Problem, Answer, Answer], bool | None]


def equality_of(verifier: Verifier | str) -> Equal:
    """`equal` of a verifier or of a row of `VERIFIERS`; for any other callable, equal text in any case.

    Example:
        >>> equal, problem = equality_of("choice"), Problem("p", "Which?", meta={"choices": ["red", "blue"]})
        >>> a, b, c = (read_answer(text) for text in ("Answer: (B)", "So the answer is blue.", "A"))
        >>> equal(problem, a, b), equal(problem, b, c)
        (True, False)
    """
    return cast(Equal, getattr(_named(verifier), "equal", same_text))


def equal_many(verifier: Verifier | str, problem: Problem, pairs: Sequence[tuple[Answer, Answer]]) -> list[bool | None]:
    """`equal` for many pairs, in order."""
    batched = getattr(_named(verifier), "equal_many", None)
    if batched is not None:
        return cast("list[bool | None]", batched(problem, pairs))
    equal = equality_of(verifier)
    return [equal(problem, a, b) for a, b in pairs]


def voted(verifier: Verifier | str, problem: Problem, text: str) -> Answer | None:
    """What a response votes for: the answer that the verifier reads from it; None if it reads none, then no vote.

    Example:
        >>> voted("number", Problem("p", "How many?"), "There are 10 objects.").value
        'There are 10 objects'
        >>> voted("choice", Problem("p", "Which?"), "I do not know.") is None
        True
    """
    read = getattr(_named(verifier), "answer", None)
    return cast("Answer | None", read(problem, text)) if read is not None else read_answer(text)


def same_text(problem: Problem, a: Answer, b: Answer) -> bool | None:
    """Equal values in any case, blanks collapsed."""
    return " ".join(a.value.split()).casefold() == " ".join(b.value.split()).casefold()


def _named(verifier: Verifier | str) -> Verifier:
    return VERIFIERS[verifier] if isinstance(verifier, str) else verifier
