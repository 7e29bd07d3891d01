"""The corpus: every row's verdict, and false negatives and false positives by verifier and kind."""

from __future__ import annotations

from collections import Counter

import pytest

from rewards.types import Problem, Verdict
from rewards.verifying.auto import AutoVerifier
from rewards.verifying.math_verifier import MathVerifier
from rewards.verifying.verification import VERIFIERS, verify_many
from tests.rewards.verifying.corpus import Row, rows

ROWS = list(rows())


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    found: dict[int, Verdict] = {}
    with MathVerifier() as math:
        of_math = {"math": math, "auto": AutoVerifier(math=math), "auto_rounded": AutoVerifier(math=math, rounded=True)}
        for name, verifier in {**VERIFIERS, **of_math}.items():
            places = [place for place, row in enumerate(ROWS) if row.verifier == name]
            asked = [(problem_of(place), ROWS[place].response) for place in places]
            found |= dict(zip(places, verify_many(verifier, asked), strict=True))
    return [found[place] for place in range(len(ROWS))]


def problem_of(place: int) -> Problem:
    row: Row = ROWS[place]
    return Problem(str(place), "?", answer=row.reference, meta={"choices": row.choices} if row.choices else {})


def test_every_row(verdicts: list[Verdict]) -> None:
    """A plainly wrong answer may be unparsable in a phrase, never correct; everything else is met exactly."""
    pairs = zip(ROWS, verdicts, strict=True)
    assert [(row, str(verdict)) for row, verdict in pairs if str(verdict) != row.verdict] == []


def test_it_is_a_corpus() -> None:
    assert len(ROWS) >= 600
    assert len(set(map(repr, ROWS))) == len(ROWS)
    assert {row.verifier for row in ROWS} == set(VERIFIERS)
    assert sum(row.verdict != "correct" for row in ROWS) >= 250


def test_both_tables_are_printed(verdicts: list[Verdict], capsys: pytest.CaptureFixture[str]) -> None:
    """False negative: a right answer without `correct`. False positive: any other answer with it. There are none."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for row, verdict in zip(ROWS, verdicts, strict=True):
        kind = row.kind.split(": ")[-1] if row.kind.startswith(row.verifier) else row.kind
        count = counts.setdefault((row.verifier, kind), Counter())
        count["right" if row.verdict == "correct" else "other"] += 1
        count["missed"] += row.verdict == "correct" != str(verdict)
        count["false alarm"] += row.verdict != "correct" == str(verdict)
    with capsys.disabled():
        print(f"\ncorpus: {len(ROWS)} rows")
        for (verifier, kind), count in sorted(counts.items()):
            print(
                f"  {verifier:8} {kind:32} false negatives {count['missed']:3} of {count['right']:3}"
                f"   false positives {count['false alarm']:3} of {count['other']:3}"
            )
    assert sum(count["missed"] for count in counts.values()) == 0
    assert sum(count["false alarm"] for count in counts.values()) == 0
