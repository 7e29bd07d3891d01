"""Optimizer steps whose update does not depend on how their rows are cut into micro-batches or over ranks.

A loss is a sum over rows divided by a count. The count is taken over all micro-batches and ranks of the step, before
the first of them runs: loss = local sum × ranks / global count. DDP and FSDP average gradients over ranks, which the
factor undoes. Where the rows of an epoch do not fill the last round of micro-batches, accelerate repeats rows from the
epoch's start, on several ranks only; they run, since all ranks run together, but do not count.

Micro-batches are made one at a time where the rows of a step and what they count are known beforehand: the batch
sampler says which rows come, the checks before step 0 what each counts. Of a stream, or of rows whose count only their
collated batch tells, all micro-batches of a step are made first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers.utils import logging

from mpo.multimodal.checkpoint import CheckpointedTrainer
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.leftovers import free_leftovers
from mpo.multimodal.master_weights import MasterWeights, check_masters
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
        self._planned: PlannedBatches | None = None
        self._loaders: list[Any] = []  # whose workers may be alive
        super().__init__(*arguments, **settings)
        if self.args.n_gpu > 1:
            raise ConfigError("nn.DataParallel is not supported: start with `accelerate launch`, or show one GPU only")
        if self.accelerator.split_batches:
            raise ConfigError(
                "accelerator_config's split_batches is not supported: per_device_train_batch_size counts per process"
            )
        if getattr(self.args, "master_weights", False):
            adapters = isinstance(self.accelerator.unwrap_model(self.model), PeftModel)
            ranks = self.args.world_size
            check_masters(self.model, sharded=self.weights_get_sharded, ranks=ranks, adapters=adapters)
        self.add_callback(WeightsMove())
        if self.args.learning_rate <= 0:
            raise ConfigError(f"learning_rate must be above 0, got {self.args.learning_rate}: nothing would be trained")
        for warning in self.schedule().warnings():
            logger.warning(warning)

    def create_optimizer(self, model: Any = None) -> Any:
        """Trainer's; with `master_weights` it steps float32 copies of bfloat16 weights."""
        optimizer = super().create_optimizer(model)
        if getattr(self.args, "master_weights", False):
            MasterWeights(optimizer)
        return optimizer

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

    def get_train_dataloader(self) -> Any:
        """Trainer's, whose batch sampler says beforehand which rows an epoch's batches have."""
        loader = self._with_workers(super().get_train_dataloader())
        inner = getattr(loader, "base_dataloader", loader)
        self._planned = None
        is_stream = isinstance(inner.dataset, IterableDataset)  # its batch sampler never ends
        if not is_stream and inner.batch_sampler is not None and not self.args.ignore_data_skip:
            self._planned = PlannedBatches(inner.batch_sampler)
            vars(inner)["batch_sampler"] = self._planned  # DataLoader lets nobody set it; its iterators look here
        return loader

    eval_collator: Any = None  # None: the training set's

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Trainer's, with a collator of its own: evaluation shows images as they are."""
        training, self.data_collator = self.data_collator, self.eval_collator or self.data_collator
        try:
            return self._with_workers(super().get_eval_dataloader(eval_dataset))
        finally:
            self.data_collator = training

    def train(self, *arguments: Any, **more: Any) -> Any:
        """Trainer's; the processes that made its batches end with it."""
        try:
            return super().train(*arguments, **more)
        finally:
            self._end_workers()

    def evaluate(self, *arguments: Any, **more: Any) -> Any:
        """Trainer's; the processes that made its batches end with it, or with the training that it is part of."""
        try:
            return super().evaluate(*arguments, **more)
        finally:
            if not self.is_in_train:
                self._end_workers()

    def _with_workers(self, loader: Any) -> Any:
        """A loader that is about to fork its workers, noted; one that an earlier evaluation made has them."""
        inner = getattr(loader, "base_dataloader", loader)
        if self.args.dataloader_num_workers and inner not in self._loaders:
            free_leftovers()
            self._loaders.append(inner)
        return loader

    def _end_workers(self) -> None:
        """End persistent workers here and now: when the collector ends them, their queues are closed before they are
        told, and it waits five seconds for each."""
        while self._loaders:
            loader = self._loaders.pop()
            if loader._iterator is not None:
                loader._iterator._shutdown_workers()
                loader._iterator = None

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """The loss of one evaluation batch, without the rows that a sampler repeats to fill it."""
        with torch.no_grad(), self.compute_loss_context_manager():
            own = self._without_repeats(inputs, batch_size=self.args.eval_batch_size)
            loss: Any = self.compute_loss(model, self._prepare_inputs(own))  # no outputs asked for: the loss alone
        return loss.detach(), None, None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[Any, Any]:
        """The micro-batches of one optimizer step, and what their losses are divided by over all ranks."""
        first = next(epoch_iterator, None)  # only now is the epoch planned
        if first is None:
            return [], None
        planned = self._rows_of_step(num_batches)
        counts = None if planned is None else self._counts_of_rows([row for rows in planned for row in rows])
        if planned is not None and counts is not None:
            lazy = MicroBatches(first, epoch_iterator, planned, self._as_planned)
            return lazy, self._over_ranks(counts, device)
        batches = [first, *(batch for _, batch in zip(range(num_batches - 1), epoch_iterator, strict=False))]
        batches[-1] = self._own(batches[-1])
        return batches, self._over_ranks(self._counts_of_batches(batches), device)

    def _rows_of_step(self, num_batches: int) -> list[list[int]] | None:
        """The rows of each micro-batch that count, this rank's; None where they are not known beforehand."""
        if self._planned is None:
            return None
        plan, accumulated = self._planned.plan, self.args.gradient_accumulation_steps
        steps = -(-len(plan) // accumulated)
        start = self.state.global_step % steps * accumulated
        batches = plan[start : start + num_batches]
        if start + num_batches >= len(plan) and batches and self._may_repeat:
            own = self._own_rows(self.args.train_batch_size)
            batches = [*batches[:-1], batches[-1] if own is None else batches[-1][:own]]
        return batches

    def _as_planned(self, batch: Batch, rows: Sequence[int]) -> Batch:
        own = self._own(batch)
        self._check_counts(own, rows)
        return own

    def _own(self, batch: Batch) -> Batch:
        return self._without_repeats(batch, batch_size=self.args.train_batch_size) if self._may_repeat else batch

    @property
    def _may_repeat(self) -> bool:
        """Whether an epoch's last batch may repeat rows: the steps of "batch_rebalance" are all full."""
        return self.args.train_sampling_strategy != "batch_rebalance" and not self.args.dataloader_drop_last

    def _without_repeats(self, batch: Batch, *, batch_size: int) -> Batch:
        """The batch that the data loader has just given; of the last one of an epoch only this rank's own rows count.

        The number of rows of a stream is not known: there, repeated rows count as often as they come.
        """
        if self.args.dataloader_drop_last or not self.accelerator.gradient_state.end_of_dataloader:
            return batch
        own = self._own_rows(batch_size)
        return batch if own is None else self._counting(batch, rows=own)

    def _own_rows(self, batch_size: int) -> int | None:
        """How many rows of this rank's last batch of an epoch count; None for a stream."""
        rows = getattr(self.accelerator.gradient_state.active_dataloader.dataset, "__len__", None)
        if rows is None:
            return None
        accelerator = self.accelerator
        place = {"batch_size": batch_size, "rank": accelerator.process_index, "ranks": accelerator.num_processes}
        return own_rows(rows(), **place)

    @abstractmethod
    def _counting(self, batch: Batch, *, rows: int) -> Batch:
        """The batch of which only the first `rows` rows count: in losses, denominators, δ and metrics."""

    @abstractmethod
    def _counts_of_batches(self, batches: list[Batch]) -> Any:
        """What these micro-batches count, of this rank alone."""

    def _counts_of_rows(self, rows: Sequence[int]) -> Any:
        """The same of rows of the training set, from what is known of them; None where that is not enough."""
        return None

    def _check_counts(self, batch: Batch, rows: Sequence[int]) -> None:
        """Raise ConfigError where a batch does not count what its rows were said to."""

    @abstractmethod
    def _over_ranks(self, counts: Any, device: torch.device) -> Any:
        """What losses are divided by: the counts of all ranks."""

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum")


class PlannedBatches:
    """A batch sampler all of whose batches are known once its first one is asked for.

    Args:
        batches: the batch sampler; everything but its order is asked of it.

    Attributes:
        plan: the rows of each batch of the epoch that was begun last.
    """

    def __init__(self, batches: Any) -> None:
        self._batches = batches
        self.plan: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        self.plan = [list(rows) for rows in self._batches]
        yield from self.plan

    def __len__(self) -> int:
        return len(self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_batches"], name)


class MicroBatches:
    """The micro-batches of a step, each made when the one before it is done and emptied.

    Args:
        first: is there already.
        others: gives those that follow.
        planned: the rows of each.
        checked: batch and rows → the batch as it counts.
    """

    def __init__(
        self,
        first: Batch,
        others: Iterator[Batch],
        planned: Sequence[Sequence[int]],
        checked: Callable[[Batch, Sequence[int]], Batch],
    ) -> None:
        self._first, self._others, self._planned, self._checked = [first], others, planned, checked

    def __len__(self) -> int:
        return len(self._planned)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self._planned:
            batch = self._checked(self._first.pop() if self._first else next(self._others), rows)
            yield batch
            batch.clear()  # whoever took it may still hold it, and with it the pixels


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
