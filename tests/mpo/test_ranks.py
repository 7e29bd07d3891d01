"""Two ranks of two micro-batches make the same update as one rank of one batch (gloo, CPU)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import run_ranks
import torch
from tiny import tiny_internvl

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("reference", ["online", "cached"])
def test_ranks_do_not_matter(tmp_path: Path, reference: str) -> None:
    """One rank computes the reference as it goes; two do so too, or each computes half of a cache that both read."""
    run_ranks.main(tiny_internvl(), str(tmp_path / "one"), 4, 1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(Path(run_ranks.__file__)), tiny_internvl(), str(tmp_path / "two"), "1", "2", reference]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    one, two = (torch.load(tmp_path / name / "result.pt", weights_only=True) for name in ("one", "two"))
    assert (one["ranks"], two["ranks"]) == (1, 2)
    torch.testing.assert_close(two["weights"], one["weights"], atol=1e-6, rtol=0)
    assert two["delta"] == pytest.approx(one["delta"], abs=1e-5)
    assert one["delta"] != 0.0
    assert len(one["log"]) == len(two["log"]) == 2
    for ours, expected in zip(two["log"], one["log"], strict=True):
        assert ours == pytest.approx(expected, abs=1e-4)
