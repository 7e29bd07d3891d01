"""A hard limit on the tokens that a stage generates, over all of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rewards.errors import TokensSpentError
from rewards.kept.calls import CallStore, Run


class TokenLimit:
    """Counts generated tokens; no call is begun once there are as many as allowed. Those under way are finished.

    Args:
        most: tokens; 0 is no limit.
        spent: before this run.

    Example:
        >>> limit = TokenLimit(100, spent=40)
        >>> limit.spend(70)
        >>> limit.reached, limit.spent
        (True, 110)
    """

    def __init__(self, most: int = 0, *, spent: int = 0) -> None:
        self.most, self.spent = most, spent

    @property
    def reached(self) -> bool:
        """Whether there is a limit, and it is reached."""
        return 0 < self.most <= self.spent

    def spend(self, tokens: int) -> None:
        """Count tokens that were generated."""
        self.spent += tokens

    def stop(self) -> None:
        """Raises TokensSpentError if the limit is reached."""
        if self.reached:
            raise TokensSpentError(self.spent, self.most)

    def over(self, run: Run) -> Run:
        """The same calls, their tokens counted; the one after the limit is not made.

        Raises:
            TokensSpentError: the limit is reached, and there is another call to make.
        """

        def limited(tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            results = iter(run(tasks))
            for _ in tasks:
                self.stop()
                place, result = next(results)
                self.spend(result["tokens"])
                yield place, result

        return limited


def tokens_of(calls: CallStore) -> int:
    """Tokens that were generated for the continuations of a store, those of the estimate's sample included."""
    return sum(
        result["tokens"] if "verdicts" in result else result.get("sample_tokens", 0) for result in calls.results()
    )
