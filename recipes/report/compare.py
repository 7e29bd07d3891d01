"""`mpo report A B`: two runs on the test problems that they share, as paired differences B − A.

Two runs may have been tested on different problems. Only those are compared that both have, with the same question and
answer; how many were left out, and on which side, is said first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.text import Text

from mpo.multimodal.errors import DataError
from mpo.multimodal.text import one_line
from recipes.report.measures import Measure
from recipes.report.summary import LARGEST_CLAIM_K, arm_names, curves_of_arm, label, measures_of_arm, runs_of
from recipes.stage.folder import MANIFEST
from recipes.stage.groups import problems_of, read_problems
from recipes.stage.numbers import Header, Rows, percent, rich_table, signed
from rewards.statistics import Difference, paired_difference

SELECTORS = {
    "prm": "PRM best",
    "lower_bound": "PRM lower bound",
    "weighted_vote": "vote by reward",
    "vote_prod": "vote by product",
    "majority": "majority",
    "oracle": "oracle",
}
HOW = {"sampled": "sampled", "greedy": "greedy", "swapped": "another image"}
Key = tuple[str, str, int]  # arm, quantity, k; 0 where nothing is chosen


@dataclass(frozen=True)
class Compared:
    """One quantity of one arm in both runs, on the shared problems."""

    arm: str
    what: str
    means: tuple[float, float]
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        names: of the two folders.
        shared: test problems that both have.
        left_out: what one side has alone, or what differs under the same id, in words; empty if nothing does.
        rows: what could be compared.
    """

    names: tuple[str, str]
    shared: int
    left_out: str
    rows: list[Compared]

    def tables(self) -> Iterator[tuple[str, Header, Rows]]:
        """A table per arm, with a row per quantity, in per cent and percentage points."""
        header = ["responses", "A", "B", "B − A", "verdict"]
        for arm in dict.fromkeys(row.arm for row in self.rows):
            own = [row for row in self.rows if row.arm == arm]
            yield (
                arm,
                header,
                [[r.what, *map(percent, r.means), signed(vars(r.difference)), r.difference.verdict] for r in own],
            )


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Compare two run or evidence folders; a side with several seeds is averaged over them first.

    Raises:
        StageError: a folder holds no test results.
        DataError: the two share no test problem, or nothing was measured in both.
    """
    sides = [_measures(Path(folder)) for folder in (a, b)]
    shared_ks = set.intersection(*({k for _, _, k in side} for side in sides)) - {0}
    most = max((k for k in shared_ks if k <= LARGEST_CLAIM_K), default=0)
    problems = [_problems(Path(folder)) for folder in (a, b)]
    ids = [{i for measure in side.values() for i in measure.averaged()} for side in sides]
    both = ids[0] & ids[1]
    other = {i for i in both if i in problems[0] and i in problems[1] and problems[0][i] != problems[1][i]}
    shared = both - other
    if not shared:
        raise DataError(
            f"{a} and {b} share no test problem: expected the same ids, questions and answers in both; "
            f"{len(ids[0])} and {len(ids[1])} problems, {len(other)} with the same id but another question or answer"
        )
    keys = [key for key in sides[0] if key in sides[1] and key[2] in (0, most)]
    found = [_compared(key, sides[0][key], sides[1][key], shared) for key in keys]
    rows = [row for row in found if row]
    if not rows:
        raise DataError(f"nothing was measured in both {a} and {b}: expected an arm that both have")
    names = (one_line(Path(a).resolve().name), one_line(Path(b).resolve().name))
    return Comparison(names, len(shared), _left_out(len(ids[0] - both), len(ids[1] - both), len(other)), rows)


def print_comparison(found: Comparison, *, console: Console | None = None) -> None:
    """The table, and before it what could not be compared."""
    console = console or Console()
    if found.left_out:
        console.print(Text(f"The test problems differ: {found.left_out}."))
    console.print(Text(f"A = {found.names[0]}, B = {found.names[1]}, {found.shared} shared test problems"))
    for arm, header, rows in found.tables():
        console.print(rich_table(arm, header, rows))


def _left_out(only_a: int, only_b: int, other: int) -> str:
    parts = [
        f"{number} {'is' if number == 1 else 'are'} {what}"
        for number, what in (
            (only_a, "only in A"),
            (only_b, "only in B"),
            (other, "in both with another question or answer"),
        )
        if number
    ]
    return ", ".join(parts) + "; they are left out" if parts else ""


def _measures(folder: Path) -> dict[Key, Measure]:
    """How each arm answers, and what each selector makes of k of its responses."""
    runs = runs_of(folder)
    found: dict[Key, Measure] = {}
    for arm in arm_names(runs):
        measures = measures_of_arm(runs, arm)
        found |= {(arm, text, 0): measures[name] for name, text in HOW.items() if name in measures}
        curves = curves_of_arm(runs, arm)
        for selector in SELECTORS:
            name = SELECTORS[selector]
            found |= {(arm, name, int(k)): measure for k, measure in curves.get(selector, {}).items()}
    return found


def _problems(folder: Path) -> dict[str, tuple[str, Any]]:
    """Test problem id → its question and answer."""
    found: dict[str, tuple[str, Any]] = {}
    for run in runs_of(folder):
        for manifest in sorted((run / "test").glob(f"*/*/{MANIFEST}")):
            try:
                problems = read_problems(problems_of(manifest.parent), on_bad=lambda *_: None)
            except (DataError, OSError):
                continue
            found |= {i: (problem.question, problem.answer) for i, problem in problems.items()}
            break
    return found


def _compared(key: Key, a: Measure, b: Measure, shared: Collection[str]) -> Compared | None:
    sides: list[Mapping[str, float]] = [a.averaged(), b.averaged()]
    ids = [identifier for identifier in sides[0] if identifier in shared and identifier in sides[1]]
    if not ids:
        return None
    before, after = ([side[identifier] for identifier in ids] for side in sides)
    arm, what, k = key
    return Compared(
        label(arm), f"{what} of {k}" if k else what, (fmean(before), fmean(after)), paired_difference(after, before)
    )
