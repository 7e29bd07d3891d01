"""The shape of a verifier: how it reads an answer, and when two readings mean the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from mpo.multimodal.errors import DataError
from rewards.types import Problem, Verdict
from rewards.verifying.answers import references_of
from rewards.verifying.places import first_sentence
from rewards.verifying.reading import Answer, Kind, Missing, candidates

T = TypeVar("T")


class ReadingVerifier(ABC, Generic[T]):
    """A verifier that reads an answer as a `T` and compares it with each reference's.

    A subclass says `want` (which weak signs of an answer it reads), `read` and `matches`; and `same`, where equality
    for votes is not what `matches` is.
    """

    want: Kind | None = None
    expects = "a reference"  # in the message about one that cannot be read

    @abstractmethod
    def read(self, problem: Problem, value: str) -> T | None:
        """An undressed answer as what this verifier compares; None if it cannot be read so."""

    def reference(self, problem: Problem, value: str) -> T | None:
        """A reference answer, in the same way."""
        return self.read(problem, value)

    def matches(self, reference: T, answer: T) -> bool:
        """Whether the answer is right by this reference."""
        return reference == answer

    def same(self, a: T, b: T) -> bool:
        """Whether two answers mean the same; symmetric."""
        return self.matches(a, b) or self.matches(b, a)

    def contradicts(self, value: T) -> bool:
        """Whether what was read names two answers at once: nothing else in the response counts then."""
        return False

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Check one completion.

        Raises:
            DataError: the problem has no reference answer, or none that this verifier can read.
        """
        references = self._references(problem)
        found = self._read(problem, text)
        if found is None:
            return Verdict.UNPARSABLE
        return Verdict.CORRECT if any(self.matches(r, found[1]) for r in references) else Verdict.WRONG

    def faults(self, problems: Sequence[Problem]) -> list[str | None]:
        """Why this verifier cannot check each problem, or None."""
        found: list[str | None] = []
        for problem in problems:
            try:
                self._references(problem)
                found.append(None)
            except DataError as error:
                found.append(str(error))
        return found

    def answer(self, problem: Problem, text: str) -> Answer | None:
        """The answer that this verifier reads from a response: what it votes for; None if it reads none."""
        found = self._read(problem, text)
        return found[0] if found else None

    def equal(self, problem: Problem, a: Answer, b: Answer) -> bool | None:
        """Whether two answers mean the same; None if one of them cannot be read. Never looks at the reference."""
        ours, theirs = (self._first(problem, answer.value) for answer in (a, b))
        if ours is None or theirs is None or self.contradicts(ours) or self.contradicts(theirs):
            return None
        return a == b or self.same(ours, theirs)

    def _references(self, problem: Problem) -> list[T]:
        given = references_of(problem)
        read = [reference for one in given if (reference := self.reference(problem, one)) is not None]
        read = [reference for reference in read if not self.contradicts(reference)]
        if not read:
            raise DataError(
                f"problem {problem.id!r}: the reference {given[0]!r} is not {self.expects}; expected {self.expects} or "
                "another verifier"
            )
        return read

    def _read(self, problem: Problem, text: str) -> tuple[Answer, T] | None:
        found = candidates(text, self.want)
        if isinstance(found, Missing):
            return None
        for answer in found:
            value = self._first(problem, answer.value)
            if value is not None:
                return None if self.contradicts(value) else (answer, value)
        return None

    def _first(self, problem: Problem, value: str) -> T | None:
        for view in self.views(value):
            read = self.read(problem, view)
            if read is not None:
                return read
        return None

    def views(self, value: str) -> Iterator[str]:
        """A stated answer as it stands, then its first sentence."""
        yield value
        first = first_sentence(value)
        if first != value:
            yield first
