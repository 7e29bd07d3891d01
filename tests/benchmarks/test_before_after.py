"""`benchmarks/before_after.py` on this checkout twice, tiny: seconds and a verdict on the results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_two_checkouts_are_compared() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "before_after.py"), str(ROOT), str(ROOT)]
    tiny = ["--tiny", "--rounds", "1", "--part", "rendering"]
    done = subprocess.run([*command, *tiny], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = done.stdout.splitlines()
    assert first.startswith("rendering: before ")
    assert second == "  rows: equal"


def test_another_result_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import before_after
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    run = {"seconds": 2.0, "results": {"texts": "a", "weights": "b"}}
    other = {"seconds": 1.0, "results": {"texts": "a", "weights": "c"}}
    before_after._print("loop", {"old": [run], "new": [other]})
    assert capsys.readouterr().out.splitlines() == [
        "loop: before 2.00; now 1.00 CPU seconds; 2.00x", "  texts: equal", "  weights: NOT equal",
    ]  # fmt: skip
