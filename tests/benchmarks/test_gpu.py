"""`benchmarks/gpu.py` on tiny shapes: every part gives its figures, and nothing in it is new to a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PEERS = {"trl, liger"}  # may not be installed


@pytest.mark.parametrize("parts", [("kernel", "tolerance", "prm", "sample", "trainer"), ("train",)])
def test_each_part_runs(tmp_path: Path, parts: tuple[str, ...]) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--out", str(out), "--part", *parts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(out.read_text())
    failed = [figure for figure in figures if "failed" in figure and not any(p in figure["what"] for p in PEERS)]
    assert not failed
    assert {figure["part"] for figure in figures} == {"machine", *parts}
    assert all(any(figure["part"] == part and figure["what"] != "part" for figure in figures) for part in parts)


def test_without_a_gpu_nothing_is_claimed(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "nothing was measured" in done.stdout
    assert not (tmp_path / "gpu.json").exists()
