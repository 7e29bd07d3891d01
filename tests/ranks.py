"""Programs on two ranks (gloo, CPU), weights in shards, and what makes two runs the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from mpo.multimodal.scoring import innermost

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--config_file", "recipes/accelerate/multi_gpu.yaml",
                   "--num_processes", "2", "--main_process_port", "0"],
}  # fmt: skip
TIMEOUT = 500  # seconds; a launch takes about 25 on two free cores, and only a hang comes near this
# A resumed run's train_loss counts its own steps only; a rank that packs nothing repeats prompts.
NOT_COMPARED = ("runtime", "_per_second", "flos", "train_loss", "rows_per_prompt", "tokens/s")


def launched(launcher: str, *arguments: str, code: int = 0) -> str:
    """Run a program on two ranks to this exit code; what it wrote to stderr."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *LAUNCHERS[launcher], *arguments]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as agent:
        try:
            _, errors = agent.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            agent.terminate()  # not kill: the agent must stop its ranks
            _, errors = agent.communicate()
    assert agent.returncode == code, errors[-3000:]
    return errors


def assert_same_run(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    """Weights, gradients of the first step, and everything that is logged, losses and metrics, of all steps."""
    for part in ("weights", "gradients"):
        assert ours[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            torch.testing.assert_close(ours[part][name], value, rtol=1e-5, atol=2e-6, msg=f"{part} of {name}")
    assert len(ours["log"]) == len(expected["log"])
    for line, other in zip(ours["log"], expected["log"], strict=True):
        assert line.keys() == other.keys()
        compared = {name for name in line if not name.endswith(NOT_COMPARED)}
        assert {name: line[name] for name in compared} == pytest.approx(
            {name: other[name] for name in compared}, abs=1e-4
        )


class FirstGradients(TrainerCallback):
    """Keeps the gradients of the first optimizer step, as the optimizer gets them."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.gradients:
            named = ((name.removeprefix("module."), p.grad) for name, p in kwargs["model"].named_parameters())
            self.gradients = {name: grad.clone() for name, grad in named if grad is not None}


def shard(*models: Any) -> None:
    """Every layer of the language model and of the vision tower, the tower's rest, and the rest; all are DTensors then.

    accelerate does not shard on a CPU, it takes DDP without a word; so tests call `fully_shard` themselves.
    """
    for model in models:
        base = innermost(model)
        vision = base.model.vision_tower
        for module in (*base.get_decoder().layers, *vision.encoder.layer, vision, model):
            fully_shard(module)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor of which this rank may have a shard."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def total_of(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
