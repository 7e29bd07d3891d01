"""Problems with their answers, as plain data for the page: step scores, verdicts, counts, pairs. Text stays text."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpo.multimodal.text import printable
from recipes.report.pairs import PairTexts, first_difference, read_pairs
from recipes.report.pictures import Picture, pictures_of
from recipes.stage.folder import MANIFEST
from recipes.stage.groups import read_groups
from rewards.choosing.selection import majority
from rewards.choosing.selector_warnings import LEAST_DROP
from rewards.errors import StepAlignmentError
from rewards.prm.labelling.source import counts_estimate_mc
from rewards.scoring.visual_dependence import step_dependence, visual_dependence
from rewards.steps import split_into, split_on_blank_lines
from rewards.types import Completion, Rollout, RolloutGroup, Step, Verdict
from rewards.verifying.degeneration import degenerate
from rewards.verifying.equality_classes import votes_of, with_votes

LONGEST_STEP = 4000  # characters of a step or question on the page
LONGEST_LINE = 400  # characters of an answer or id
SHOWN = 4  # answers per problem that are not folded away; those with a badge never are
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


@dataclass(frozen=True)
class PairView:
    """A pair side by side, and why it was made."""

    why: str
    chosen: ResponseView
    rejected: ResponseView


@dataclass(frozen=True)
class ProblemView:
    """One problem on the page; `top` is the verdict of the best-rewarded answer, "none" without rewards."""

    identifier: str
    kind: str
    question: str
    answer: str | None
    pictures: list[Picture]
    shown: list[ResponseView]
    folded: list[ResponseView]
    top: str
    disagrees: bool
    missing_pictures: int = 0
    pairs: list[PairView] = field(default_factory=list)
    blind: bool = False  # the steps of the PRM's pick are scored as well without its image


def problem_views(run: Path, count: int) -> dict[str, list[ProblemView]]:
    """Kind → problems of one run: half from the test, the rest preference pairs and step labels.

    Problems with right and wrong answers come first, and of those the ones where PRM and majority disagree: the page
    is for looking closely, not a sample to estimate from.
    """
    arm = next((a for a in ("mpo", "policy") if _finished(run / "test" / a / "scored")), None)
    folders = {
        "test": run / "test" / arm / "scored" if arm else None,
        "pairs": run / "preference" / "scored",
        "labels": run / "prm_labelled",
    }
    present = {kind: folder for kind, folder in folders.items() if folder and _finished(folder)}
    shares = {"test": math.ceil(count / 2), "pairs": math.ceil(count / 3), "labels": max(1, count // 6)}
    views: dict[str, list[ProblemView]] = {}
    left = count
    for position, (kind, folder) in enumerate(present.items(), start=1):
        room = left if position == len(present) else min(shares[kind], left)
        pairs = read_pairs(run) if kind == "pairs" else {}
        groups = [with_votes(group) for group in read_groups(folder) if kind != "pairs" or group.problem.id in pairs]
        blind = {group.problem.id for group in groups if _blind(group)}
        views[kind] = [
            _problem(group, kind, pairs=pairs.get(group.problem.id, []), blind=group.problem.id in blind)
            for group in _telling(groups, room, blind)
        ]
        left -= len(views[kind])
    return {kind: found for kind, found in views.items() if found}


def _finished(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def _telling(groups: Sequence[RolloutGroup], count: int, blind: Collection[str] = ()) -> list[RolloutGroup]:
    """The `count` problems that show most, by kind in turn and in file order within a kind."""
    kinds: defaultdict[tuple[bool, ...], list[RolloutGroup]] = defaultdict(list)
    for group in groups:
        if group.rollouts:
            verdicts = {rollout.verdict is Verdict.CORRECT for rollout in group.rollouts}
            top_right = group.rollouts[_top(group)].verdict is Verdict.CORRECT
            kinds[len(verdicts) < 2, not _disagrees(group), not top_right, group.problem.id in blind].append(group)
    rounds = itertools.zip_longest(*(kinds[key] for key in sorted(kinds) if not key[0]))
    mixed = [group for turn in rounds for group in turn if group is not None]
    uniform = [group for key in sorted(kinds) if key[0] for group in kinds[key]]
    keep = count - min(len(uniform), count // 6)  # a few that are all right or all wrong
    return [*mixed[:keep], *uniform][:count]


def _top(group: RolloutGroup) -> int:
    """Best reward first, unscored last, the lowest index among equals."""
    rewards = [_reward(rollout) for rollout in group.rollouts]
    return rewards.index(max(rewards))


def _reward(rollout: Rollout) -> float:
    return -math.inf if rollout.reward is None else rollout.reward


def _disagrees(group: RolloutGroup) -> bool:
    """Whether the PRM's pick and the majority answer differently."""
    if all(rollout.reward is None for rollout in group.rollouts):
        return False
    votes = votes_of(group)
    return votes[_top(group)] != votes[majority(group)]


