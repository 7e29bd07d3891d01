"""Completion → what is degenerate about it, if anything: cut off, without an answer, or running in circles.

Preference training can raise accuracy and still break a policy's style, so the share of degenerate answers is
shown beside every accuracy. The rules read the text alone, never the verdict; they are heuristics with known blind
spots.
"""

from __future__ import annotations

from collections import Counter

from rewards.steps import split_on_blank_lines
from rewards.types import Completion, FinishReason
from rewards.verifying.answers import extract_final_answer
from rewards.verifying.reading import Missing, find_answer
from rewards.verifying.thoughts import scored_spans

REASONS = ("truncated", "no_final_answer", "repetition")
SAME_STEP = 3  # so many steps with one text, or so many equal lines at the end, are a loop
LONG = 40  # words; below it the n-gram rule is silent
NGRAM = 4  # words


def degenerate(completion: Completion) -> str | None:
    r"""The first of `degeneration_faults`, or None: one reason per answer, so that shares add up.

    Example:
        >>> degenerate(Completion("2 + 2 = 4\n\nFinal answer: 4")) is None
        True
    """
    return next(iter(degeneration_faults(completion)), None)


def degeneration_faults(completion: Completion) -> tuple[str, ...]:
    r"""Every reason of `REASONS` that applies, in that order; a loop mostly ends as a truncated answer too.

    - `truncated`: the policy was cut at its token limit, or its text ends inside a thought.
    - `no_final_answer`: `extract_final_answer` finds none (an empty completion included).
    - `repetition`: one step's text occurs 3 times; or the last 3 lines are equal; or, in an answer of 40 words or
      more, over half of the words lie in 4-grams that occur 3 times or more. A thought and the solution after it are
      looked at one by one, for a solution repeats what was thought.

    A right answer can repeat itself for a good reason (3 + 0 + 0 + 0 needs "3 + 0 = 3" three times): compare shares
    between policies, do not filter with it.

    Example:
        >>> degeneration_faults(Completion("2 + 2\n\n2 + 2\n\n2 + 2", FinishReason.LENGTH))
        ('truncated', 'no_final_answer', 'repetition')
    """
    applies = (
        completion.finish_reason is FinishReason.LENGTH or find_answer(completion.text) is Missing.OPEN_THOUGHT,
        extract_final_answer(completion.text) is None,
        any(_repeats(completion.text[start:end]) for start, end in scored_spans(completion.text, "both")),
    )
    return tuple(reason for reason, holds in zip(REASONS, applies, strict=True) if holds)


def _repeats(text: str) -> bool:
    steps = Counter(step.text for step in split_on_blank_lines(text))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ends_in_a_loop = len(lines) >= SAME_STEP and len(set(lines[-SAME_STEP:])) == 1
    return max(steps.values()) >= SAME_STEP or ends_in_a_loop or _share_in_repeated_ngrams(text.split()) > 0.5


def _share_in_repeated_ngrams(words: list[str]) -> float:
    """Share of words inside an n-gram that occurs `SAME_STEP` times or more; 0 for a short text."""
    if len(words) < LONG:
        return 0.0
    grams = [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
    counts = Counter(grams)
    covered = {start + i for start, gram in enumerate(grams) if counts[gram] >= SAME_STEP for i in range(NGRAM)}
    return len(covered) / len(words)
