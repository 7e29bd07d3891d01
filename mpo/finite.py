"""A loss or gradient that is not finite stops the run before the optimizer can spread it, and names the rows."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from mpo.multimodal.errors import NonFiniteLossError


class FiniteGuard:
    """Remembers the losses of the micro-batches of one optimizer step, with the ids of their pairs.

    Example:
        >>> guard = FiniteGuard()
        >>> guard.observe(torch.tensor(float("nan")), ["pair-7"])
        >>> guard.check(None, step=3)
        Traceback (most recent call last):
        ...
        mpo.multimodal.errors.NonFiniteLossError: expected a finite loss at step 4, got NaN or infinity from the \
micro-batch of pairs [pair-7]: look at these rows, then lower learning_rate or max_grad_norm; the optimizer has not \
stepped (rank 0)
    """

    def __init__(self) -> None:
        self._losses: list[tuple[Tensor, list[str]]] = []

    def observe(self, loss: Tensor, pair_ids: list[str]) -> None:
        """Remember one micro-batch; no host sync."""
        self._losses.append((loss.detach(), pair_ids))

    def check(self, grad_norm: Any, *, step: int) -> None:
        """Look at all losses since the last check, and at the gradient's norm; one host sync.

        Args:
            grad_norm: of the whole gradient, or None where it is not known or may overflow (fp16).
            step: optimizer steps made so far.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        losses, self._losses = self._losses, []
        if bad := [ids for loss, ids in losses if not bool(loss.isfinite())]:
            raise NonFiniteLossError(_message("loss", bad, step))
        if grad_norm is not None and not bool(torch.as_tensor(grad_norm).isfinite()):
            raise NonFiniteLossError(_message("gradient", [ids for _, ids in losses], step))


def _message(what: str, micro_batches: list[list[str]], step: int) -> str:
    ids = ", ".join(name for names in micro_batches for name in names)
    return (
        f"expected a finite {what} at step {step + 1}, got NaN or infinity from the micro-batch of pairs [{ids}]: look "
        "at these rows, then lower learning_rate or max_grad_norm; the optimizer has not stepped "
        f"(rank {os.environ.get('RANK', '0')})"
    )
