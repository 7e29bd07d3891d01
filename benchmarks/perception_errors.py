"""Perception against reasoning errors on the digits world, where the truth is known.

The world's own rules (`mpo label-exact`) say which step of an answer is the first wrong one, and its wording says what
it got wrong: "See Red 7" is perception, "Now 12" and "Final answer: 2" are reasoning. A step of any other shape counts
as neither. Compared is what `rewards.visual_dependence` says of the same steps, where the PRM scores them low at all.

    mpo score --groups RUN/test/mpo/verified --prm RUN/prm --out RUN/looked --visual_dependence true
    python benchmarks/perception_errors.py RUN/looked  # several folders are counted together
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from rich.console import Console

from recipes.digits.truth import step_truth
from recipes.groups import read_groups
from recipes.tables import change, percent, rich_table
from rewards.prm.metrics import auc
from rewards.splitting import split_on_blank_lines
from rewards.types import Problem, Rollout
from rewards.visual_dependence import LOW_SCORE, MARGIN, ErrorKind, dependence, first_error, step_dependence

KINDS = {
    ErrorKind.PERCEPTION: re.compile(r"(Check: )?(See|Read|Find) \w+ \d$"),
    ErrorKind.REASONING: re.compile(r"(Now|Final answer:) "),
}


@dataclass
class Counts:
    """What is known of the answers so far; `steps` and `moves` keep one entry a step."""

    steps: defaultdict[tuple[str, ErrorKind], list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )  # (state, kind) → (score, dependence)
    called: Counter[tuple[ErrorKind, ErrorKind]] = field(default_factory=Counter)  # (truth, what it is called)
    moves: list[tuple[float, bool]] = field(default_factory=list)  # (larger |dependence|, is perception)
    low: Counter[str] = field(default_factory=Counter)  # where the first low step of a wrong answer stands


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="groups scored with --visual_dependence true")
    counts = Counts()
    for group in (group for folder in parser.parse_args().folders for group in read_groups(folder)):
        for rollout in group.rollouts:
            _count(group.problem, rollout, counts)
    _print(counts)


def _count(problem: Problem, rollout: Rollout, counts: Counts) -> None:
    texts = [step.text.strip() for step in split_on_blank_lines(rollout.completion.text)]
    falls = step_dependence(rollout)
    if falls is None or rollout.step_scores is None or len(falls) != len(texts):  # not scored, or steps merged
        return
    truth = step_truth(problem, texts)
    wrong = truth.index(False) if False in truth else None
    for index, right in enumerate(truth):
        kind = _kind(texts[index])
        if kind and (right or index == wrong):
            state = "right" if right else "first wrong"
            counts.steps[state, kind].append((rollout.step_scores.values[index], falls[index]))
    if wrong is None:
        return
    found = first_error(rollout)
    counts.low[_place(found[0] if found else None, wrong)] += 1
    kind = _kind(texts[wrong])
    if found and found[0] == wrong and kind:
        counts.called[kind, found[1]] += 1
        sides = (dependence(rollout, "blank"), dependence(rollout, "swapped"))
        largest = max(abs(side.steps[wrong]) for side in sides if side)
        counts.moves.append((largest, kind is ErrorKind.PERCEPTION))


def _place(low: int | None, wrong: int) -> str:
    if low is None:
        return "nowhere"
    return "at it" if low == wrong else "before it" if low < wrong else "after it"


def _kind(text: str) -> ErrorKind | None:
    return next((kind for kind, shape in KINDS.items() if shape.match(text)), None)


def _print(counts: Counts) -> None:
    console = Console(width=110)
    rows = [
        [f"{state}, {kind.value}", str(len(own)), f"{mean(s for s, _ in own):.2f}", change(mean(d for _, d in own))]
        for (state, kind), own in sorted(counts.steps.items())
    ]
    console.print(rich_table("Steps", ["", "steps", "mean score", "mean dependence"], rows))
    about = [(fall, kind is ErrorKind.PERCEPTION) for kind in ErrorKind for _, fall in counts.steps["right", kind]]
    console.print(f"AUC of dependence, right steps of perception above right steps of reasoning: {_auc(about)}")
    rows = []
    for truth in ErrorKind:
        own = {kind: counts.called[truth, kind] for kind in ErrorKind}
        share = percent(own[truth] / sum(own.values())) if any(own.values()) else "–"
        rows.append([f"truly {truth.value}", *map(str, own.values()), share])
    header = ["", *(f"called {kind.value}" for kind in ErrorKind), "called so, %"]
    console.print(rich_table(f"First wrong steps that are the first below {LOW_SCORE}; margin {MARGIN}", header, rows))
    console.print(f"AUC of the larger |dependence|, perception above reasoning errors: {_auc(counts.moves)}")
    places = ", ".join(f"{place} {number}" for place, number in sorted(counts.low.items()))
    console.print(f"The first low step of an answer with a wrong step: {places}")


def _auc(rows: list[tuple[float, bool]]) -> str:
    area = auc([value for value, _ in rows], [positive for _, positive in rows])
    return "–" if area is None else f"{area:.3f}"


if __name__ == "__main__":
    main()
