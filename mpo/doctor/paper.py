"""Which settings of a run differ from the MPO paper's: https://arxiv.org/abs/2411.10442, the 8B model.

How the computation itself differs between paper, InternVL, TRL and this project is described in `docs/losses.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from mpo.config import MPOConfig


@dataclass(frozen=True)
class Deviation:
    """One setting that is not the paper's."""

    setting: str
    here: str
    paper: str
    comment: str


@dataclass(frozen=True)
class BatchPlan:
    """How the rows become optimizer steps.

    Attributes:
        rows: that are trained on.
        per_device: pairs of a micro-batch.
        accumulation: micro-batches of a step, on each rank.
        ranks: processes.
        steps: optimizer steps of the run.
        epochs: how often each row is seen.
    """

    rows: int
    per_device: int
    accumulation: int
    ranks: int
    steps: int
    epochs: float

    @property
    def pairs_a_step(self) -> int:
        """The effective batch."""
        return self.per_device * self.accumulation * self.ranks


@dataclass(frozen=True)
class Planned:
    """What a setting is read from."""

    args: MPOConfig
    batch: BatchPlan
    trained_share: float  # of the policy's values, in [0, 1]
    counted_share: float = 1.0  # of the rejected tokens, in (0, 1]


# setting, how to read it, the paper's value, a word on it. Schedule and number type are those of InternVL's scripts.
SETTINGS: tuple[tuple[str, Callable[[Planned], Any], Any, str], ...] = (
    ("beta", lambda run: run.args.beta, 0.1, "a smaller β lets the policy go further from the reference"),
    ("preference_weight", lambda run: run.args.preference_weight, 0.8, "w_p of L_p (DPO)"),
    ("quality_weight", lambda run: run.args.quality_weight, 0.2, "w_q of L_q (BCO)"),
    ("generation_weight", lambda run: run.args.generation_weight, 1.0, "w_g of L_g: the part that helped most there"),
    ("label_smoothing", lambda run: run.args.label_smoothing, 0.0, "no part of the paper"),
    (
        "reward_shift",
        lambda run: run.args.reward_shift,
        "cumulative",
        "δ; 'zero' is what TRL ≥ 0.29 does, 'ema' what NeMo-RL does",
    ),
    ("rejected tokens that count", lambda run: f"{run.counted_share:.1%}", "100.0%", "in L_p, L_q: rejected_span"),
    ("generation_average", lambda run: run.args.generation_average, "response", "how L_g weights long responses"),
    ("learning_rate", lambda run: run.args.learning_rate, 5e-6, "for 8B; 5e-7 gained less there, 5e-5 collapsed"),
    ("pairs per step", lambda run: run.batch.pairs_a_step, 256, "learning_rate was chosen for this batch"),
    ("epochs", lambda run: round(run.batch.epochs, 2), 1.0, "the paper sees each row once"),
    ("optimizer", lambda run: OptimizerNames(run.args.optim).value.split("_")[0], "adamw", ""),
    ("adam_beta1", lambda run: run.args.adam_beta1, 0.9, ""),
    ("adam_beta2", lambda run: run.args.adam_beta2, 0.999, ""),
    ("weight_decay", lambda run: run.args.weight_decay, 0.05, ""),
    ("warm-up, share of steps", lambda run: _warm_up(run), 0.05, ""),
    ("lr_scheduler_type", lambda run: SchedulerType(run.args.lr_scheduler_type).value, "cosine", ""),
    ("number type", lambda run: _number_type(run.args), "bfloat16", "float32 is more exact and slower"),
    ("trained weights", lambda run: f"{run.trained_share:.1%}", "100.0%", "vision tower, projector and language model"),
)


def deviations(run: Planned) -> tuple[Deviation, ...]:
    """The settings that are not the paper's, in the order of `SETTINGS`."""
    read = ((name, value(run), paper, comment) for name, value, paper, comment in SETTINGS)
    return tuple(
        Deviation(name, _shown(here), _shown(paper), comment) for name, here, paper, comment in read if here != paper
    )


def _warm_up(run: Planned) -> float:
    return round(run.args.get_warmup_steps(run.batch.steps) / run.batch.steps, 2)


def _number_type(args: MPOConfig) -> str:
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
