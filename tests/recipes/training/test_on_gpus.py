"""What only GPUs can show; skipped, and named as not run, on a machine without them.

pytest -rs tests/recipes/training/test_on_gpus.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mpo.multimodal.loading import load_model
from recipes.stage.folder import manifest_of
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.types import Completion, PreferencePair, Problem

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "recipes" / "accelerate"
GPUS = torch.cuda.device_count()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    problems = [Problem(f"p{i}", "How many digits?", (Image.new("RGB", (64, 64), (30 * i, 0, 0)),)) for i in range(8)]
    rows = [PreferencePair(p, Completion("one two"), Completion("three"), "correctness") for p in problems]
    write_trl_parquet(rows, path)
    return path


def train(out: Path, policy: Path, pairs: Path, *launcher: str, gpus: str) -> list[float]:
    """Four steps of `mpo train-mpo` on these GPUs, none for the CPU; the losses of its log."""
    flags = {"policy": policy, "pairs": pairs, "out": out, "max_steps": 4, "batch_size": 8, "per_device_batch": 1}
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, *launcher, "-m", "recipes.cli", "train-mpo", *words, "--dtype", "float32"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": gpus}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert manifest_of(out)["counts"] == {"in": 8, "out": 8, "rejected": {}}
    log = json.loads((out / "log_history.json").read_text())
    return [line["loss"] for line in log if "loss" in line]


@pytest.mark.skipif(GPUS < 1, reason="not run: no GPU")
@pytest.mark.timeout(600)
def test_one_gpu_is_the_cpu(tmp_path: Path, policy_folder: Path, pairs: Path) -> None:
    """The same losses, with the kernel for packed rows that the first batch checks against the paired layout."""
    on_gpu = train(tmp_path / "gpu", policy_folder, pairs, gpus="0")
    assert on_gpu == pytest.approx(train(tmp_path / "cpu", policy_folder, pairs, gpus=""), rel=1e-3)


@pytest.mark.skipif(GPUS < 2, reason="not run: fewer than two GPUs")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["multi_gpu", "fsdp2", "deepspeed_zero3"])
def test_two_gpus_are_one(tmp_path: Path, policy_folder: Path, pairs: Path, name: str) -> None:
    """The shipped configurations, two processes: the losses of one, and a whole model folder at the end."""
    if name == "deepspeed_zero3":
        pytest.importorskip("deepspeed", reason="not run: deepspeed is not installed")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{name}.yaml")]
    two = train(tmp_path / "two", policy_folder, pairs, *launcher, "--num_processes", "2", gpus="0,1")
    one = train(tmp_path / "one", policy_folder, pairs, gpus="0")
    assert two == pytest.approx(one, rel=1e-3)
    ours, theirs = (load_model(tmp_path / part).state_dict() for part in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.allclose(ours[key].float(), theirs[key].float(), atol=1e-3), key
