"""Completion → steps, without loss: adjacent spans touch and together they tile the text.

A separator belongs to the span before it, so `text[step.start:step.end]` over all steps gives the text
back, while `Step.text` is what a process reward model reads: the span without the whitespace around it. A thought
belongs to the span of the solution's first step, as whitespace does, unless its own steps are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from mpo.multimodal.errors import ConfigError, DataError
from rewards.errors import StepAlignmentError
from rewards.types import Step
from rewards.verifying.thoughts import scored_spans

BLANK_LINE = "\n\n"
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")  # ends after its last newline: a next line's indent is not eaten


def split_on_blank_lines(text: str, *, part: str = "solution") -> tuple[Step, ...]:
    r"""Cut a completion at its blank lines.

    VisualPRM cuts at `"\n\n"` (released `split_response`). This one also takes three or more newlines, and
    lines of spaces, as one separator, so that no step is ever empty; whitespace before the first step or
    after the last is glued to it.

    Args:
        text: a completion with at least one character that is not whitespace.
        part: whose steps are wanted where the model thought first: "solution", "thought" or "both". What is not
            wanted, and the tags, are glued to the first or last step's span and belong to no step's text. A text
            without that part (no thought, or one that was cut inside it) is cut as a whole.

    Returns:
        At least one step; indexes 0..n-1, spans adjacent from 0 to `len(text)`, texts stripped and non-empty.

    Raises:
        DataError: the text is empty or only whitespace.

    Example:
        >>> for step in split_on_blank_lines("2 + 2 = 4\n\nFinal answer: 4\n"):
        ...     print(step.index, step.start, step.end, repr(step.text))
        0 0 11 '2 + 2 = 4'
        1 11 27 'Final answer: 4'
        >>> [step.text for step in split_on_blank_lines("<think>2?\n\n3?</think>\n\nSo 4.\n\nFinal answer: 4")]
        ['So 4.', 'Final answer: 4']
    """
    if not text.strip():
        raise DataError(
            f"cannot split {text!r} into steps: expected some text; drop empty completions before splitting"
        )
    spans = scored_spans(text, part) or [(0, len(text))]
    pieces = [piece for span in spans for piece in _pieces(text, *span)]
    starts = [0, *(start for start, _ in pieces[1:]), len(text)]
    return tuple(
        Step(index, start, end, text[slice(*piece)].strip())
        for index, ((start, end), piece) in enumerate(zip(pairwise(starts), pieces, strict=True))
    )


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the steps of a part of the text stand."""
    body = text[start:end]
    first, last = end - len(body.lstrip()), start + len(body.rstrip())
    cuts = (match.end() for match in _BLANK_LINES.finditer(text, start, end))
    return pairwise([start, *(cut for cut in cuts if first < cut < last), end])


def scored_steps(text: str, *, max_steps: int, part: str = "solution") -> tuple[Step, ...]:
    r"""The steps that a PRM scores: cut at blank lines, merged to at most `max_steps`.

    With "both", thought and solution are merged apart, each to at most half (the thought to what the solution leaves),
    so that no step holds something of both.

    Example:
        >>> text = "<think>a\n\nb\n\nc\n\nd</think>e\n\nf"
        >>> [step.text.split() for step in scored_steps(text, max_steps=4, part="both")]
        [['a', 'b'], ['c', 'd'], ['e'], ['f']]
    """
    steps = split_on_blank_lines(text, part=part)
    spans = scored_spans(text, part)
    if len(spans) < 2 or max_steps < 2:
        return merge_to_at_most(steps, max_steps=max_steps)
    solution = merge_to_at_most([step for step in steps if step.start >= spans[1][0]], max_steps=max_steps // 2)
    thought = merge_to_at_most(
        [step for step in steps if step.start < spans[1][0]], max_steps=max_steps - len(solution)
    )
    return tuple(replace(step, index=index) for index, step in enumerate([*thought, *solution]))


def split_into(text: str, number: int, *, part: str = "solution") -> tuple[Step, ...]:
    r"""The steps of a completion that was labelled or scored in `number` steps: its own, or neighbours merged.

    Raises:
        StepAlignmentError: no merge of its steps gives that number.

    Example:
        >>> [step.text.split() for step in split_into("a\n\nb\n\nc\n\nd\n\ne", 3)]
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    steps = split_on_blank_lines(text, part=part)
    for size in range(2 * len(steps) if part == "both" else len(steps), 0, -1):
        if len(merged := scored_steps(text, max_steps=size, part=part)) == number:
            return merged
    raise StepAlignmentError(f"a response of {len(steps)} steps cannot be merged into {number}: {text[:60]!r}")


def merge_to_at_most(steps: Sequence[Step], *, max_steps: int = 12) -> tuple[Step, ...]:
    """Join ceil(n / max_steps) neighbours at a time, VisualPRM's rule (released `split_response`).

    The result has *at most* `max_steps` groups, often far fewer: 13 steps with `max_steps=12` are joined in
    twos and give 7 groups, not 12. Step indexes therefore no longer match those of the input.

    Args:
        steps: the steps of one completion, in order, at least one.
        max_steps: the largest number of groups, at least 1.

    Returns:
        Merged steps: spans still tile the text; texts are joined by one blank line, as the model was trained on.

    Raises:
        ConfigError: `max_steps` is below 1.
        DataError: there are no steps.

    Example:
        >>> steps = split_on_blank_lines("\\n\\n".join("abcdefghijklm"))
        >>> [step.text.split() for step in merge_to_at_most(steps)]
        [['a', 'b'], ['c', 'd'], ['e', 'f'], ['g', 'h'], ['i', 'j'], ['k', 'l'], ['m']]
    """
    size = merged_size(len(steps), max_steps=max_steps)
    groups = [steps[start : start + size] for start in range(0, len(steps), size)]
    return tuple(
        Step(index, group[0].start, group[-1].end, BLANK_LINE.join(step.text for step in group))
        for index, group in enumerate(groups)
    )


def merged_size(count: int, *, max_steps: int) -> int:
    """How many neighbours `merge_to_at_most` joins: ceil(count / max_steps). Step i goes into group i // size.

    Raises:
        ConfigError: `max_steps` is below 1.
        DataError: there are no steps.

    Example:
        >>> merged_size(13, max_steps=12), merged_size(12, max_steps=12)
        (2, 1)
    """
    if max_steps < 1:
        raise ConfigError(f"max_steps must be at least 1, got {max_steps}")
    if count < 1:
        raise DataError("cannot merge zero steps: expected the steps of one completion")
    return -(-count // max_steps)


def steps_of(texts: Sequence[str]) -> tuple[Step, ...]:
    """Steps whose texts are given; their spans tile the texts joined by blank lines.

    Raises:
        DataError: there are no texts, or one is empty or only whitespace.

    Example:
        >>> [(step.start, step.end, step.text) for step in steps_of(["one", " two "])]
        [(0, 5, 'one'), (5, 10, 'two')]
    """
    if not texts or not all(text.strip() for text in texts):
        raise DataError(
            f"expected one or more steps that are not empty, got {len(texts)}; drop empty steps before scoring"
        )
    ends = list(accumulate(len(text) + len(BLANK_LINE) for text in texts))
    ends[-1] -= len(BLANK_LINE)
    bounds = pairwise([0, *ends])
    return tuple(
        Step(index, start, end, text.strip())
        for index, (text, (start, end)) in enumerate(zip(texts, bounds, strict=True))
    )
