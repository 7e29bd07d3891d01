"""What a worker process does with one response: everything that reads its text happens where it can be killed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import math_verify  # noqa: F401  (imported here so that no check's time pays for it)

from mpo.multimodal.errors import MPOError
from rewards.types import Completion, FinishReason, Problem, Verdict, Verifier
from rewards.verifying.auto import AutoVerifier
from rewards.verifying.finished import cut_before_its_answer
from rewards.verifying.math_verifier import MathVerifier, compare
from rewards.verifying.reading import stated_answer
from rewards.verifying.verification import VERIFIERS, own_verifier

logging.getLogger("math_verify").setLevel(logging.CRITICAL)


class _InThisProcess:
    """Takes the place of `Workers` inside a worker, which can be killed already."""

    def run(self, calls: list[tuple[str, str]]) -> list[Verdict]:
        return [_compared(*call) for call in calls]

    def close(self) -> None:
        """Nothing to stop."""


def work(what: str, *arguments: Any) -> Verdict:
    """One call of a function of `WORK`, so that one pool of processes does for all of them."""
    return WORK[what](*arguments)


def check_answer(name: str, problem: Problem, text: str, cut: bool) -> Verdict:
    """The verdict of one response.

    Args:
        name: of a verifier, or `package.module:function`.
        problem: without its images.
        text: the response.
        cut: whether it was cut at its token limit; if it then states no answer, it is `UNPARSABLE`.
    """
    own = ":" in name
    if not own and cut_before_its_answer(Completion(text, FinishReason.LENGTH if cut else FinishReason.STOP)):
        return Verdict.UNPARSABLE
    return Verdict(verifier_of(name)(problem, text))


def check_format(text: str, cut: bool) -> Verdict:
    """`CORRECT` for a response that ended by itself and states a final answer, else `WRONG`."""
    return Verdict.CORRECT if not cut and stated_answer(text) is not None else Verdict.WRONG


def read_reference(name: str, problem: Problem) -> Verdict:
    """`CORRECT` if the verifier can read the problem's reference answer, else `ERROR`."""
    verifier: Any = verifier_of(name)
    faults = getattr(verifier, "faults", None)
    return Verdict.CORRECT if faults is None or faults([problem]) == [None] else Verdict.ERROR


WORK: dict[str, Callable[..., Verdict]] = {
    "answer": check_answer,
    "format": check_format,
    "reference": read_reference,
}


@cache
def verifier_of(name: str) -> Verifier:
    """A verifier all of whose work is done in this process."""
    if own := own_verifier(name):
        return own
    math = MathVerifier()
    vars(math)["_workers"] = _InThisProcess()
    if name == "math":
        return math
    return AutoVerifier(math=math, rounded=name != "auto") if name.startswith("auto") else VERIFIERS[name]


def _compared(reference: str, answer: str) -> Verdict:
    try:
        return compare(reference, answer)
    except MPOError:
        return Verdict.ERROR
