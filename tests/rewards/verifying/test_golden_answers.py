"""The golden table of answers: every row's verdict, and the rates over all rows, known misses counted."""

from __future__ import annotations

from collections import Counter

import pytest

from rewards.types import Problem, Verdict
from rewards.verifying.math_verifier import MathVerifier
from rewards.verifying.verification import VERIFIERS, verify_many
from tests.rewards.verifying.golden_answers import GOLDEN, MISSES

ALL = [*((*row, row[3], "") for row in GOLDEN), *((*row[:4], row[4] or Verdict.ERROR, row[5]) for row in MISSES)]


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    found: dict[int, Verdict] = {}
    with MathVerifier() as math:
        for name, verifier in {**VERIFIERS, "math": math}.items():
            rows = [(i, Problem(str(i), "?", answer=row[1]), row[2]) for i, row in enumerate(ALL) if row[0] == name]
            given = verify_many(verifier, [(problem, text) for _, problem, text in rows])
            found |= {i: verdict for (i, _, _), verdict in zip(rows, given, strict=True)}
    return [found[i] for i in range(len(ALL))]


def test_every_row(verdicts: list[Verdict]) -> None:
    """A row of MISSES that comes out right is as much of a surprise as one of GOLDEN that does not."""
    unexpected = [(row, str(verdict)) for row, verdict in zip(ALL, verdicts, strict=True) if verdict is not row[4]]
    assert unexpected == []
    assert all(row[3] is not row[4] and row[5] for row in MISSES)


def test_rates_are_printed(verdicts: list[Verdict], capsys: pytest.CaptureFixture[str]) -> None:
    """False negative: a right answer without `correct`. False positive: a wrong or missing answer with it."""
    assert len(GOLDEN) >= 120
    assert {row[0] for row in GOLDEN} == set(VERIFIERS)
    counts: dict[str, Counter[str]] = {name: Counter() for name in [*VERIFIERS, "all"]}
    for row, verdict in zip(ALL, verdicts, strict=True):
        right, called = row[3] is Verdict.CORRECT, verdict is Verdict.CORRECT
        kind = ("hit" if called else "missed") if right else ("false_alarm" if called else "refused")
        for name in (row[0], "all"):
            counts[name][kind] += 1
    with capsys.disabled():
        print(f"\ngolden answers: {len(GOLDEN)} rows and {len(MISSES)} known misses")
        for name, count in counts.items():
            right, wrong = count["hit"] + count["missed"], count["refused"] + count["false_alarm"]
            print(
                f"  {name:8} false negatives {count['missed']:2}/{right:<3} {count['missed'] / right:5.1%}"
                f"   false positives {count['false_alarm']:2}/{wrong:<3} {count['false_alarm'] / wrong:5.1%}"
            )
    assert counts["all"]["missed"] == sum(row[3] is Verdict.CORRECT for row in MISSES)
    assert counts["all"]["false_alarm"] == sum(row[4] is Verdict.CORRECT for row in MISSES)
