"""Optimizer steps whose update does not depend on how their rows are cut into micro-batches or over ranks.

A loss is a sum over rows divided by a count. The count is taken over all micro-batches and ranks of the step, before
the first of them runs: loss = local sum × ranks / global count. DDP and FSDP average gradients over ranks, which the
factor undoes. Where the rows of an epoch do not fill the last round of micro-batches, accelerate repeats rows from the
epoch's start, on several ranks only; they run, since all ranks run together, but do not count.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.utils import logging

from mpo.multimodal.checkpoint import CheckpointedTrainer
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.schedule import Schedule, WeightsMove, rising_from_the_first_step

logger = logging.get_logger(__name__)

Batch = dict[str, Any]


class WholeStepTrainer(CheckpointedTrainer, ABC):
    """`transformers.Trainer` with counts over the whole step; a subclass defines what is counted.

    Raises:
        ConfigError: `nn.DataParallel`, or `split_batches`, which would make a step's rows another number.
    """

    # The loss is already divided over the whole optimizer step; Trainer must not divide it by the micro-batches.
    loss_is_scaled_for_ga = True

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if self.args.n_gpu > 1:
            raise ConfigError("nn.DataParallel is not supported: start with `accelerate launch`, or show one GPU only")
        if self.accelerator.split_batches:
            raise ConfigError(
                "accelerator_config's split_batches is not supported: per_device_train_batch_size counts per process"
            )
        self.add_callback(WeightsMove())
        if self.args.learning_rate <= 0:
            raise ConfigError(f"learning_rate must be above 0, got {self.args.learning_rate}: nothing would be trained")
        for warning in self.schedule().warnings():
            logger.warning(warning)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's schedule, whose first step already trains."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        return rising_from_the_first_step(scheduler, optimizer or self.optimizer, warmup)

    def schedule(self) -> Schedule:
        """How much this run trains; a data set without a length has 0 rows."""
        args, parameters = self.args, list(self.model.parameters())
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        length = getattr(self.train_dataset, "__len__", None)
        rows = length() if length else 0
        steps = args.max_steps if args.max_steps > 0 else math.ceil(math.ceil(rows / per_step) * args.num_train_epochs)
        return Schedule(
            steps=steps,
            rows=rows,
            rows_per_step=per_step,
            peak=args.learning_rate,
            parameters=sum(parameter.numel() for parameter in parameters),
            adapters=isinstance(self.model, PeftModel),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Any]:
        """The micro-batches of one optimizer step, and what their losses are divided by over all ranks."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if not batches:
            return [], None
        if self.args.train_sampling_strategy != "batch_rebalance":  # whose steps are all full
            batches[-1] = self._without_repeats(batches[-1], batch_size=self.args.train_batch_size)
        return batches, self._denominators(batches, device)

    def _without_repeats(self, batch: Batch, *, batch_size: int) -> Batch:
        """The batch that the data loader has just given; of the last one of an epoch only this rank's own rows count.

        The number of rows of a stream is not known: there, repeated rows count as often as they come.
        """
        state = self.accelerator.gradient_state
        if self.args.dataloader_drop_last or not state.end_of_dataloader:
            return batch
        rows = getattr(state.active_dataloader.dataset, "__len__", None)
        if rows is None:
            return batch
        accelerator = self.accelerator
        place = {"batch_size": batch_size, "rank": accelerator.process_index, "ranks": accelerator.num_processes}
        return self._counting(batch, rows=own_rows(rows(), **place))

    @abstractmethod
    def _counting(self, batch: Batch, *, rows: int) -> Batch:
        """The batch of which only the first `rows` rows count: in losses, denominators, δ and metrics."""

    @abstractmethod
    def _denominators(self, batches: list[Batch], device: torch.device) -> Any:
        """What the sums of these micro-batches and those of all other ranks are divided by."""

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum")


def own_rows(rows: int, *, batch_size: int, rank: int, ranks: int) -> int:
    """How many rows of a rank's last batch of an epoch are not repeats; they come first.

    Args:
        rows: of the data set.
        batch_size: rows of a full batch of one rank.
        rank, ranks: whose batch it is, of how many.

    Example:
        >>> [own_rows(9, batch_size=2, rank=rank, ranks=2) for rank in (0, 1)]
        [1, 0]
        >>> [own_rows(8, batch_size=2, rank=rank, ranks=2) for rank in (0, 1)]
        [2, 2]
    """
    left = rows % (batch_size * ranks) or batch_size * ranks  # rows of the last round
    return min(max(left - rank * batch_size, 0), batch_size)
