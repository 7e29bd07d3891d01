"""Memory and open files stay flat, however many rows go through the store and the file formats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soak

ROOT = Path(__file__).resolve().parents[3]
SAMPLES, PAIRS = (
    20_000,
    1_000,
)  # 110 MB of images: a fifth is more than a row group, and all in a list more than the limit
LIMIT_MB = 12


@pytest.mark.timeout(600)
def test_memory_stays_flat(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, soak.__file__, str(tmp_path), str(SAMPLES), str(PAIRS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=550)
    assert done.returncode == 0, done.stderr[-2000:]
    grown = json.loads(done.stdout.splitlines()[-1])
    assert grown.keys() == {"store", "write trl", "trl to mmpr", "mmpr to stepwise", "read stepwise"}
    for stage, more in grown.items():
        assert more["megabytes"] < LIMIT_MB, (stage, grown)
        assert more["files"] < 5, (stage, grown)
