"""MPOLoss and implicit rewards → named numbers, averaged over micro-batches and ranks; tokens per second.

Names follow TRL's DPOTrainer where it has one (`rewards/*`, `logps/*`); rewards are unweighted β·log-ratios.
Values stay on their device until they are logged: no host sync per micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mpo.losses import implicit_rewards
from mpo.types import MPOLoss, PairLogps


@torch.no_grad()
def pair_metrics(
    loss: MPOLoss, logps: PairLogps, *, beta: float, reward_shift: float, loss_scale: float | Tensor = 1.0
) -> dict[str, Tensor]:
    """Metrics of one micro-batch, each a mean over its B pairs.

    Args:
        loss: the parts as `mpo_loss` returned them.
        logps: the five (B,) tensors that the loss was computed from.
        beta: β.
        reward_shift: the δ that the loss used.
        loss_scale: (pairs of the optimizer step) / B when `loss` was divided by the step's denominators, so that
            the mean over the step's pairs is the step's loss; 1 when it was divided by this batch alone.

    Returns:
        Name → 0-d float32 tensor.
    """
    chosen, rejected = implicit_rewards(logps, beta=beta)  # (B,), (B,)
    policy, reference = logps.policy_chosen.float(), logps.reference_chosen.float()
    return {
        "loss/preference": loss.preference * loss_scale,
        "loss/quality": loss.quality * loss_scale,
        "loss/generation": loss.generation * loss_scale,
        "bco/delta": chosen.new_tensor(reward_shift),
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).float().mean(),
        "logps/chosen": policy.mean(),
        "logps/rejected": logps.policy_rejected.float().mean(),
        "logps/chosen_per_token": (policy / logps.chosen_lengths).mean(),
        "logps/chosen_per_token_reference": (reference / logps.chosen_lengths).mean(),
    }


class MetricMeans:
    """Means weighted by pairs over everything added since the last `pop`.

    Example:
        >>> means = MetricMeans()
        >>> means.add({"rewards/chosen": torch.tensor(1.0)}, pairs=3)
        >>> means.add({"rewards/chosen": torch.tensor(5.0)}, pairs=1)
        >>> means.pop()
        {'rewards/chosen': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._pairs = 0

    def add(self, metrics: Mapping[str, Tensor], *, pairs: int) -> None:
        """Add the means of a micro-batch of `pairs` pairs, of 0 pairs nothing; every call has the same names."""
        for name, value in metrics.items():
            before = self._sums.setdefault(name, torch.zeros_like(value))
            self._sums[name] = before + value.detach() * pairs if pairs else before
        self._pairs += pairs

    def pop(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The means as floats, and start anew; empty if nothing was added.

        Args:
            reduce: sums a 1-d tensor over all ranks, called once; None for a single process.
        """
        if not self._sums:
            return {}
        names, values = list(self._sums), torch.stack(list(self._sums.values()))  # (M,)
        row = torch.cat([values, values.new_tensor([self._pairs])])  # (M + 1,)
        self._sums, self._pairs = {}, 0
        *sums, pairs = (reduce(row) if reduce else row).tolist()
        return {name: total / pairs for name, total in zip(names, sums, strict=True)}


class TokenRate:
    """Tokens that the language model ran per second of wall-clock time, over all ranks.

    A token counts once, though policy, reference and backward all run it; a shared prompt counts once for both
    responses, padding not at all. Evaluation, samples and checkpoints between two logs are part of the time.

    Args:
        clock: seconds, never going back.

    Example:
        >>> rate = TokenRate(clock=iter([0.0, 2.0]).__next__)
        >>> rate.add(torch.tensor([[1, 1, 1], [1, 0, 0]]))
        >>> rate.pop()
        {'tokens/s': 2.0}
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.restart()

    def restart(self) -> None:
        """Forget what was counted; time runs from now on."""
        self._tokens: Tensor | None = None  # 0-d int64, on the model's device
        self._since = self.clock()

    def add(self, attention_mask: Tensor) -> None:
        """Count the ones of a (B, T) mask, without a host sync."""
        tokens = attention_mask.sum()
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    def pop(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """`tokens/s` since the last `pop` or `restart`, and start anew; empty if nothing was counted.

        Args:
            reduce: sums a tensor over all ranks, called once; None for a single process.
        """
        if self._tokens is None:
            return {}
        tokens = int(reduce(self._tokens) if reduce else self._tokens)
        seconds = self.clock() - self._since
        self._tokens, self._since = None, self._since + seconds
        return {"tokens/s": tokens / max(seconds, 1e-9)}
