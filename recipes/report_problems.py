"""Problems with their answers, as plain data for the page: step scores, verdicts, counts, pairs. Text stays text."""

from __future__ import annotations

import base64
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mpo.multimodal.errors import ImageError
from mpo.multimodal.images import load_image, png_bytes
from recipes.groups import read_groups
from recipes.run import MANIFEST
from rewards.answers import canonical_answer
from rewards.degeneration import degenerate
from rewards.errors import StepAlignmentError
from rewards.interchange.trl_rows import read_trl_parquet
from rewards.label_source import counts_estimate_mc
from rewards.selection import majority
from rewards.splitting import split_into, split_on_blank_lines
from rewards.types import Problem, Rollout, RolloutGroup, Verdict

LONGEST_SIDE = 384  # pixels of a picture on the page
LONGEST_STEP = 4000  # characters of a step on the page
SHOWN = 4  # answers a problem that are not folded away; those with a badge never are
BINS = 10  # colours of the score scale: 0 … 10

_OVERRIDES = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # they reorder what is read

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
    """One step: its score and the scale's bin, its Monte-Carlo count, whether a pair first differs here."""

    text: str
    score: float | None = None
    bin: int | None = None
    count: str | None = None
    differs: bool = False


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


@dataclass(frozen=True)
class ProblemView:
    """One problem on the page; `top` is the verdict of the best-rewarded answer, "none" without rewards."""

    identifier: str
    kind: str
    question: str
    answer: str | None
    pictures: list[tuple[str, int]]
    shown: list[ResponseView]
    folded: list[ResponseView]
    top: str
    disagrees: bool
    missing_pictures: int = 0


@dataclass
class _Marks:
    """Text → badges, and text → the step at which it leaves its partner."""

    badges: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    differs: dict[str, int] = field(default_factory=dict)


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
        pairs = _pairs(run / "pairs" / "pairs.parquet") if kind == "pairs" else {}
        groups = [group for group in read_groups(folder) if kind != "pairs" or group.problem.id in pairs]
        views[kind] = [_problem(g, kind, pairs.get(g.problem.id, [])) for g in _telling(groups, room)]
        left -= len(views[kind])
    return {kind: found for kind, found in views.items() if found}


def picture_uri(image: Image.Image) -> str:
    """The picture, re-encoded and at most `LONGEST_SIDE` pixels wide or high, as a data URI."""
    image = image.copy()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def printable(text: str) -> str:
    """Control and direction-override characters as visible symbols, broken surrogates replaced; newlines, tabs stay."""
    return "".join(map(_symbol, text)).encode("utf-8", "replace").decode("utf-8")


def _symbol(character: str) -> str:
    code = ord(character)
    if code < 32 and character not in "\n\t":
        return chr(0x2400 + code)
    if code == 127:
        return "\u2421"
    return "\ufffd" if character in _OVERRIDES or 127 < code < 160 else character


