"""Problems with their answers, as plain data for the page: step scores, verdicts, counts, pairs. Text stays text."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mpo.multimodal.text import printable
from recipes.report.breakdown import kinds_of, verifier_of
from recipes.report.shown.changes import GREEDY, PICK, Changed, changed, telling, top
from recipes.report.shown.pairs import PairTexts, first_difference, read_pairs
from recipes.report.shown.pictures import Picture, pictures_of
from recipes.report.shown.responses import VERDICTS, ResponseView, clipped, response_view
from recipes.report.summary import BASELINE, TRAINED, label
from recipes.stage.folder import MANIFEST
from recipes.stage.groups import read_groups
from rewards.choosing.selection import majority
from rewards.choosing.selector_warnings import LEAST_DROP
from rewards.scoring.visual_dependence import visual_dependence
from rewards.types import Completion, Rollout, RolloutGroup, Verdict
from rewards.verifying.equality_classes import votes_of, with_votes

LONGEST_LINE = 400  # characters of an answer or id
SHOWN = 4  # answers per problem that are not folded away; those with a badge never are


@dataclass(frozen=True)
class PairView:
    """Two responses side by side, and what they are: chosen over rejected, or before and after."""

    why: str
    chosen: ResponseView
    rejected: ResponseView


@dataclass(frozen=True)
class ProblemView:
    """One problem on the page.

    Attributes:
        anchor: the `id` of its card.
        top: the verdict of the best-rewarded answer, "none" without rewards; of a change, of the later response.
        whose: whose responses are shown.
        before: the responses of the policy before MPO to the same problem.
        change: fixed, broken, kept right or kept wrong; empty where nothing is compared.
        kinds: source, kind and verifier, where they are known.
    """

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
    anchor: str = ""
    whose: str = ""
    before: list[ResponseView] = field(default_factory=list)
    change: str = ""
    kinds: Mapping[str, str] = field(default_factory=dict)
    blind: bool = False  # the steps of the PRM's pick are scored as well without its image


def problem_views(run: Path, count: int) -> dict[str, list[ProblemView]]:
    """Kind → problems of one run: what MPO changed, test problems with all responses, preference pairs, step labels.

    Problems that MPO fixed or broke come first, then those with right and wrong answers, and of those the ones where
    PRM and majority disagree: the page is for looking closely, not a sample to estimate from.
    """
    arms = [arm for arm in (TRAINED, BASELINE) if _finished(run / "test" / arm / "scored")]
    folders = {
        "test": run / "test" / arms[0] / "scored" if arms else None,
        "pairs": run / "preference" / "scored",
        "labels": run / "prm_labelled",
    }
    present = {kind: folder for kind, folder in folders.items() if folder and _finished(folder)}
    shares = {"test": math.ceil(count / 3), "pairs": math.ceil(count / 4), "labels": max(1, count // 6)}
    verifier = verifier_of(run, arms[0]) if arms else ""
    views = {"changes": _change_views(run, max(1, count // 4) if present else count, verifier)}
    left = count - len(views["changes"])
    for position, (kind, folder) in enumerate(present.items(), start=1):
        room = left if position == len(present) else min(shares[kind], left)
        pairs = read_pairs(run) if kind == "pairs" else {}
        groups = [with_votes(group) for group in read_groups(folder) if kind != "pairs" or group.problem.id in pairs]
        blind = {group.problem.id for group in groups if _blind(group)}
        shown = _telling(groups, room, blind)
        before = _before(run, {group.problem.id for group in shown}) if kind == "test" and arms[0] == TRAINED else {}
        views[kind] = [
            replace(
                _problem(group, kind, pairs=pairs.get(group.problem.id, []), blind=group.problem.id in blind),
                whose=label(arms[0] if kind == "test" else BASELINE),
                before=before.get(group.problem.id, []),
                kinds=kinds_of(group.problem, verifier if kind == "test" else ""),
            )
            for group in shown
        ]
        left -= len(views[kind])
    return {kind: found for kind, found in _anchored(views).items() if found}


def _anchored(views: Mapping[str, Sequence[ProblemView]]) -> dict[str, list[ProblemView]]:
    """The views with an `anchor` each: kind and id, without what an address cannot hold, and a number if taken."""
    taken: Counter[str] = Counter()
    found: dict[str, list[ProblemView]] = {}
    for kind, listed in views.items():
        found[kind] = []
        for view in listed:
            name = re.sub(r"[^A-Za-z0-9_.]+", "-", view.identifier)[:60].strip("-") or "x"
            anchor = f"problem-{kind}-{name}"
            taken[anchor] += 1
            number = f"--{taken[anchor]}" if taken[anchor] > 1 else ""
            found[kind].append(replace(view, anchor=f"{anchor}{number}"))
    return found


def _change_views(run: Path, count: int, verifier: str) -> list[ProblemView]:
    """The same problems before and after MPO, greedy responses if there are any, else the PRM's picks."""
    kinds = ((of, changed(run, of, before=BASELINE, after=TRAINED)) for of in (GREEDY, PICK))
    of, found = next(((of, found) for of, found in kinds if found), (GREEDY, []))
    return [_change_view(one, of, verifier) for one in telling(found, count)]


