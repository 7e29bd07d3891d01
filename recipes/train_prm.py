"""`mpo train-prm`: a process reward model from Monte-Carlo step labels."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import TrainingArguments

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from recipes.config import TrainPRMConfig
from recipes.groups import read_groups
from recipes.run import open_stage, write_atomic
from recipes.training import training_defaults
from rewards.errors import StepAlignmentError
from rewards.prm.formats import FORMATS
from rewards.prm.trainer import LabelledGroup, LabelledSolution, PRMTrainer
from rewards.splitting import split_on_blank_lines
from rewards.types import Rollout, RolloutGroup


def train_prm(config: TrainPRMConfig) -> Path:
    """Train from `config.model`; write weights, processor and the contract `prm.json`."""
    stage = open_stage("train-prm", config, inputs=[config.groups, config.model])
    if stage.complete:
        return stage.out
    if config.prm_format not in FORMATS:
        raise ConfigError(f"unknown prm_format {config.prm_format!r}: expected one of {', '.join(FORMATS)}")
    groups = [labelled_group(group, config) for group in read_groups(config.groups)]
    arguments = TrainingArguments(
        **training_defaults(stage.out, config), per_device_train_batch_size=config.batch_groups, logging_steps=50
    )
    trainer = PRMTrainer(
        load_model(config.model), load_processor(config.model), FORMATS[config.prm_format], arguments, groups
    )
    trainer.train()
    trainer.save_model(str(stage.out))
    write_atomic(stage.out / "log_history.json", json.dumps(trainer.state.log_history))
    solutions = sum(len(group.solutions) for group in groups)
    return stage.finish({"in": solutions, "out": solutions, "rejected": {}})


def labelled_group(group: RolloutGroup, config: TrainPRMConfig) -> LabelledGroup:
    """Counts → labels: mc itself, or [mc > threshold]."""
    return LabelledGroup(group.problem, tuple(_labelled(group, rollout, config) for rollout in group.rollouts))


def _labelled(group: RolloutGroup, rollout: Rollout, config: TrainPRMConfig) -> LabelledSolution:
    if rollout.mc is None:
        raise StepAlignmentError(
            f"problem {group.problem.id!r} has a rollout without step labels; run `mpo label-steps`"
        )
    values = [count.value for count in rollout.mc]
    labels = values if config.soft_labels else [float(value > config.threshold) for value in values]
    return LabelledSolution(split_on_blank_lines(rollout.completion.text), tuple(labels))
