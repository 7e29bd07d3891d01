"""`mpo train-mpo`: Mixed Preference Optimization on pairs (arXiv 2411.10442)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpo.config import MPOConfig
from mpo.multimodal.errors import DataError
from mpo.multimodal.files import write_atomic
from mpo.multimodal.loading import load_model, load_processor
from mpo.trainer import MPOTrainer
from recipes.build_pairs import PAIRS
from recipes.config import TrainMPOConfig
from recipes.run import open_stage
from recipes.tracking import tracking
from recipes.training import training_defaults
from rewards.generators.monitor import SampleMonitor
from rewards.interchange.trl_rows import problems_in_rows, read_trl_parquet


def train_mpo(config: TrainMPOConfig) -> Path:
    """Train `config.policy` against its own frozen copy; write the policy, its processor and the log."""
    stage = open_stage("train-mpo", config, inputs=[config.policy, config.pairs])
    if stage.complete:
        return stage.out
    rows = read_pairs(config)
    with tracking(config.report_to, stage.out, name=f"train-mpo {stage.out.name}"):
        trainer = MPOTrainer(
            load_model(config.policy),
            args=mpo_config(config, stage.out, len(rows)),
            train_dataset=rows,
            processing_class=load_processor(config.policy),
        )
        if config.sample_every:
            problems = problems_in_rows(rows, config.sample_problems)
            looks = {"every": config.sample_every, "max_new_tokens": config.sample_tokens, "seed": config.seed}
            trainer.add_callback(SampleMonitor(trainer, problems, **looks))
        trainer.train()
    trainer.save_model(str(stage.out))
    write_atomic(stage.out / "log_history.json", json.dumps(trainer.state.log_history))
    report = trainer.admission["train"]
    return stage.finish({"in": report.rows, "out": report.kept, "rejected": report.rejected})


def read_pairs(config: TrainMPOConfig) -> Any:
    """The pairs that a run is given, as a `datasets.Dataset`; MPOTrainer leaves out those that it cannot use.

    Raises:
        DataError: the file holds none.
    """
    rows = read_trl_parquet(config.pairs / PAIRS if config.pairs.is_dir() else config.pairs)
    if not len(rows):
        raise DataError(f"{config.pairs} holds no pair; build pairs first")
    return rows


def mpo_config(config: TrainMPOConfig, out: Path, rows: int) -> MPOConfig:
    """The trainer's settings for a run on so many pairs."""
    return MPOConfig(
        **training_defaults(out, config) | {"report_to": config.report_to},
        per_device_train_batch_size=config.batch_size,
        beta=config.beta,
        preference_weight=config.preference_weight,
        quality_weight=config.quality_weight,
        generation_weight=config.generation_weight,
        max_length=config.max_length,
        precompute_ref_log_probs=config.max_steps * config.batch_size > rows,  # rows are seen more than once
        logging_steps=10,
        logging_first_step=True,  # 0.8318 + L_g where policy = reference
    )