def _change_view(one: Changed, of: str, verifier: str) -> ProblemView:
    badges = {BASELINE: "before", TRAINED: "after"}
    sides = [
        response_view([rollout], {rollout.completion.text: [f"{badges[arm]}: {label(arm)}, {of}"]})
        for arm, rollout in ((BASELINE, one.before), (TRAINED, one.after))
    ]
    kind = one.kind or "not checked"
    same = ", the same text" if one.before.completion.text == one.after.completion.text else ""
    pictures, missing = pictures_of(one.problem)
    return ProblemView(
        identifier=clipped(one.problem.id, LONGEST_LINE),
        kind="changes",
        question=clipped(one.problem.question),
        answer=clipped(one.problem.answer, LONGEST_LINE) if one.problem.answer is not None else None,
        pictures=pictures,
        shown=[],
        folded=[],
        top=sides[1].verdict,
        disagrees=False,
        missing_pictures=missing,
        pairs=[PairView(f"{kind.capitalize()}: {sides[0].mark} before, {sides[1].mark} after{same}", *sides)],
        whose=f"{label(BASELINE)} and {label(TRAINED)}",
        change=one.kind or "",
        kinds=kinds_of(one.problem, verifier),
    )


def _before(run: Path, ids: Collection[str]) -> dict[str, list[ResponseView]]:
    """Problem id → the sampled responses of the policy before MPO, best reward first."""
    folder = run / "test" / BASELINE / "scored"
    groups = [group for group in read_groups(folder) if group.problem.id in ids] if _finished(folder) else []
    return {group.problem.id: [response_view(same, {}) for same in _copies(group)] for group in groups}


def _copies(group: RolloutGroup) -> list[list[Rollout]]:
    """The rollouts by text, best reward first."""
    copies: dict[str, list[Rollout]] = {}
    for rollout in group.rollouts:
        copies.setdefault(rollout.completion.text, []).append(rollout)
    return sorted(copies.values(), key=lambda same: -_reward(same[0]))


def _finished(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def _telling(groups: Sequence[RolloutGroup], count: int, blind: Collection[str] = ()) -> list[RolloutGroup]:
    """The `count` problems that show most, by kind in turn and in file order within a kind."""
    kinds: defaultdict[tuple[bool, ...], list[RolloutGroup]] = defaultdict(list)
    for group in groups:
        if group.rollouts:
            verdicts = {rollout.verdict is Verdict.CORRECT for rollout in group.rollouts}
            top_right = group.rollouts[top(group)].verdict is Verdict.CORRECT
            kinds[len(verdicts) < 2, not _disagrees(group), not top_right, group.problem.id in blind].append(group)
    rounds = itertools.zip_longest(*(kinds[key] for key in sorted(kinds) if not key[0]))
    mixed = [group for turn in rounds for group in turn if group is not None]
    uniform = [group for key in sorted(kinds) if key[0] for group in kinds[key]]
    keep = count - min(len(uniform), count // 6)  # a few that are all right or all wrong
    return [*mixed[:keep], *uniform][:count]


def _reward(rollout: Rollout) -> float:
    return -math.inf if rollout.reward is None else rollout.reward


def _disagrees(group: RolloutGroup) -> bool:
    """Whether the PRM's pick and the majority answer differently."""
    if all(rollout.reward is None for rollout in group.rollouts):
        return False
    votes = votes_of(group)
    return votes[top(group)] != votes[majority(group)]


def _blind(group: RolloutGroup) -> bool:
    """Whether the best-rewarded response loses (almost) nothing with a blank or another image."""
    value = visual_dependence(group.rollouts[top(group)]) if group.rollouts else None
    return value is not None and value < LEAST_DROP


def _problem(group: RolloutGroup, kind: str, *, pairs: Sequence[PairTexts], blind: bool) -> ProblemView:
    problem, badges = group.problem, _badges(group)
    ordered = _copies(group)
    copies = {same[0].completion.text: same for same in ordered}
    pictures, missing = pictures_of(problem)
    paired = {text for pair in pairs for text in (pair.chosen, pair.rejected)}
    alone = [same for same in ordered if same[0].completion.text not in paired]
    responses = [response_view(same, badges) for same in alone]
    room = 0 if pairs else SHOWN
    shown = [r for rank, r in enumerate(responses) if rank < room or r.badges]
    return ProblemView(
        identifier=clipped(problem.id, LONGEST_LINE),
        kind=kind,
        question=clipped(problem.question),
        answer=clipped(problem.answer, LONGEST_LINE) if problem.answer is not None else None,
        pictures=pictures,
        shown=shown,
        folded=[response for response in responses if response not in shown],
        top=VERDICTS[ordered[0][0].verdict][0] if ordered[0][0].reward is not None else "none",
        disagrees=_disagrees(group),
        missing_pictures=missing,
        pairs=[pair_view(pair, number, copies, badges) for number, pair in enumerate(pairs, start=1)],
        blind=blind,
    )


def _badges(group: RolloutGroup) -> dict[str, list[str]]:
    """Text → what it was picked for."""
    badges: defaultdict[str, list[str]] = defaultdict(list)
    if any(rollout.reward is not None for rollout in group.rollouts):
        badges[group.rollouts[top(group)].completion.text].append("PRM’s pick")
        badges[group.rollouts[majority(group)].completion.text].append("majority’s answer")
    return badges


def pair_view(
    pair: PairTexts, number: int, copies: Mapping[str, list[Rollout]], badges: Mapping[str, list[str]]
) -> PairView:
    """Both sides, with the step at which they part marked; a side that was never sampled has no verdict or score."""
    step = first_difference(pair.chosen, pair.rejected)
    chosen, rejected = (
        response_view(
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
