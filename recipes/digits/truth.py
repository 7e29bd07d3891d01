"""Exact step labels: the world knows which steps of any sampled answer are right.

A step is right if everything that it claims is true of the picture and follows from the steps before it. As in
Monte-Carlo labels, a step counts as right only if every step before it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from recipes.digits.world import INKS, answer_of
from rewards.types import Problem

_INK = "|".join(INKS)
_READ = re.compile(rf"^(?:See|Read|Find) ({_INK}) (\d)$")
_CHECK = re.compile(rf"^Check: See ({_INK}) (\d)$")
_SUM = re.compile(r"^(\d+) \+ (\d) = (\d+)$")
_EXTREMES = re.compile(r"^Largest (\d), smallest (\d)$")
_DIFFERENCE = re.compile(r"^(\d) - (\d) = (\d)$")
_EVEN = re.compile(r"^Even: (none|\d(?:, \d)*)$")
_COUNT = re.compile(r"^Count (\d)$")
_FINAL = re.compile(r"^Final answer: (\d+)$")


def step_truth(problem: Problem, steps: Sequence[str]) -> list[bool]:
    """Whether the answer is right up to and including each step.

    Args:
        problem: a problem of this world (`meta` holds `kind` and `digits`).
        steps: the steps' texts, without separators.

    Example:
        >>> p = Problem("p", "", meta={"kind": "sum", "digits": {"Red": 3, "Blue": 9}})
        >>> step_truth(p, ["See Red 3", "See Blue 8", "3 + 8 = 11", "Final answer: 11"])
        [True, False, False, False]
    """
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
        self.added: list[int] = []

    def accepts(self, step: str) -> bool:
        """Whether the step is right, given the accepted steps before it."""
        if match := _READ.match(step):
            new = match[1] not in self.read
            self.read.append(match[1])
            return new and self.digits.get(match[1]) == int(match[2])
        if match := _CHECK.match(step):
            return self.digits.get(match[1]) == int(match[2])
        if match := _FINAL.match(step):
            return int(match[1]) == answer_of(self.kind, list(self.digits.values()))
        return len(self.read) == len(self.digits) and self._works(step)

    def _works(self, step: str) -> bool:
        in_order = [self.digits[ink] for ink in self.read]
        if self.kind == "sum" and (match := _SUM.match(step)):
            total, digit, result = map(int, match.groups())
            done = len(self.added) + 1
            self.added.append(digit)
            return (
                done < len(in_order)
                and (total, digit) == (sum(in_order[:done]), in_order[done])
                and result == total + digit
            )
        if self.kind == "range" and (match := _EXTREMES.match(step)):
            return (int(match[1]), int(match[2])) == (max(in_order), min(in_order))
        if self.kind == "range" and (match := _DIFFERENCE.match(step)):
            high, low, result = map(int, match.groups())
            return (high, low, result) == (max(in_order), min(in_order), max(in_order) - min(in_order))
        even = [str(digit) for digit in in_order if digit % 2 == 0]
        if self.kind == "even" and (match := _EVEN.match(step)):
            return match[1] == (", ".join(even) or "none")
        if self.kind == "even" and (match := _COUNT.match(step)):
            return int(match[1]) == len(even)
        return False
