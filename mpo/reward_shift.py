"""δ, the reward shift of L_q, as explicit state: observe every micro-batch, commit once per optimizer step.

δ is the running mean of the implicit rewards of chosen and rejected responses
(Binary Classifier Optimization, https://arxiv.org/abs/2404.04656). The loss reads the committed value only, so it
does not depend on how a batch was cut into micro-batches. Evaluation never observes, so there δ is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mpo.multimodal.errors import ConfigError

ShiftMode = Literal["cumulative", "ema", "zero"]


class RewardShift:
    """δ = running mean of the implicit rewards; 0 until the first commit.

    Modes:
        cumulative: mean over all history, as InternVL was trained (TRL ≤ 0.28's `RunningMoments`).
        ema: δ ← m·δ + (1−m)·mean of the step, from 0, as in NeMo-RL (m = 0.99).
        zero: δ = 0, what TRL ≥ 0.29 computes.

    Every pair counts two rewards, unweighted.

    Args:
        mode: one of the three above.
        momentum: m of `ema`, in [0, 1).

    Example:
        >>> shift = RewardShift("cumulative")
        >>> shift.observe(torch.tensor([0.4, 0.2]), torch.tensor([-0.1, -0.1]))
        >>> shift.value
        0.0
        >>> shift.commit()
        >>> round(shift.value, 6)
        0.1
    """

    def __init__(self, mode: ShiftMode = "cumulative", *, momentum: float = 0.99) -> None:
        if mode not in get_args(ShiftMode):
            raise ConfigError(f"reward_shift must be one of {list(get_args(ShiftMode))}, got {mode!r}")
        if not 0.0 <= momentum < 1.0:
            raise ConfigError(f"reward_shift_momentum must lie in [0, 1), got {momentum}")
        self.mode = mode
        self.momentum = momentum
        self._value = 0.0
        self._count = 0  # rewards committed so far, over all ranks
        self._pending: list[Tensor] = []  # one (2,) tensor (sum, count) a micro-batch, on its device: no sync here

    @property
    def value(self) -> float:
        """The committed δ."""
        return self._value

    def observe(self, chosen_rewards: Tensor, rejected_rewards: Tensor) -> None:
        """Remember the implicit rewards of one training micro-batch until the next commit.

        Args:
            chosen_rewards: r_c, (B,).
            rejected_rewards: r_r, (B,).
        """
        rewards = torch.cat([chosen_rewards, rejected_rewards]).detach().float()  # (2B,)
        self._pending.append(torch.stack([rewards.sum(), rewards.new_tensor(rewards.numel())]))

    def commit(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Fold what was observed since the last commit into δ; call it once per optimizer step on every rank.

        Args:
            reduce: sums a (2,) tensor (sum, count) over all ranks; None for a single process.
        """
        if self._pending:
            pending = torch.stack(self._pending).sum(dim=0)  # (2,)
            self._pending = []
            total, count = (reduce(pending) if reduce else pending).tolist()
            self._update(total, int(count))

    def _update(self, total: float, count: int) -> None:
        self._count += count
        if self.mode == "cumulative":
            # δ_n = δ_{n−1} + Σ(r − δ_{n−1}) / n
            self._value += (total - count * self._value) / self._count
        elif self.mode == "ema":
            # δ ← m·δ + (1−m)·mean
            self._value = self.momentum * self._value + (1 - self.momentum) * total / count

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as plain numbers for JSON."""
        assert not self._pending, "saved between observe and commit"
        return {"mode": self.mode, "momentum": self.momentum, "value": self._value, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`.

        Raises:
            ConfigError: the state belongs to another mode, or misses a key.
        """
        missing = {"mode", "value", "count"} - state.keys()
        if missing:
            raise ConfigError(f"the saved reward shift lacks {sorted(missing)}; it was not written by RewardShift")
        if state["mode"] != self.mode:
            raise ConfigError(
                f"the checkpoint's reward shift is {state['mode']!r}, this run asks for {self.mode!r}: "
                f"resume with reward_shift={state['mode']!r}, or start a new run"
            )
        self._value, self._count, self._pending = float(state["value"]), int(state["count"]), []
