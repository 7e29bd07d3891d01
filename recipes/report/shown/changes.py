"""What MPO changed: the same problem answered before and after, counted as fixed, broken, kept right and kept wrong.

The two responses are the greedy ones and, where the samples are scored, the PRM's picks. A response whose answer could
not be read is not right; a problem of which a response could not be checked is in no cell and counted apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from recipes.stage.folder import MANIFEST
from recipes.stage.groups import read_groups
from rewards.statistics import mcnemar_test
from rewards.types import Problem, Rollout, RolloutGroup, Verdict

GREEDY, PICK = "greedy response", "PRM’s pick"
KINDS = {(True, True): "kept right", (False, True): "fixed", (True, False): "broken", (False, False): "kept wrong"}
ORDER = ("fixed", "broken", "kept wrong", "kept right")  # in which a reader wants to see them
Responses = dict[str, tuple[Problem, Rollout]]  # problem id → its problem and one response
UNCHECKED = (None, Verdict.TIMEOUT, Verdict.ERROR)


@dataclass(frozen=True)
class Changed:
    """One problem before and after; `kind` is None if a response could not be checked."""

    problem: Problem
    before: Rollout
    after: Rollout

    @property
    def kind(self) -> str | None:
        """A value of `KINDS`."""
        verdicts = (self.before.verdict, self.after.verdict)
        if any(verdict in UNCHECKED for verdict in verdicts):
            return None
        before, after = (verdict is Verdict.CORRECT for verdict in verdicts)
        return KINDS[before, after]


@dataclass(frozen=True)
class Changes:
    """The 2×2 table of one kind of response in one run.

    Attributes:
        seed: name of the run.
        of: which response of a problem.
        counts: problems by `KINDS`.
        unchecked: problems in no cell.
        no_answer: before and after, responses whose answer could not be read; they are not right.
        p: of the exact McNemar test, two-sided.
    """

    seed: str
    of: str
    counts: Mapping[str, int]
    unchecked: int
    no_answer: tuple[int, int]
    p: float

    @property
    def verdict(self) -> str:
        """Whether the run shows that more problems were fixed than broken."""
        if self.p > 0.05:
            return "not shown"
        return "more fixed" if self.counts["fixed"] > self.counts["broken"] else "more broken"


def change_tables(runs: Sequence[Path], *, before: str, after: str) -> list[Changes]:
    """A table per seed and kind of response; none where an arm lacks it.

    Args:
        runs: one per seed.
        before, after: arms.
    """
    tables = []
    for of, run in itertools.product((GREEDY, PICK), runs):
        if found := changed(run, of, before=before, after=after):
            counts = {kind: sum(one.kind == kind for one in found) for kind in KINDS.values()}
            unread = [sum(side.verdict is Verdict.UNPARSABLE for side in sides) for sides in _sides(found)]
            p = mcnemar_test(counts["fixed"], counts["broken"])
            unchecked = len(found) - sum(counts.values())
            tables.append(Changes(run.name, of, counts, unchecked, (unread[0], unread[1]), p))
    return tables


def changed(run: Path, of: str, *, before: str, after: str) -> list[Changed]:
    """The problems that both arms answered, in file order."""
    sides = [_responses(run / "test" / arm, of) for arm in (before, after)]
    return [
        Changed(problem, rollout, sides[1][identifier][1])
        for identifier, (problem, rollout) in sides[0].items()
        if identifier in sides[1]
    ]


def telling(found: Sequence[Changed], count: int) -> list[Changed]:
    """`count` of them: fixed and broken ones in turn, then kept wrong, then kept right."""
    by_kind = {kind: [one for one in found if one.kind == kind] for kind in ORDER}
    turns = itertools.zip_longest(by_kind["fixed"], by_kind["broken"])
    moved = [one for turn in turns for one in turn if one is not None]
    return [*moved, *by_kind["kept wrong"], *by_kind["kept right"]][:count]


def top(group: RolloutGroup) -> int:
    """Best reward first, unscored last, the lowest index among equals."""
    rewards = [-math.inf if rollout.reward is None else rollout.reward for rollout in group.rollouts]
    return rewards.index(max(rewards))


def _responses(arm: Path, of: str) -> Responses:
    """Problem id → its one response of a kind."""
    files = [arm / name / "groups.jsonl" for name in ("greedy", "scored")]
    state = tuple((path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else (0, 0) for path in files)
    return _read(arm, state)[of]


@lru_cache(maxsize=8)
def _read(arm: Path, state: tuple[tuple[int, int], ...]) -> dict[str, Responses]:
    """Both kinds of response from one reading of the files, which are in this state.

    A greedy response has step scores if the same text was sampled and scored.
    """
    scored, greedy = _groups(arm / "scored"), _groups(arm / "greedy")
    same = {(i, r.completion.text): r for i, group in scored.items() for r in group.rollouts if r.step_scores}
    firsts = {i: (group.problem, group.rollouts[0]) for i, group in greedy.items()}
    return {
        GREEDY: {i: (problem, same.get((i, r.completion.text), r)) for i, (problem, r) in firsts.items()},
        PICK: {i: (group.problem, group.rollouts[top(group)]) for i, group in scored.items()},
    }


def _groups(folder: Path) -> dict[str, RolloutGroup]:
    if not (folder / MANIFEST).exists():
        return {}
    return {group.problem.id: group for group in read_groups(folder) if group.rollouts}


def _sides(found: Sequence[Changed]) -> tuple[list[Rollout], list[Rollout]]:
    return [one.before for one in found], [one.after for one in found]
