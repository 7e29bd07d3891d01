"""The answers of one problem, grouped by meaning: what a vote counts.

A class is what the problem's verifier calls equal to its first answer (its representative), so being in one class is
symmetric and transitive by construction, although a tolerance is neither. An answer that equals several representatives
goes to the oldest. The reference answer is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable

from rewards.types import NO_VOTE, Problem, Rollout, RolloutGroup, Verdict, Verifier
from rewards.verifying.equality import equal_many, same_text, voted
from rewards.verifying.finished import cut_before_its_answer
from rewards.verifying.reading import Answer
from rewards.verifying.verification import VERIFIERS

MAX_COMPARISONS = 2_000  # per problem; beyond it only equal texts share a class


class EqualityClasses:
    r"""Numbers the classes of a problem's answers from 0, in order of appearance; every text is read once.

    Args:
        problem: whose answers they are.
        verifier: a name, or any verifier; one without an `equal` of its own compares as `auto`.
        max_comparisons: of two answers, at most; each distinct answer is compared with every class there is.

    Attributes:
        comparisons: made so far.
        uncompared: distinct answers that got a class of their own because the comparisons were used up.

    Example:
        >>> classes = EqualityClasses(Problem("p", "Which?", meta={"choices": ["red", "blue"]}))
        >>> classes.numbers(["Answer: (B)", "Answer: A", r"\boxed{\text{B}}", "I do not know.", "So it is blue.\nB"])
        [0, 1, 0, -1, 0]
    """

    def __init__(
        self, problem: Problem, verifier: Verifier | str = "auto", *, max_comparisons: int = MAX_COMPARISONS
    ) -> None:
        self.problem, self.max_comparisons = problem, max_comparisons
        found = VERIFIERS[verifier] if isinstance(verifier, str) else verifier
        self.verifier = found if hasattr(found, "equal") else VERIFIERS["auto"]
        self.comparisons = self.uncompared = 0
        self._representatives: list[Answer] = []
        self._of_value: dict[str, int] = {}
        self._of_text: dict[str, int] = {}

    def numbers(self, texts: Iterable[str]) -> list[int]:
        """The class of each response's answer; `NO_VOTE` where the verifier reads none."""
        return [self.number(text) for text in texts]

    def number(self, text: str) -> int:
        """The class of one response's answer."""
        if text not in self._of_text:
            answer = voted(self.verifier, self.problem, text)
            self._of_text[text] = NO_VOTE if answer is None else self._class_of(answer)
        return self._of_text[text]

    def _class_of(self, answer: Answer) -> int:
        if answer.value not in self._of_value:
            self._of_value[answer.value] = self._found(answer)
        return self._of_value[answer.value]

    def _found(self, answer: Answer) -> int:
        """The oldest class with an equal representative, else a new one."""
        others = self._representatives
        if self.comparisons + len(others) > self.max_comparisons:
            self.uncompared += 1
            same = [same_text(self.problem, other, answer) for other in others]
        else:
            self.comparisons += len(others)
            same = equal_many(self.verifier, self.problem, [(other, answer) for other in others])
        if True in same:
            return same.index(True)
        self._representatives.append(answer)
        return len(self._representatives) - 1


def votes_of(group: RolloutGroup) -> tuple[int | None, ...]:
    """What each rollout votes for: the number of its answer's class, or `None` if it does not vote.

    `mpo verify` has written the numbers down; where it has not, they are found here with the problem's verifier. A
    response whose verdict is `unparsable`, or that was cut before it stated an answer, does not vote.
    """
    return tuple(None if rollout.vote in (None, NO_VOTE) else rollout.vote for rollout in with_votes(group).rollouts)


def with_votes(group: RolloutGroup) -> RolloutGroup:
    """The group with the `vote` of every rollout; itself if they are there."""
    if all(rollout.vote is not None for rollout in group.rollouts):
        return group
    return numbered(group, EqualityClasses(group.problem))


def numbered(group: RolloutGroup, classes: EqualityClasses) -> RolloutGroup:
    """The group with the `vote` of every rollout by these classes."""
    rollouts = tuple(rollout.with_(vote=_vote(rollout, classes)) for rollout in group.rollouts)
    return RolloutGroup(group.problem, rollouts)


def _vote(rollout: Rollout, classes: EqualityClasses) -> int:
    unread = rollout.verdict is Verdict.UNPARSABLE or (
        rollout.verdict is None and cut_before_its_answer(rollout.completion)
    )
    return NO_VOTE if unread else classes.number(rollout.completion.text)
