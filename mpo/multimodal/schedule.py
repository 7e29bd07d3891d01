"""Whether a training run can change anything: its rates, its steps, and a check that its weights moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from mpo.multimodal.errors import ConfigError

FEW_STEPS = 10
MANY_EPOCHS = 5.0
LARGE = 100_000_000  # parameters from which a model counts as pretrained, for the advice on rates
HIGH_RATE = {False: 2e-5, True: 1e-3}  # by "adapters only"; the paper takes 5e-6, LoRA about ten times the full rate


def rising_from_the_first_step(scheduler: Any, optimizer: Any, warmup: int) -> Any:
    """The scheduler with a warm-up whose first step has a rate above 0: (s + 1) / (warmup + 1) at step s.

    transformers' warm-ups start at 0, so the first step trains nothing, and a run of one step trains nothing at all.

    Args:
        scheduler: a fresh one; another kind than `LambdaLR` is left as it is.
        optimizer: whose rates it sets.
        warmup: steps of the warm-up.
    """
    if not isinstance(scheduler, LambdaLR) or warmup < 1:
        return scheduler
    scheduler.lr_lambdas = [_rising(rate, warmup) for rate in scheduler.lr_lambdas]
    rates = [base * rate(0) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
    return scheduler


def _rising(rate: Callable[[int], float], warmup: int) -> Callable[[int], float]:
    return lambda step: (step + 1) / (warmup + 1) if step < warmup else rate(step)


@dataclass(frozen=True)
class Schedule:
    """How much a run trains.

    Attributes:
        steps: optimizer steps.
        rows: of the data set; 0 where it is not known.
        rows_per_step: over all processes.
        peak: highest learning rate.
        parameters: of the model, trained or not.
        adapters: only adapters are trained.
    """

    steps: int
    rows: int
    rows_per_step: int
    peak: float
    parameters: int
    adapters: bool

    @property
    def epochs(self) -> float:
        """How often each row is seen; 0 where the number of rows is not known."""
        return self.steps * self.rows_per_step / self.rows if self.rows else 0.0

    def warnings(self) -> list[str]:
        """What a user should know before the run; empty where nothing stands out.

        Example:
            >>> plan = Schedule(4, 60, 256, 2e-4, 10**9, False)
            >>> [warning.split(":")[0] for warning in plan.warnings()]
            ['4 optimizer steps', 'each row is seen 17.1 times', 'the learning rate 0.0002 is high']
        """
        found = []
        if self.steps < FEW_STEPS:
            found.append(
                f"{self.steps} optimizer steps: fewer than {FEW_STEPS} hardly change a model; take smaller steps "
                "(a smaller batch) or more epochs"
            )
        if self.epochs > MANY_EPOCHS:
            found.append(
                f"each row is seen {self.epochs:.1f} times: more than {MANY_EPOCHS:.0f} epochs over preference data or "
                "step labels mostly memorise them; take fewer steps or more data"
            )
        if self.parameters >= LARGE and self.peak > HIGH_RATE[self.adapters]:
            how = "adapters" if self.adapters else "all weights"
            found.append(
                f"the learning rate {self.peak:g} is high: for {how} of a model of {self.parameters / 1e9:.1f} billion "
                f"parameters it will very likely destroy what was pretrained; published runs stay below "
                f"{HIGH_RATE[self.adapters]:g}"
            )
        return found


class WeightsMove(TrainerCallback):
    """Ends a run with an error if its trained weights are, bit for bit, those that it began with."""

    def __init__(self) -> None:
        self._before: tuple[int, list[int]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **more: Any) -> None:
        """Remember a checksum of each trained tensor (of this rank's part, where weights are sharded).

        A finished run that is resumed makes one more step in transformers 5.23, at rate 0; it is not asked.
        """
        unfinished = state.global_step < state.max_steps
        self._before = (state.global_step, checksums(model)) if model is not None and unfinished else None

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **more: Any) -> None:
        """Compare.

        Raises:
            ConfigError: steps were made and no trained tensor changed.
        """
        if self._before is None or model is None:
            return
        step, before = self._before
        if state.global_step > step and before and checksums(model) == before:
            raise ConfigError(
                f"{state.global_step - step} optimizer steps changed none of {len(before)} trained tensors: the "
                "learning rate is 0 or too small for the number type, or every gradient is 0; nothing was trained"
            )


def checksums(model: nn.Module) -> list[int]:
    """One integer per trained tensor: the sum of its bits read as integers, each at its place's weight."""
    return [_checksum(parameter) for parameter in model.parameters() if parameter.requires_grad]


def _checksum(parameter: torch.Tensor) -> int:
    local = parameter.detach()
    local = local.to_local() if hasattr(local, "to_local") else local
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[local.element_size()]
    words = local.contiguous().view(bits).flatten()
    total = 0
    for start in range(0, len(words), 1 << 22):  # no second copy of a large tensor
        part = words[start : start + (1 << 22)].to(torch.int64)
        places = torch.arange(1, len(part) + 1, device=part.device)
        total = (total * 31 + int((part * places).sum())) % (1 << 61)
    return total
