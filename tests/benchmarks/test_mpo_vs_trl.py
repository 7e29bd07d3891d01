"""`benchmarks/mpo_vs_trl.py` on tiny shapes: the same work reaches every arm's model, and every figure is printed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_all_arms_on_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four pairs of 2 x 2 responses, P = 169, R = 8; TRL reads 2 · 4 rows of P + R twice, ours P − 1 + 4 · (R + 1)."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import mpo_vs_trl

    def here(command: list[str], arm: str) -> dict[str, Any]:  # a process for each would import everything four times
        args = argparse.Namespace(
            worker=arm,
            shape="tiny",
            tiles=3,
            response=8,
            steps=2,
            right=2,
            wrong=2,
            frozen_vision=False,
            checkpointing=False,
        )
        return mpo_vs_trl._run(args)

    monkeypatch.setattr(mpo_vs_trl, "_in_a_process", here)
    out = tmp_path / "figures.json"
    mpo_vs_trl.main(["--tiny", "--right", "2", "--wrong", "2", "--out", str(out)])
    runs = {arm: run for arm, (run,) in json.loads(out.read_text())["runs"].items()}
    prompt = runs["trl"]["prompt"]
    paired, shared = 8 * (prompt + 8 + 1), prompt - 1 + 4 * 9  # TRL keeps the newline behind the end of turn
    tokens = {"trl": 2 * paired, "trl_by_pair": 2 * paired, "online": 2 * shared, "cached": shared}
    assert {arm: run["tokens"] for arm, run in runs.items()} == tokens
    assert {arm: run["tiles"] / 3 for arm, run in runs.items()} == {
        "trl": 16,
        "trl_by_pair": 16,
        "online": 2,
        "cached": 1,
    }
    assert all(len(run["seconds"]) == len(run["collated"]) == 1 for run in runs.values())
    assert len(runs["cached"]["filling"]) == 3  # of four batches, the first is not timed
    assert not runs["online"]["filling"]
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("Filling the cache", "faster than trl_by_pair"))
