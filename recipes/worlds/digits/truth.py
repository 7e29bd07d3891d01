"""Exact step labels: the world knows which steps of any sampled answer are right.

A step is right if everything that it claims is true of the image and follows from the steps before it. As in
Monte-Carlo labels, a step counts as right only if every step before it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mpo.multimodal.errors import DataError
from recipes.worlds.digits.world import INKS, answer_of, running_result
from rewards.types import Problem

_INK = "|".join(INKS)
_READ = re.compile(rf"^(?:See|Read|Find) ({_INK}) (\d)$")
_NOW = re.compile(r"^Now (.*)$")
_CHECK = re.compile(rf"^Check: See ({_INK}) (\d)$")
_FINAL = re.compile(r"^Final answer: (\d+)$")


def step_truth(problem: Problem, steps: Sequence[str]) -> list[bool]:
    """Whether the answer is right up to and including each step.

    Args:
        problem: a problem of this world (`meta` holds `kind` and `digits`).
        steps: the steps' texts, without separators.

    Example:
        >>> p = Problem("p", "", meta={"kind": "sum", "digits": {"Red": 3, "Blue": 9}})
        >>> step_truth(p, ["See Red 3", "Now 3", "See Blue 8", "Now 1", "Final answer: 1"])
        [True, True, False, False, False]
    """
    if not {"kind", "digits"} <= problem.meta.keys():
        raise DataError(f"problem {problem.id!r} is not of the digits world: expected kind and digits in its meta")
    reader = _Reader(problem.meta["kind"], problem.meta["digits"])
    labels: list[bool] = []
    for step in steps:
        labels.append((not labels or labels[-1]) and reader.accepts(step.strip()))
    return labels


class _Reader:
    """Follows one answer and accepts each step that is true and follows."""

    def __init__(self, kind: str, digits: Mapping[str, int]) -> None:
        self.kind, self.digits = kind, digits
        self.read: list[str] = []  # inks, in the order in which they were read

    def accepts(self, step: str) -> bool:
        """Whether the step is right, given the accepted steps before it."""
        if match := _READ.match(step):
            new = match[1] not in self.read
            self.read.append(match[1])
            return new and self.digits.get(match[1]) == int(match[2])
        if match := _NOW.match(step):
            seen = [self.digits.get(ink, -1) for ink in self.read]
            return bool(seen) and match[1] == running_result(self.kind, seen)
        if match := _CHECK.match(step):
            return self.digits.get(match[1]) == int(match[2])
        match = _FINAL.match(step)
        return (
            match is not None
            and len(self.read) == len(self.digits)
            and int(match[1]) == answer_of(self.kind, list(self.digits.values()))
        )
