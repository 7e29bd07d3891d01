"""Whole responses → verdicts: what was cut before it stated an answer has none, whatever its last words say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mpo.multimodal.errors import DataError
from rewards.types import Completion, FinishReason, Problem, Verdict
from rewards.verifying.reading import stated_answer

VerifyTexts = Callable[[Sequence[tuple[Problem, str]]], Sequence[Verdict]]


def cut_before_its_answer(completion: Completion) -> bool:
    r"""Whether a response was cut at its token limit before it stated an answer.

    Example:
        >>> cut_before_its_answer(Completion("Red and blue are 7", FinishReason.LENGTH))
        True
        >>> cut_before_its_answer(Completion("Final answer: 7\n\nThis is", FinishReason.LENGTH))
        False
    """
    return completion.finish_reason is FinishReason.LENGTH and stated_answer(completion.text) is None


def verify_completions(verify_many: VerifyTexts, pairs: Sequence[tuple[Problem, Completion]]) -> list[Verdict]:
    """One verdict per response, in order; one that was cut before its answer is `UNPARSABLE` and not checked.

    Args:
        verify_many: checks the texts of the others.
        pairs: problems and responses.

    Example:
        >>> problem, cut = Problem("p", "?", answer="7"), Completion("it is 7", FinishReason.LENGTH)
        >>> pairs = [(problem, cut), (problem, Completion("It is 7."))]
        >>> [str(v) for v in verify_completions(lambda some: [Verdict.CORRECT] * len(some), pairs)]
        ['unparsable', 'correct']
    """
    cut = [cut_before_its_answer(completion) for _, completion in pairs]
    checked = [(problem, one.text) for (problem, one), is_cut in zip(pairs, cut, strict=True) if not is_cut]
    verdicts = verify_many(checked)
    if len(verdicts) != len(checked):
        raise DataError(
            f"expected {len(checked)} verdicts, got {len(verdicts)}; verdicts would move to other responses"
        )
    left = iter(verdicts)
    return [Verdict.UNPARSABLE if is_cut else next(left) for is_cut in cut]
