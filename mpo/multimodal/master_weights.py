"""bfloat16 weights that an optimizer steps in float32: it owns a float32 copy of each, the master.

    g += float32(∂L/∂w)        each micro-batch, accumulated in float32 (torch's `grad_dtype`)
    m ← step(m, g)             the optimizer's own arithmetic, on masters
    w ← bfloat16(m)            rounded to nearest; the pass reads w

Mixed Precision Training, §3.1 (https://arxiv.org/abs/1710.03740). A step below the resolution of bfloat16 (2^-8 of a
weight) moves the master, and the weight once enough of them have come together. Under autocast, float32 weights are
cast to bfloat16 in each pass instead, so the matrix products are the same; norms, embeddings and the sum of the
residuals are not: they run in bfloat16 here. Torch and transformers have no such optimizer outside DeepSpeed; apex's
has, for CUDA alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mpo.multimodal.errors import ConfigError

KEY = "master_weights"  # of the optimizer's state dict


class MasterWeights:
    """Makes an optimizer that has not stepped yet work on float32 copies of its parameters.

    The masters are part of `optimizer.state_dict()`, so checkpoints keep them to the last bit.

    Args:
        optimizer: its parameters are the model's; afterwards they are the masters. Gradients still arrive at the
            model's, which are written after each step.

    Raises:
        ConfigError: loading a state without masters, or with other ones.

    Example:
        >>> weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        >>> optimizer = torch.optim.SGD([weight], lr=1e-3)
        >>> masters = MasterWeights(optimizer)
        >>> for _ in range(3):
        ...     weight.grad = torch.ones(1)
        ...     optimizer.step()
        >>> round(masters.masters[0].item(), 4), weight.item()  # bfloat16 has 1 - 1/256 = 0.9961 next below 1
        (0.997, 0.99609375)
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.weights: list[nn.Parameter] = []
        self.masters: list[nn.Parameter] = []
        for group in optimizer.param_groups:
            own = [nn.Parameter(weight.detach().to(torch.float32, copy=True)) for weight in group["params"]]
            self.weights += group["params"]
            self.masters += own
            group["params"] = own
        for weight in self.weights:
            if weight.dtype != torch.float32:
                weight.grad_dtype = torch.float32
        optimizer.register_step_pre_hook(self._take_gradients)
        optimizer.register_step_post_hook(self._write_weights)
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_pre_hook(self._load)

    def _take_gradients(self, *_: Any) -> None:
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = weight.grad

    @torch.no_grad()
    def _write_weights(self, *_: Any) -> None:
        for weight, master in zip(self.weights, self.masters, strict=True):
            weight.copy_(master)
            master.grad = None

    def _save(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, KEY: [master.detach() for master in self.masters]}

    @torch.no_grad()
    def _load(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        kept = state.get(KEY)
        shapes = [tuple(master.shape) for master in self.masters]
        if kept is None or [tuple(master.shape) for master in kept] != shapes:
            found = "none" if kept is None else f"{len(kept)} of other shapes"
            raise ConfigError(
                f"expected the float32 masters of {len(shapes)} weights in the optimizer's state, got {found}: the "
                "checkpoint was written without master_weights; resume it as it was trained, or start anew"
            )
        for master, value in zip(self.masters, kept, strict=True):
            master.copy_(value)
        self._write_weights()
        return {name: value for name, value in state.items() if name != KEY}


def check_masters(model: nn.Module, *, sharded: bool, ranks: int, adapters: bool) -> None:
    """Whether a run can keep masters.

    Args:
        model: that is trained.
        sharded: FSDP or DeepSpeed cut its weights up.
        ranks: processes of the run.
        adapters: whether only adapters are trained.

    Raises:
        ConfigError: with what prevents it, and what to do.
    """
    trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if adapters:
        reason = "adapters train in float32 beside frozen weights of any number type: leave master_weights out"
    elif sharded:
        reason = (
            "FSDP and DeepSpeed keep float32 weights and compute in bfloat16 by themselves (mixed_precision: bf16): "
            "leave master_weights out"
        )
    elif ranks > 1:
        reason = f"DistributedDataParallel ({ranks} processes) sums gradients in bfloat16: leave master_weights out"
    elif trained != {torch.bfloat16}:
        named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in trained))
        reason = f"expected trained weights in bfloat16, got {named}: set dtype to bfloat16"
    else:
        return
    raise ConfigError(f"master_weights=True is not possible: {reason}")
