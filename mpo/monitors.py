"""What to watch while a run trains: tokens per second, and whether the chosen responses become less likely.

DPO widens the margin even while both responses lose probability; the chosen one's log-prob falling below its start is
the first sign that a policy falls apart (arXiv 2411.10442, the reason for L_g). Nothing here changes a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

from mpo.metrics import TokenRate

TOLERANCE = 0.01  # nats per token below the start, about 1 % of a token's probability; less is noise
PATIENCE = 5  # logged lines in a row

logger = logging.get_logger(__name__)


class RunMonitor(TrainerCallback):
    """Counts the tokens of a run, warns once when it collapses, and calls back after each optimizer step.

    It has no state of its own: after a resume it reads the lines that the checkpoint's `trainer_state.json` brings.

    Args:
        starts_at_reference: the policy and the reference are the same model before the first step.
        after_step: called right after each optimizer step, on every rank.
    """

    def __init__(self, *, starts_at_reference: bool, after_step: Callable[[], None]) -> None:
        self.starts_at_reference, self.after_step = starts_at_reference, after_step
        self.token_rate = TokenRate()

    def count(self, attention_mask: Tensor) -> None:
        """Add the tokens of one batch, as the policy reads it: (B, T), 1 for a token and 0 for padding."""
        self.token_rate.add(attention_mask)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.token_rate.restart()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass the event on."""
        self.after_step()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn at the line at which `PATIENCE` lines in a row have been below the start for the first time."""
        if not state.is_world_process_zero or "loss" not in state.log_history[-1]:
            return
        changes = chosen_changes(state.log_history, starts_at_reference=self.starts_at_reference)
        if stays_below(changes) and not any(stays_below(changes[:end]) for end in range(len(changes))):
            logger.warning(_collapse(changes[-1], state.log_history[-1]))


def chosen_changes(history: Sequence[dict[str, float]], *, starts_at_reference: bool) -> list[float]:
    """How far the chosen responses' log-prob has moved since the start, for each logged line of the training loss.

    Policy minus reference on the same rows, so that it does not depend on which rows a line saw. Where the policy did
    not start at the reference, the first line is taken as the start.

    Returns:
        Nats per token, mean over pairs; negative is a fall.

    Example:
        >>> line = {"logps/chosen_per_token": -0.9, "logps/chosen_per_token_reference": -0.7}
        >>> [round(change, 3) for change in chosen_changes([line], starts_at_reference=True)]
        [-0.2]
    """
    changes = [
        line["logps/chosen_per_token"] - line["logps/chosen_per_token_reference"]
        for line in history
        if "logps/chosen_per_token" in line
    ]
    start = 0.0 if starts_at_reference or not changes else changes[0]
    return [change - start for change in changes]


def stays_below(changes: Sequence[float]) -> bool:
    """Whether the last `PATIENCE` changes are all falls of more than `TOLERANCE`.

    Example:
        >>> stays_below([0.0] + PATIENCE * [-0.2]), stays_below(PATIENCE * [-0.2] + [0.0])
        (True, False)
    """
    return len(changes) >= PATIENCE and max(changes[-PATIENCE:]) < -TOLERANCE


def _collapse(change: float, line: dict[str, float]) -> str:
    return (
        f"step {line['step']}: the chosen responses have been less likely than at the start for {PATIENCE} logged "
        f"lines ({line['logps/chosen_per_token']:.3f} nats per token, {-change:.3f} below the start). Preference "
        "losses alone do this before a policy repeats itself or stops answering: look at samples, raise "
        "generation_weight, or lower learning_rate. This warning is given once."
    )
