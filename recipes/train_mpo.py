"""`mpo train-mpo`: Mixed Preference Optimization on pairs (arXiv 2411.10442)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpo.config import MPOConfig
from mpo.multimodal.errors import DataError
from mpo.multimodal.files import write_atomic
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.messages import control_tokens_in
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
    processor = load_processor(config.policy)
    read = read_trl_parquet(config.pairs / PAIRS if config.pairs.is_dir() else config.pairs)
    rows = read.filter(lambda row: not _has_control_token(processor, row), load_from_cache_file=False)
    if not len(rows):
        raise DataError(f"{config.pairs} holds no usable pair ({len(read)} rows); build pairs first")
    arguments = MPOConfig(
        **training_defaults(stage.out, config) | {"report_to": config.report_to},
        per_device_train_batch_size=config.batch_size,
        beta=config.beta,
        preference_weight=config.preference_weight,
        quality_weight=config.quality_weight,
        generation_weight=config.generation_weight,
        precompute_ref_log_probs=config.max_steps * config.batch_size > len(rows),  # rows are seen more than once
        logging_steps=10,
        logging_first_step=True,  # 0.8318 + L_g where policy = reference
    )
    with tracking(config.report_to, stage.out, name=f"train-mpo {stage.out.name}"):
        trainer = MPOTrainer(load_model(config.policy), args=arguments, train_dataset=rows, processing_class=processor)
        if config.sample_every:
            problems = problems_in_rows(rows, config.sample_problems)
            looks = {"every": config.sample_every, "max_new_tokens": config.sample_tokens, "seed": config.seed}
            trainer.add_callback(SampleMonitor(trainer, problems, **looks))
        trainer.train()
    trainer.save_model(str(stage.out))
    write_atomic(stage.out / "log_history.json", json.dumps(trainer.state.log_history))
    dropped = len(read) - len(rows)
    rejected = {"control token in a response": dropped} if dropped else {}
    return stage.finish({"in": len(read), "out": len(rows), "rejected": rejected})


def _has_control_token(processor: Any, row: dict[str, Any]) -> bool:
    texts = [block["text"] or "" for side in ("chosen", "rejected") for turn in row[side] for block in turn["content"]]
    return any(control_tokens_in(processor, text) for text in texts)
