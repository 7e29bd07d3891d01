"""What a run will do, found out before any weight moves: the findings behind `mpo doctor`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers.training_args import OptimizerNames

from mpo.admission import AdmissionReport, PairLength, lengths
from mpo.doctor.memory import (
    MemoryEstimate,
    batch_bytes,
    count_activations,
    gradient_bytes,
    optimizer_bytes,
    weight_bytes,
)
from mpo.doctor.paper import BatchPlan, Deviation, Planned, deviations
from mpo.doctor.seam import ShownSeam, seam_of_row
from mpo.forward import model_inputs, pair_logps
from mpo.losses import implicit_rewards
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.logps import head_bytes
from mpo.multimodal.scoring import innermost, response_logps
from mpo.trainer import MPOTrainer

# What rounding may do to L and to an implicit reward at step 0, in float32 and in half precision.
TOLERANCE, TOLERANCE_HALF = 1e-3, 5e-2


@dataclass(frozen=True)
class StepZero:
    """The loss where policy = reference: every implicit reward is 0, so L = w_p·ln 2 + w_q·2·ln 2 + w_g·L_g.

    Attributes:
        loss: L of the run's first pairs, a mean over their batches.
        constant: (w_p + 2·w_q)·ln 2, times the mean weight of these pairs; 0.8318 with the paper's weights.
        generation: L_g of the same pairs.
        expected: constant + w_g·L_g.
        largest_reward: max |r| over their responses; L alone would not show a shift that both responses share.
        pairs: how many pairs were computed.
        tolerance: what rounding may do to L and r.
    """

    loss: float
    constant: float
    generation: float
    expected: float
    largest_reward: float
    pairs: int
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether policy and reference are one model; NaN is no agreement."""
        return abs(self.loss - self.expected) <= self.tolerance and self.largest_reward <= self.tolerance


@dataclass(frozen=True)
class Preflight:
    """Everything that is known before step 0.

    Attributes:
        rows: the account of the training rows.
        lengths: of the kept rows, in their order.
        step_zero: the loss of the first batches.
        layout: "shared" or "paired".
        layout_reason: why.
        reward_shift: mode of δ.
        memory: of one process on this machine, in the number type that it would train in.
        batch: the effective batch and the number of steps.
        deviations: settings that are not the paper's.
        seam: where prompt and response meet, of the first row.
    """

    rows: AdmissionReport
    lengths: tuple[PairLength, ...]
    step_zero: StepZero
    layout: str
    layout_reason: str
    reward_shift: str
    memory: MemoryEstimate
    batch: BatchPlan
    deviations: tuple[Deviation, ...]
    seam: ShownSeam

    @property
    def tokens_saved(self) -> float:
        """Tokens of the paired layout (prompt twice) over those of the shared one."""
        responses = sum(pair.chosen + pair.rejected for pair in self.lengths)
        prompts = sum(pair.prompt for pair in self.lengths)
        return (2 * prompts + responses) / (prompts + responses)

    @property
    def rejected_counted(self) -> float:
        """Share of the rejected tokens that count in L_p and L_q; 1 without `rejected_span`."""
        return counted_share(self.lengths)


def preflight(trainer: MPOTrainer, *, batches: int = 4, keeps_reference: bool = True) -> Preflight:
    """Look at a trainer that has not been trained. Weights, δ, metrics and random state stay as they are.

    Args:
        trainer: with a training dataset that has a length, and a `PreferenceCollator`.
        batches: of the run, whose loss is computed.
        keeps_reference: False where the run will compute the reference beforehand and let it go.

    Raises:
        ConfigError: a stream, or rows of another collator.
    """
    if "train" not in trainer.admission:
        raise ConfigError("expected a training dataset with a length and a PreferenceCollator: no row was checked")
    rows: Any = trainer.train_dataset
    collator: Any = trainer.data_collator
    args = trainer.args
    measured = lengths(rows, collator, quiet=bool(args.disable_tqdm))
    longest = sorted(range(len(rows)), key=lambda index: -measured[index].longer)[: args.per_device_train_batch_size]
    with _in_training_mode(trainer):
        step_zero = _step_zero(trainer, batches)
        memory = _memory(trainer, [rows[index] for index in longest], keeps_reference=keeps_reference)
    plan = _plan(trainer)
    share = weight_bytes(trainer.model, trained=True) / weight_bytes(trainer.model)
    return Preflight(
        rows=trainer.admission["train"],
        lengths=tuple(measured),
        step_zero=step_zero,
        layout="shared" if trainer.sharing.on else "paired",
        layout_reason=trainer.sharing.reason,
        reward_shift=trainer.reward_shift.mode,
        memory=memory,
        batch=plan,
        deviations=deviations(Planned(args, plan, share, counted_share(measured))),
        seam=seam_of_row(collator, rows[0]),
    )


