"""A loss, gradient or weight that is not finite stops the run before it can spread, in every trainer; no model that
holds one is saved or loaded."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from mpo.multimodal.errors import NonFiniteLossError

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # quantised weights are integers, and finite


class FiniteGuard:
    """Remembers the losses of the micro-batches of one optimizer step, with the ids of their rows.

    Example:
        >>> guard = FiniteGuard()
        >>> guard.observe(torch.tensor(float("nan")), ["pair-7"])
        >>> guard.check(None, step=3)
        Traceback (most recent call last):
        ...
        mpo.multimodal.errors.NonFiniteLossError: expected a finite loss at step 4, got NaN or infinity from the \
micro-batch of [pair-7]: look at these rows, then lower learning_rate or max_grad_norm; the optimizer has not \
stepped (rank 0)
    """

    def __init__(self) -> None:
        self.losses: list[tuple[Tensor, list[str]]] = []

    def observe(self, loss: Tensor, ids: list[str]) -> None:
        """Remember one micro-batch; no host sync."""
        self.losses.append((loss.detach(), ids))

    def check(self, grad_norm: Any, *, step: int) -> None:
        """Look at all losses since the last check, and at the gradient's norm; one host sync.

        Args:
            grad_norm: of the whole gradient, or None where it is not known or may overflow (fp16).
            step: optimizer steps made so far.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        losses, self.losses = self.losses, []
        if bad := [ids for loss, ids in losses if not bool(loss.isfinite().all())]:
            raise NonFiniteLossError(_message("loss", bad, step))
        if grad_norm is not None and not bool(torch.as_tensor(grad_norm).isfinite()):
            raise NonFiniteLossError(_message("gradient", [ids for _, ids in losses], step))

    def check_evaluated(self) -> None:
        """Look at all losses of an evaluation; one host sync.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        losses, self.losses = self.losses, []
        if bad := [ids for loss, ids in losses if not bool(loss.isfinite().all())]:
            raise NonFiniteLossError(
                f"expected a finite loss in evaluation, got NaN or infinity from the batch of [{_named(bad)}]: look at "
                f"these rows, or leave them out of eval_dataset (rank {os.environ.get('RANK', '0')})"
            )


class FiniteTrainer(Trainer):
    """`transformers.Trainer` that stops at a loss or gradient that is not finite, and saves no such weights.

    A subclass that knows the names of a micro-batch's rows gives them to `_observe` in its `compute_loss`; the losses
    of the others are looked at without names.

    Raises:
        NonFiniteLossError: before the optimizer steps, or before anything is written.
    """

    model: Any

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._finite, self._evaluated = FiniteGuard(), FiniteGuard()
        super().__init__(*arguments, **settings)

    def training_step(self, *arguments: Any, **more: Any) -> Tensor:
        """Trainer's, and a look at its loss if `compute_loss` has not shown it."""
        before = len(self._finite.losses)
        loss = super().training_step(*arguments, **more)
        if len(self._finite.losses) == before:
            self._finite.observe(loss, [])
        return loss

    def _observe(self, loss: Tensor, ids: list[str]) -> None:
        """Remember the loss of a micro-batch that is trained on, and whose it is."""
        self._finite.observe(loss, ids)
        if self.is_deepspeed_enabled:  # its backward also steps the optimizer
            self._finite.check(None, step=self.state.global_step)

    def _observe_evaluated(self, loss: Tensor, ids: list[str]) -> None:
        """Remember the loss of a batch of an evaluation, and whose it is."""
        self._evaluated.observe(loss, ids)

    def evaluation_loop(self, *arguments: Any, **more: Any) -> Any:
        """Trainer's; a loss that is not finite is an error that names its rows."""
        output = super().evaluation_loop(*arguments, **more)
        self._evaluated.check_evaluated()
        return output

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Trainer calls this once per optimizer step, after the last backward and before `optimizer.step`."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # A GradScaler (fp16) skips the steps whose gradient overflowed: there, that is no error.
        known = None if self.accelerator.scaler is not None else grad_norm
        self._finite.check(known, step=self.state.global_step)
        return grad_norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's, of finite weights: the last step can overflow them, and no loss would show it."""
        if name := non_finite_weight(self.model):
            raise NonFiniteLossError(
                f"expected finite weights after step {self.state.global_step}, got NaN or infinity in {name}: lower "
                "learning_rate; nothing was written, and the checkpoints before are as they were"
            )
        super().save_model(output_dir, _internal_call)


def non_finite_weight(model: nn.Module) -> str | None:
    """The name of the first parameter that holds NaN or infinity, else None; every weight is read once.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> non_finite_weight(layer)
        >>> _ = nn.init.constant_(layer.bias, float("inf"))
        >>> non_finite_weight(layer)
        'bias'
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            has_values = weight.dtype in REAL and weight.numel() > 0 and not weight.is_meta
            # NaN is passed on by both ends; no copy of the weight is made
            if has_values and not all(bool(end.isfinite()) for end in torch.aminmax(weight)):
                return name
    return None


def _message(what: str, micro_batches: list[list[str]], step: int) -> str:
    return (
        f"expected a finite {what} at step {step + 1}, got NaN or infinity from the micro-batch of "
        f"[{_named(micro_batches)}]: look "
        "at these rows, then lower learning_rate or max_grad_norm; the optimizer has not stepped "
        f"(rank {os.environ.get('RANK', '0')})"
    )


def _named(batches: list[list[str]]) -> str:
    return ", ".join(name for names in batches for name in names)[:500]
