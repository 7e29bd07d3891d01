"""`mpo train-prm`: a process reward model from Monte-Carlo step labels."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import TrainingArguments

from mpo.multimodal.files import write_atomic
from mpo.multimodal.loading import load_processor
from recipes.config import TrainPRMConfig
from recipes.groups import read_groups
from recipes.run import open_stage
from recipes.training import training_defaults
from rewards.errors import StepAlignmentError
from rewards.label_source import require_estimates
from rewards.prm.formats import find_format, format_files
from rewards.prm.model_prm import load_weights
from rewards.prm.perturb import with_wrong_digit
from rewards.prm.trainer import LabelledGroup, LabelledSolution, PRMTrainer
from rewards.splitting import split_into
from rewards.types import Rollout, RolloutGroup


def train_prm(config: TrainPRMConfig) -> Path:
    """Train from `config.model`; write weights, processor and the contract `prm.json`."""
    stage = open_stage("train-prm", config, inputs=[config.groups, config.model, *format_files(config.prm_format)])
    if stage.complete:
        return stage.out
    prm_format = find_format(config.prm_format)
    read = read_groups(config.groups)
    groups, rejected = labelled_groups(read, config, prm_format.max_steps)
    groups = [
        with_injected_errors(group, config.injected, random.Random(f"{config.seed}:{i}"))
        for i, group in enumerate(groups)
    ]
    arguments = TrainingArguments(
        **training_defaults(stage.out, config), per_device_train_batch_size=config.batch_groups, logging_steps=50
    )
    model = load_weights(config.model, prm_format)
    trainer = PRMTrainer(
        model, load_processor(config.model), prm_format, arguments, groups, text_weight=config.text_weight
    )
    trainer.train()
    trainer.save_model(str(stage.out))
    write_atomic(stage.out / "log_history.json", json.dumps(trainer.state.log_history))
    total = sum(len(group.rollouts) for group in read)
    counts = {"in": total, "out": total - rejected, "rejected": {"too many steps": rejected} if rejected else {}}
    return stage.finish(counts)


def labelled_groups(
    groups: Sequence[RolloutGroup], config: TrainPRMConfig, max_steps: int
) -> tuple[list[LabelledGroup], int]:
    """Counts → labels, mc itself or [mc > threshold]; and how many responses have more steps than the format takes."""
    if config.soft_labels or config.threshold != 0.0:
        use = "soft labels (--soft_labels)" if config.soft_labels else f"labels at --threshold {config.threshold}"
        require_estimates((rollout for group in groups for rollout in group.rollouts), use=use)
    labelled, rejected = [], 0
    for group in groups:
        solutions = [_labelled(group, rollout, config) for rollout in group.rollouts]
        kept = tuple(solution for solution in solutions if len(solution.steps) <= max_steps)
        rejected += len(solutions) - len(kept)
        if kept:
            labelled.append(LabelledGroup(group.problem, kept))
    return labelled, rejected


def with_injected_errors(group: LabelledGroup, count: int, rng: random.Random) -> LabelledGroup:
    """The group, and up to `count` of its right responses again with one wrong digit."""
    right = [solution for solution in group.solutions if solution.ends_right]
    copies = [with_wrong_digit(solution, rng) for solution in rng.sample(right, min(count, len(right)))]
    return replace(group, solutions=(*group.solutions, *(copy for copy in copies if copy)))


def _labelled(group: RolloutGroup, rollout: Rollout, config: TrainPRMConfig) -> LabelledSolution:
    if rollout.mc is None:
        raise StepAlignmentError(
            f"problem {group.problem.id!r} has a rollout without step labels; run `mpo label-steps`"
        )
    values = [count.value for count in rollout.mc]
    labels: list[float | None] = [*values] if config.soft_labels else [float(v > config.threshold) for v in values]
    if config.until_first_error and 0.0 in values:
        after = values.index(0.0) + 1
        labels[after:] = [None] * len(labels[after:])
    return LabelledSolution(split_into(rollout.completion.text, len(values)), tuple(labels))
