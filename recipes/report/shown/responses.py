"""One response as plain data for the page: steps with scores and counts, verdict, what it was picked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpo.multimodal.text import printable
from rewards.errors import StepAlignmentError
from rewards.prm.labelling.source import counts_estimate_mc
from rewards.scoring.visual_dependence import step_dependence
from rewards.steps import split_into, split_on_blank_lines
from rewards.types import Rollout, Step, Verdict
from rewards.verifying.degeneration import degenerate

LONGEST_STEP = 4000  # characters of a step or question on the page
BINS = 10  # colours of the score scale: 0 … 10

VERDICTS = {
    Verdict.CORRECT: ("right", "✓ right"),
    Verdict.WRONG: ("wrong", "✗ wrong"),
    Verdict.UNPARSABLE: ("unclear", "∅ no answer"),
    Verdict.TIMEOUT: ("unclear", "? checker timed out"),
    Verdict.ERROR: ("unclear", "? checker failed"),
    None: ("unclear", "not checked"),
}


@dataclass(frozen=True)
class StepView:
    """One step: its score and the scale's bin, its Monte-Carlo count, whether a pair first differs here.

    `dependence`: how far the score falls without the image. `parts`: the text in pieces, each with whether it carried
    the gradient; empty where the pair names no part.
    """

    text: str
    score: float | None = None
    bin: int | None = None
    count: str | None = None
    differs: bool = False
    dependence: float | None = None
    parts: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True)
class ResponseView:
    """One distinct text among a problem's rollouts."""

    steps: list[StepView]
    reward: float | None
    verdict: str
    mark: str
    copies: int
    badges: list[str]
    trouble: str | None
    blank: float | None = None  # reward with a blank image
    swapped: float | None = None  # with another problem's


def response_view(
    same: Sequence[Rollout],
    badges: Mapping[str, list[str]],
    *,
    differs: int | None = None,
    span: tuple[int, int] | None = None,
) -> ResponseView:
    """The view of rollouts with one text."""
    rollout, text = same[0], same[0].completion.text
    verdict, mark = VERDICTS[rollout.verdict]
    return ResponseView(
        steps=_steps(rollout, differs, span),
        reward=rollout.reward,
        verdict=verdict,
        mark=mark,
        copies=len(same),
        badges=badges.get(text, []),
        trouble=degenerate(rollout.completion),
        blank=rollout.blank.reward if rollout.blank else None,
        swapped=rollout.swapped.reward if rollout.swapped else None,
    )


def _steps(rollout: Rollout, differs: int | None, span: tuple[int, int] | None = None) -> list[StepView]:
    """Steps as they were scored or counted; where neither fits the text, the text as one step.

    A count that does not estimate mc is shaded by its hard label.
    """
    text = rollout.completion.text
    scores = rollout.step_scores.values if rollout.step_scores else ()
    part = rollout.step_scores.part if rollout.step_scores else "solution"
    counts = [f"{count.correct}/{count.total}" if count else None for count in rollout.mc or ()]
    estimates = counts_estimate_mc(rollout.label_source)
    values = [
        None if count is None else count.value if estimates else float(count.correct > 0) for count in rollout.mc or ()
    ]
    if not text.strip():
        return [StepView("(empty)")]
    number = len(scores) or len(counts)
    whole = split_on_blank_lines(text)
    try:
        steps = split_into(text, number, part=part) if number else whole
    except StepAlignmentError:
        return [StepView(clipped(text))]
    views = []
    dependences = step_dependence(rollout)
    for index, step in enumerate(steps):
        score = scores[index] if scores else values[index] if values else None
        views.append(
            StepView(
                text=clipped(step.text),
                score=score,
                bin=None if score is None else round(score * BINS),
                count=counts[index] if index < len(counts) else None,
                differs=differs is not None and len(steps) == len(whole) and index == differs,
                dependence=dependences[index] if dependences else None,
                parts=_parts(text, step, span) if span else (),
            )
        )
    return views


def _parts(text: str, step: Step, span: tuple[int, int]) -> tuple[tuple[str, bool], ...]:
    """A step's text cut at the borders of a span of the response, each piece with whether it is inside."""
    own = text[step.start : step.end]
    first, last = step.end - len(own.lstrip()), step.start + len(own.rstrip())
    start, end = (min(max(border, first), last) for border in span)
    if last - first > LONGEST_STEP:
        return ((clipped(step.text), start < end),)
    pieces = ((text[first:start], False), (text[start:end], True), (text[end:last], False))
    return tuple((printable(piece), inside) for piece, inside in pieces if piece)


def clipped(text: str, longest: int = LONGEST_STEP) -> str:
    """Readable text of bounded length."""
    return printable(text if len(text) <= longest else text[:longest] + " […]")
