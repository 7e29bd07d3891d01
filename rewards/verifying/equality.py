"""Two answers of one problem → do they mean the same? One function a verifier, for votes.

`equal(problem, a, b)` never looks at the problem's reference answer: a vote may not know it. It is symmetric, and True
for `a == b`. None means "cannot be told" (one side cannot be read as the verifier wants it, a check that hangs): count
it as different. It need not be transitive (a tolerance cannot be): who groups, compares with one member of each group.
"""

from __future__ import annotations

from collections.abc import Callable

from rewards.types import Problem, Verifier
from rewards.verifying.reading import Answer

Equal = Callable[[Problem, Answer, Answer], bool | None]


def equality_of(verifier: Verifier | str) -> Equal:
    """`equal` of a verifier or of a row of `VERIFIERS`; for any other callable, equal text in any case.

    A verifier object brings it as its `equal` (`VERIFIERS["math"].equal`); math's runs in workers that are killed.
    """
    found = getattr(verifier, "equal", None)
    return found if found is not None else same_text


def same_text(problem: Problem, a: Answer, b: Answer) -> bool | None:
    """Equal values in any case, blanks collapsed."""
    return " ".join(a.value.split()).casefold() == " ".join(b.value.split()).casefold()


def readable(verifier: Verifier | str, problem: Problem, text: str) -> Answer | None:
    """What a response votes for under a verifier; None if the verifier cannot read it: then it does not vote."""
    from rewards.verifying.reading import read_answer

    return read_answer(text)
