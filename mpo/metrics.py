"""MPOLoss and implicit rewards → named numbers, averaged over micro-batches and ranks; tokens per second.

Names follow TRL's DPOTrainer where it has one (`rewards/*`, `logps/*`); rewards are unweighted β·log-ratios.
Values stay on their device until they are logged: no host sync per micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mpo.losses import implicit_rewards
from mpo.types import LossWeights, MPOLoss, PairLogps


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


def batch_metrics(
    loss: MPOLoss,
    logps: PairLogps,
    about: Mapping[str, Any],
    *,
    beta: float,
    reward_shift: float,
    step_pairs: float | Tensor | None,
    rows: int,
) -> dict[str, Tensor]:
    """`pair_metrics` of a micro-batch, and what its collator tells about it.

    Args:
        loss, logps, beta, reward_shift: as in `pair_metrics`.
        about: the part of the batch that no model reads.
        step_pairs: pairs of the optimizer step that `loss` was divided by; None: by this batch alone.
        rows: that the policy read.
    """
    pairs = len(about["pair_ids"])
    scale = 1.0 if step_pairs is None else step_pairs / max(1, pairs)
    metrics = pair_metrics(loss, logps, beta=beta, reward_shift=reward_shift, loss_scale=scale)
    if "pair_rejected_share" in about:  # 1: the whole of each rejected response counts
        metrics["tokens/rejected_counted"] = about["pair_rejected_share"].mean()
    if "pair_prompts" in about:  # 1: no prompt was repeated
        metrics["rows_per_prompt"] = loss.total.new_tensor(rows / about["pair_prompts"])
    return metrics


def with_total(means: Mapping[str, float], weights: LossWeights) -> dict[str, float]:
    """The means, and as `loss` L of the means of its parts; empty if there are none."""
    if not means:
        return {}
    parts = (means[f"loss/{part}"] for part in ("preference", "quality", "generation"))
    by_part = zip(parts, (weights.preference, weights.quality, weights.generation), strict=True)
    return {**means, "loss": sum(mean * weight for mean, weight in by_part)}


class MetricMeans:
    """Means weighted by pairs, or by a denominator of their own, over everything added since the last `pop`.

    Example:
        >>> means = MetricMeans()
        >>> means.add({"rewards/chosen": torch.tensor(1.0)}, pairs=3)
        >>> means.add({"rewards/chosen": torch.tensor(5.0)}, pairs=1)
        >>> means.pop()
        {'rewards/chosen': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}  # denominators that are not pairs
        self._pairs = 0

    def add(
        self, metrics: Mapping[str, Tensor], *, pairs: int, own: Mapping[str, float | Tensor] | None = None
    ) -> None:
        """Add the means of a micro-batch of `pairs` pairs, of 0 pairs nothing; every call has the same names.

        Args:
            metrics: name → mean over the micro-batch.
            pairs: that the means are over.
            own: name → what its mean was divided by, where that is not the number of pairs.
        """
        for name, value in metrics.items():
            before = self._sums.setdefault(name, torch.zeros_like(value))
            divided_by = pairs if own is None or name not in own else own[name]
            self._sums[name] = before + value.detach() * divided_by if pairs else before
        for name, count in (own or {}).items():
            self._own[name] = self._own.get(name, 0) + torch.as_tensor(count).detach()
        self._pairs += pairs

    def pop(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The means as floats, and start anew; empty if nothing was added.

        Args:
            reduce: sums a 1-d tensor over all ranks, called once; None for a single process.
        """
        if not self._sums:
            return {}
        names, values = list(self._sums), torch.stack(list(self._sums.values()))  # (M,)
        own = [*self._own]
        counts = [values.new_tensor([self._pairs]), *(self._own[name].to(values).reshape(1) for name in own)]
        row = torch.cat([values, *counts])  # (M + 1 + denominators of their own,)
        self._sums, self._own, self._pairs = {}, {}, 0
        sums = (reduce(row) if reduce else row).tolist()
        divided_by = dict(zip(own, sums[len(names) + 1 :], strict=True))
        return {name: sums[i] / divided_by.get(name, sums[len(names)]) for i, name in enumerate(names)}


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
