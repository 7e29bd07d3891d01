"""What every training stage of a recipe shares: its arguments, how a step is cut, whether a killed run can continue."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mpo.multimodal.checkpoint_files import MANIFEST as COMPLETE
from mpo.multimodal.errors import ConfigError
from recipes.config import ModelTraining
from recipes.stage.exclusive import one_length

WORKERS = 4  # processes that make batches, beside an accelerator
CHECKPOINTS = 2  # kept; a damaged one is no loss while there is another


def training_defaults(out: Path, config: Any) -> dict[str, Any]:
    """Cosine schedule, no checkpoints in mid-stage, nothing sent anywhere, the accelerator if there is one.

    Args:
        out: the stage's folder.
        config: a stage config with `max_steps`, `learning_rate` and `seed`.
    """
    accelerated = torch.accelerator.is_available()
    return {
        "output_dir": str(out),
        "max_steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, config.max_steps // 20),
        "weight_decay": 0.05,
        "seed": config.seed,
        "bf16": False,  # tiny models train in float32 everywhere
        "use_cpu": not accelerated,
        "dataloader_pin_memory": accelerated,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_nan_inf_filter": False,
    }


def large_model_training(
    out: Path, config: ModelTraining, *, batch: str, rows: int, dtype: torch.dtype
) -> dict[str, Any]:
    """The arguments of `mpo train-mpo` and `mpo train-prm`.

    Args:
        out: the stage's folder.
        config: of the stage, with `max_steps`, `learning_rate` and `seed` too.
        batch: the name of its setting for the rows of an optimizer step.
        rows: that there are to train on.
        dtype: that the forward pass runs in.

    Raises:
        ConfigError: a value that cannot work.
    """
    steps, rate = config.max_steps, config.learning_rate  # type: ignore[attr-defined]
    if (
        not 0 <= config.warmup < 1
        or min(config.epochs, config.per_device_batch, config.lora_rank, config.save_steps) < 0
        or min(steps, config.min_steps, getattr(config, batch) - 1) < 0
        or rate <= 0
        or (config.dataloader_num_workers or 0) < 0
    ):
        raise ConfigError(
            "expected warmup in [0, 1), learning_rate > 0 and no negative epochs, max_steps, min_steps, "
            f"per_device_batch, lora_rank, save_steps, dataloader_num_workers or {batch}, got {config.warmup}, {rate}, "
            f"{config.epochs}, {steps}, {config.min_steps}, {config.per_device_batch}, {config.lora_rank}, "
            f"{config.save_steps}, {config.dataloader_num_workers} and "
            f"{getattr(config, batch)}"
        )
    one_length(config)
    epochs = 0.0 if steps else config.epochs or 1.0
    size = getattr(config, batch)
    if epochs and config.min_steps:
        size = fitting_batch(size, config.per_device_batch, rows=rows, epochs=epochs, steps=config.min_steps)
    if size < getattr(config, batch):
        print(
            f"{batch} {getattr(config, batch)} -> {size}: so {epochs:g} epochs over {rows} rows have at least "
            f"{config.min_steps} optimizer steps, or as many as can be (min_steps)",
            file=sys.stderr,
        )
    per_device, accumulation = micro_batches(size, config.per_device_batch, name=batch)
    arguments = training_defaults(out, config) | {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "bf16": dtype == torch.bfloat16,
        "gradient_checkpointing": config.gradient_checkpointing,
        **feeding(config.dataloader_num_workers, accelerated=torch.accelerator.is_available()),
    }
    if epochs:
        arguments |= {"max_steps": -1, "num_train_epochs": epochs, "warmup_steps": config.warmup}
    else:
        arguments["warmup_steps"] = max(1, int(arguments["max_steps"] * config.warmup))
    if config.save_steps:
        arguments |= {"save_strategy": "steps", "save_steps": config.save_steps, "save_total_limit": CHECKPOINTS}
    return arguments


def feeding(workers: int | None, *, accelerated: bool) -> dict[str, Any]:
    """How batches reach the model: processes that make them ahead, and copies that do not wait.

    Args:
        workers: processes; None for `WORKERS` with an accelerator, else none.
        accelerated: whether the model runs on one.

    Example:
        >>> feeding(None, accelerated=False)
        {'dataloader_num_workers': 0}
        >>> feeding(None, accelerated=True)["dataloader_num_workers"]
        4
    """
    number = (WORKERS if accelerated else 0) if workers is None else workers
    settings: dict[str, Any] = {"dataloader_num_workers": number}
    if number:
        settings |= {"dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2}
    return settings | ({"accelerator_config": {"non_blocking": True}} if accelerated else {})


def training_account(trainer: Any) -> tuple[dict[str, Any], str]:
    """What a finished run did, for the manifest: steps, epochs, last logged loss, warnings; and the same in words.

    Args:
        trainer: a `WholeStepTrainer` that has trained.
    """
    plan, losses = trainer.schedule(), [line["loss"] for line in trainer.state.log_history if "loss" in line]
    done = replace(plan, steps=trainer.state.global_step)  # a guard may have ended the run
    account = {
        "steps": done.steps,
        "epochs": round(done.epochs, 2),
        "last_loss": float(losses[-1]) if losses else None,
        "warnings": plan.warnings(),
    }
    words = f"{account['steps']} optimizer steps, {account['epochs']:g} epochs"
    words += f", last logged loss {account['last_loss']:.4g}" if losses else ""
    words += "".join(f"; WARNING: {warning}" for warning in account["warnings"])
    return account, words


def has_checkpoint(out: Path) -> bool:
    """Whether a save has finished in this folder; the trainer checks its files when it resumes."""
    return any(out.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}"))


def fitting_batch(batch_size: int, per_device: int, *, rows: int, epochs: float, steps: int) -> int:
    """The largest number of rows per optimizer step, at most `batch_size`, with which a run has at least `steps` steps.

    It stays a multiple of a micro-batch on every process, and is one of those where even that leaves fewer steps.

    Example:
        >>> [fitting_batch(256, 8, rows=rows, epochs=1, steps=20) for rows in (62, 400, 4000, 40000)]
        [8, 16, 200, 256]
    """
    unit = (per_device or 1) * int(os.environ.get("WORLD_SIZE", "1"))
    most = int(rows * epochs) // steps
    return min(batch_size, max(unit, most // unit * unit))


def micro_batches(batch_size: int, per_device: int = 0, *, name: str = "batch_size") -> tuple[int, int]:
    """(rows per micro-batch, micro-batches per step) of each process, which together make a step of `batch_size` rows.

    Args:
        batch_size: rows of an optimizer step, over all processes.
        per_device: rows per micro-batch; 0 takes a process's whole share.
        name: of the setting, for the error.

    Raises:
        ConfigError: the step cannot be cut that way.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    size = per_device or batch_size // processes
    if size < 1 or batch_size % (size * processes):
        raise ConfigError(
            f"{name}={batch_size} rows per step cannot be cut into micro-batches of {size} on {processes} processes: "
            "it must be a multiple of per_device_batch x processes"
        )
    return size, batch_size // (size * processes)