def _blind(group: RolloutGroup) -> bool:
    """Whether the best-rewarded response loses (almost) nothing with a blank or another image."""
    value = visual_dependence(group.rollouts[_top(group)]) if group.rollouts else None
    return value is not None and value < LEAST_DROP


def _problem(group: RolloutGroup, kind: str, *, pairs: Sequence[PairTexts], blind: bool) -> ProblemView:
    problem, badges = group.problem, _badges(group)
    copies: dict[str, list[Rollout]] = {}
    for rollout in group.rollouts:
        copies.setdefault(rollout.completion.text, []).append(rollout)
    ordered = sorted(copies.values(), key=lambda same: -_reward(same[0]))
    pictures, missing = pictures_of(problem)
    paired = {text for pair in pairs for text in (pair.chosen, pair.rejected)}
    alone = [same for same in ordered if same[0].completion.text not in paired]
    responses = [_response(same, badges) for same in alone]
    room = 0 if pairs else SHOWN
    shown = [r for rank, r in enumerate(responses) if rank < room or r.badges]
    return ProblemView(
        identifier=_clipped(problem.id, LONGEST_LINE),
        kind=kind,
        question=_clipped(problem.question),
        answer=_clipped(problem.answer, LONGEST_LINE) if problem.answer is not None else None,
        pictures=pictures,
        shown=shown,
        folded=[response for response in responses if response not in shown],
        top=VERDICTS[ordered[0][0].verdict][0] if ordered[0][0].reward is not None else "none",
        disagrees=_disagrees(group),
        missing_pictures=missing,
        pairs=[_pair(pair, number, copies, badges) for number, pair in enumerate(pairs, start=1)],
        blind=blind,
    )


def _badges(group: RolloutGroup) -> dict[str, list[str]]:
    """Text → what it was picked for."""
    badges: defaultdict[str, list[str]] = defaultdict(list)
    if any(rollout.reward is not None for rollout in group.rollouts):
        badges[group.rollouts[_top(group)].completion.text].append("PRM’s pick")
        badges[group.rollouts[majority(group)].completion.text].append("majority’s answer")
    return badges


def _pair(
    pair: PairTexts, number: int, copies: Mapping[str, list[Rollout]], badges: Mapping[str, list[str]]
) -> PairView:
    """Both sides, with the step at which they part marked; a side that was never sampled has no verdict or score."""
    step = first_difference(pair.chosen, pair.rejected)
    chosen, rejected = (
        _response(
            copies.get(text, [Rollout(Completion(text))]),
            {text: [f"{side} in pair {number}", *badges.get(text, [])]},
            differs=step,
            span=span,
        )
        for side, text, span in (("chosen", pair.chosen, None), ("rejected", pair.rejected, pair.rejected_span))
    )
    why = f"Rule {pair.source.replace('_', ' ')}: {chosen.mark} over {rejected.mark}"
    if chosen.reward is not None and rejected.reward is not None:
        why += f", reward margin {chosen.reward - rejected.reward:+.2f}".replace("-", "−")
    if pair.rejected_span is not None:
        start, end = pair.rejected_span
        why += f"; {end - start} of {len(pair.rejected)} rejected characters carried the gradient"
    return PairView(printable(why), chosen, rejected)


def _response(
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
        return [StepView(_clipped(text))]
    views = []
    dependences = step_dependence(rollout)
    for index, step in enumerate(steps):
        score = scores[index] if scores else values[index] if values else None
        views.append(
            StepView(
                text=_clipped(step.text),
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
        return ((_clipped(step.text), start < end),)
    pieces = ((text[first:start], False), (text[start:end], True), (text[end:last], False))
    return tuple((printable(piece), inside) for piece, inside in pieces if piece)


def _clipped(text: str, longest: int = LONGEST_STEP) -> str:
    return printable(text if len(text) <= longest else text[:longest] + " […]")