def _finished(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def _telling(groups: Sequence[RolloutGroup], count: int) -> list[RolloutGroup]:
    """The `count` problems that show most, by kind in turn and in file order within a kind."""
    kinds: defaultdict[tuple[bool, bool, bool], list[RolloutGroup]] = defaultdict(list)
    for group in groups:
        if group.rollouts:
            verdicts = {rollout.verdict is Verdict.CORRECT for rollout in group.rollouts}
            top_right = group.rollouts[_top(group)].verdict is Verdict.CORRECT
            kinds[len(verdicts) < 2, not _disagrees(group), not top_right].append(group)
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
    answers = [
        canonical_answer(group.rollouts[i].completion.text) for i in (_top(group), majority(group, canonical_answer))
    ]
    return answers[0] != answers[1]


def _problem(group: RolloutGroup, kind: str, pairs: Sequence[tuple[str, str]]) -> ProblemView:
    problem, marks = group.problem, _marks(group, pairs)
    copies: dict[str, list[Rollout]] = {}
    for rollout in group.rollouts:
        copies.setdefault(rollout.completion.text, []).append(rollout)
    ordered = sorted(copies.values(), key=lambda same: -_reward(same[0]))
    pictures, missing = _pictures(problem)
    responses = [_response(same[0], len(same), marks) for same in ordered]
    shown = [r for rank, r in enumerate(responses) if rank < SHOWN or r.badges]
    return ProblemView(
        identifier=printable(problem.id),
        kind=kind,
        question=printable(problem.question),
        answer=printable(problem.answer) if problem.answer is not None else None,
        pictures=pictures,
        shown=shown,
        folded=[response for response in responses if response not in shown],
        top=VERDICTS[ordered[0][0].verdict][0] if ordered[0][0].reward is not None else "none",
        disagrees=_disagrees(group),
        missing_pictures=missing,
    )


def _pictures(problem: Problem) -> tuple[list[tuple[str, int]], int]:
    """Data URIs with the width in pixels at which to show them, and how many pictures could not be read."""
    found = []
    for source in problem.images:
        try:
            image = load_image(source)
        except ImageError:
            continue
        enlarge = max(1, min(6, 320 // max(image.size)))
        found.append((picture_uri(image), min(image.width, LONGEST_SIDE) * enlarge))
    return found, len(problem.images) - len(found)


def _marks(group: RolloutGroup, pairs: Sequence[tuple[str, str]]) -> _Marks:
    marks = _Marks()
    if any(rollout.reward is not None for rollout in group.rollouts):
        marks.badges[group.rollouts[_top(group)].completion.text].append("PRM’s pick")
        marks.badges[group.rollouts[majority(group, canonical_answer)].completion.text].append("majority’s answer")
    for number, (chosen, rejected) in enumerate(pairs, start=1):
        step = _first_difference(chosen, rejected)
        for side, text in (("chosen", chosen), ("rejected", rejected)):
            marks.badges[text].append(f"{side} in pair {number}")
            marks.differs.setdefault(text, step)
    return marks


def _first_difference(a: str, b: str) -> int:
    steps = zip(_texts(a), _texts(b), strict=False)
    return next((i for i, (x, y) in enumerate(steps) if x != y), min(len(_texts(a)), len(_texts(b))))


def _texts(text: str) -> list[str]:
    return [step.text for step in split_on_blank_lines(text)] if text.strip() else []


def _response(rollout: Rollout, copies: int, marks: _Marks) -> ResponseView:
    text = rollout.completion.text
    verdict, mark = VERDICTS[rollout.verdict]
    trouble = degenerate(rollout.completion)
    steps = _steps(rollout, marks.differs.get(text))
    return ResponseView(steps, rollout.reward, verdict, mark, copies, marks.badges.get(text, []), trouble)


def _steps(rollout: Rollout, differs: int | None) -> list[StepView]:
    """Steps as they were scored or counted; where neither fits the text, the text as one step.

    A count that does not estimate mc is shaded by its hard label.
    """
    text = rollout.completion.text
    scores = rollout.step_scores.values if rollout.step_scores else ()
    counts = [f"{count.correct}/{count.total}" for count in rollout.mc or ()]
    estimates = counts_estimate_mc(rollout.label_source)
    values = [count.value if estimates else float(count.correct > 0) for count in rollout.mc or ()]
    if not text.strip():
        return [StepView("(empty)")]
    number = len(scores) or len(counts)
    whole = split_on_blank_lines(text)
    try:
        steps = split_into(text, number) if number else whole
    except StepAlignmentError:
        return [StepView(_clipped(text))]
    views = []
    for index, step in enumerate(steps):
        score = scores[index] if scores else values[index] if values else None
        views.append(
            StepView(
                text=_clipped(step.text),
                score=score,
                bin=None if score is None else round(score * BINS),
                count=counts[index] if index < len(counts) else None,
                differs=differs is not None and len(steps) == len(whole) and index == differs,
            )
        )
    return views


def _clipped(text: str) -> str:
    return printable(text if len(text) <= LONGEST_STEP else text[:LONGEST_STEP] + " […]")


def _pairs(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Problem id → (chosen, rejected) texts, in file order."""
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    if path.exists():
        for row in read_trl_parquet(path).select_columns(["problem_id", "chosen", "rejected"]):
            found[row["problem_id"]].append((_text_of(row["chosen"]), _text_of(row["rejected"])))
    return found


def _text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    return "".join(block["text"] for message in messages for block in message["content"] if block["text"] is not None)
