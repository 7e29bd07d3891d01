"""`mpo train-mpo`: Mixed Preference Optimization on pairs (arXiv 2411.10442)."""

from __future__ import annotations

import json
from pathlib import Path

from mpo.config import MPOConfig
from mpo.multimodal.loading import load_model, load_processor
from mpo.trainer import MPOTrainer
from recipes.build_pairs import PAIRS
from recipes.config import TrainMPOConfig
from recipes.run import open_stage, write_atomic
from recipes.training import training_defaults
from rewards.interchange.trl_rows import read_trl_parquet


def train_mpo(config: TrainMPOConfig) -> Path:
    """Train `config.policy` against its own frozen copy; write the policy, its processor and the log."""
    stage = open_stage("train-mpo", config, inputs=[config.policy, config.pairs])
    if stage.complete:
        return stage.out
    rows = read_trl_parquet(config.pairs / PAIRS if config.pairs.is_dir() else config.pairs)
    arguments = MPOConfig(
        **training_defaults(stage.out, config),
        per_device_train_batch_size=config.batch_size,
        beta=config.beta,
        preference_weight=config.preference_weight,
        quality_weight=config.quality_weight,
        generation_weight=config.generation_weight,
        logging_steps=10,
        logging_first_step=True,  # 0.8318 + L_g where policy = reference
    )
    trainer = MPOTrainer(
        load_model(config.policy), args=arguments, train_dataset=rows, processing_class=load_processor(config.policy)
    )
    trainer.train()
    trainer.save_model(str(stage.out))
    write_atomic(stage.out / "log_history.json", json.dumps(trainer.state.log_history))
    return stage.finish({"in": len(rows), "out": len(rows), "rejected": {}})
