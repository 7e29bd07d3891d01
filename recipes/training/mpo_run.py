"""From a stage's settings to an MPOTrainer that is not yet started; `mpo train-mpo` and `mpo doctor` share it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mpo.config import MPOConfig
from mpo.multimodal.errors import DataError
from mpo.multimodal.loading import load_processor
from mpo.trainer import MPOTrainer
from recipes.config import TrainMPOConfig
from recipes.stage.folder import PAIRS
from recipes.training.arguments import large_model_training
from recipes.training.weights import load_policy, run_dtype
from rewards.interchange.trl_rows import read_trl_parquet


def read_pairs(config: TrainMPOConfig, *, kept_in: Path | None = None) -> Any:
    """The pairs that a run is given, as a `datasets.Dataset`; MPOTrainer leaves out those that it cannot use.

    Args:
        config: of the stage.
        kept_in: folder for a copy that is mapped into memory, see `read_trl_parquet`; None reads them into memory.

    Raises:
        DataError: the file holds none.
    """
    rows = read_trl_parquet(config.pairs / PAIRS if config.pairs.is_dir() else config.pairs, kept_in=kept_in)
    if not len(rows):
        raise DataError(f"{config.pairs} holds no pair; build pairs first")
    return rows


def build_trainer(config: TrainMPOConfig, out: Path, rows: Any, **changes: Any) -> MPOTrainer:
    """The trainer of a run, not started.

    Args:
        config: of the stage.
        out: where the trainer may write.
        rows: from `read_pairs`.
        changes: of the trainer's settings.
    """
    args = mpo_config(config, out, len(rows), augmented=is_augmented(config, rows), **changes)
    model, adapters = load_policy(config, run_dtype(config, config.policy))
    processor = load_processor(config.policy)
    return MPOTrainer(model, args=args, train_dataset=rows, processing_class=processor, peft_config=adapters)


def is_augmented(config: TrainMPOConfig, rows: Any) -> bool:
    """Whether a row asks for images that change from one epoch to the next: no value of the reference can be kept."""
    return config.jpeg_augmentation == "marked" and any(rows["data_augment"])


def mpo_config(config: TrainMPOConfig, out: Path, rows: int, *, augmented: bool = False, **changes: Any) -> MPOConfig:
    """The trainer's settings for a run on this many pairs; `changes` override the config.

    Args:
        config: of the stage.
        out: where the trainer may write.
        rows: number of pairs.
        augmented: whether rows ask for images that change from one epoch to the next.
        changes: of the trainer's settings.

    Raises:
        ConfigError: a value that cannot work.
    """
    dtype = run_dtype(config, config.policy)
    shared = large_model_training(out, config, batch="batch_size", rows=rows, dtype=dtype)
    augmented = augmented or config.jpeg_augmentation == "all"
    seen = config.max_steps * config.batch_size or shared["num_train_epochs"] * rows
    settings = {
        **shared,
        "beta": config.beta,
        "preference_weight": config.preference_weight,
        "quality_weight": config.quality_weight,
        "generation_weight": config.generation_weight,
        "max_length": config.max_length,
        "group_by_prompt": config.group_by_prompt,
        "train_sampling_strategy": "batch_rebalance" if config.balance_tokens else "random",
        "max_row_tokens": config.max_row_tokens,
        # Rows are seen more than once, and are the same each time.
        "precompute_ref_log_probs": seen > rows and not weights_are_sharded() and not augmented,
        "jpeg_augmentation": config.jpeg_augmentation,
        "logging_steps": 10,
        "logging_first_step": True,  # 0.8318 + L_g where policy = reference
        "report_to": config.report_to,
    }
    return MPOConfig(**(settings | changes))


def weights_are_sharded() -> bool:
    """Whether `accelerate launch` has asked for FSDP or DeepSpeed."""
    return any(os.environ.get(f"ACCELERATE_USE_{name}", "false") == "true" for name in ("FSDP", "DEEPSPEED"))