def counted_share(lengths: Sequence[PairLength]) -> float:
    """Counted tokens over all tokens of the rejected responses, in (0, 1]."""
    return sum(pair.counted for pair in lengths) / sum(pair.rejected for pair in lengths)


def histogram(values: Sequence[int], bins: int = 8) -> list[tuple[int, int, int]]:
    """(from, to, how many) over equal ranges of whole numbers, both ends included.

    Example:
        >>> histogram([1, 2, 2, 9], bins=3)
        [(1, 3, 3), (4, 6, 0), (7, 9, 1)]
    """
    low = min(values)
    width = math.ceil((max(values) - low + 1) / bins)
    counts = np.bincount((np.asarray(values) - low) // width)
    return [(low + i * width, low + (i + 1) * width - 1, int(count)) for i, count in enumerate(counts)]


@torch.no_grad()
def _step_zero(trainer: MPOTrainer, batches: int) -> StepZero:
    """In training mode: dropout or drop-path that was left on makes policy and reference differ, and shows."""
    args, pairs, largest = trainer.args, 0, 0.0
    total = generation = weighted = 0.0
    for batch in islice(trainer.get_train_dataloader(), batches):
        inputs = trainer._prepare_inputs(batch)
        weight = inputs.get("pair_weight")
        with trainer.compute_loss_context_manager():
            admitted = _admitted(trainer, inputs)
            logps = pair_logps(trainer.model, admitted, inputs["pair_index"], reference=trainer.ref_model)
        loss = trainer.loss_of(logps, pair_weight=weight)
        count = len(inputs["pair_ids"])
        rewards = torch.cat(implicit_rewards(logps, beta=args.beta)).abs()
        largest = max(largest, float(rewards.nan_to_num(nan=math.inf).max()))
        pairs += count
        total += count * float(loss.total)
        generation += count * float(loss.generation)
        weighted += count if weight is None else float(weight.sum())
    weights, generation = args.weights, generation / pairs
    constant = (weights.preference + 2 * weights.quality) * math.log(2) * weighted / pairs  # w_p·ln 2 + w_q·2·ln 2
    half = args.bf16 or args.fp16 or trainer.model.dtype != torch.float32
    return StepZero(
        loss=total / pairs,
        constant=constant,
        generation=generation,
        expected=constant + weights.generation * generation,
        largest_reward=largest,
        pairs=pairs,
        tolerance=TOLERANCE_HALF if half else TOLERANCE,
    )


def _memory(trainer: MPOTrainer, rows: list[Any], *, keeps_reference: bool) -> MemoryEstimate:
    """Measured on the rows that need the most."""
    args, model = trainer.args, trainer.model
    inputs = _admitted(trainer, trainer._prepare_inputs(trainer.data_collator(rows)))
    with trainer.compute_loss_context_manager():
        activations = count_activations(model, lambda: response_logps(model, inputs), inputs=inputs)
        head = head_bytes(innermost(model), inputs["labels"])
    return MemoryEstimate(
        weights=weight_bytes(model),
        reference=weight_bytes(trainer.ref_model) if keeps_reference else 0,
        optimizer=optimizer_bytes(model, OptimizerNames(args.optim).value, masters=args.master_weights),
        gradients=gradient_bytes(model, masters=args.master_weights),
        activations=activations,
        checkpointing=bool(args.activation_checkpointing),
        accumulates=args.gradient_accumulation_steps > 1,
        batch=batch_bytes(inputs),
        head=head,
    )


def _plan(trainer: MPOTrainer) -> BatchPlan:
    args, rows = trainer.args, trainer.admission["train"].kept
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    ranks = args.world_size
    pairs = args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks
    epochs = steps * pairs / rows if args.max_steps > 0 else args.num_train_epochs
    return BatchPlan(rows, args.per_device_train_batch_size, args.gradient_accumulation_steps, ranks, steps, epochs)


def _admitted(trainer: MPOTrainer, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Model inputs only, in the layout that the models can read."""
    models = [trainer.model] if trainer.ref_model is None else [trainer.model, trainer.ref_model]
    return trainer.sharing.admit(model_inputs(inputs)[0], models)


@contextmanager
def _in_training_mode(trainer: MPOTrainer) -> Iterator[None]:
    """The policy as a training step finds it; its mode and the random state are put back."""
    was_training, device = trainer.model.training, trainer.args.device
    trainer.model.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        trainer.model.train(was_training)
