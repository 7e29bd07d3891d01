"""`mpo train-prm`: a process reward model from Monte-Carlo step labels."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import TrainingArguments

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.files import write_atomic
from mpo.multimodal.loading import load_processor
from mpo.multimodal.messages import template_of
from recipes.config import TrainPRMConfig
from recipes.stage.folder import is_first_process, open_stage
from recipes.stage.groups import read_groups
from recipes.stage.label_rule import label_rule
from recipes.training.arguments import has_checkpoint, large_model_training, training_account
from recipes.training.model_card import write_prm_card
from recipes.training.step_labels import in_words, label_groups, with_a_label
from recipes.training.weights import choose_trained, run_dtype, weights_dtype, weights_to
from rewards.prm.admission import admit_solutions
from rewards.prm.concentration import load_head
from rewards.prm.formats import PRMFormat, find_format, format_files
from rewards.prm.labelling.contrast import visual_contrasts
from rewards.prm.labelling.labels import LabelledGroup, class_weights
from rewards.prm.labelling.perturb import with_wrong_digit
from rewards.prm.model_prm import has_head, load_weights
from rewards.prm.released import check_released
from rewards.prm.step_losses import Likelihood
from rewards.prm.trainer import PRMTrainer
from rewards.types import RolloutGroup

NO_LABEL = "no step has a label"


def train_prm(config: TrainPRMConfig) -> Path:
    """Train from `config.model`; write weights, processor and the contract `prm.json`."""
    saved = has_checkpoint(config.out) if config.save_steps else None
    rule = label_rule(config)
    second = [config.consensus] if config.consensus else []
    inputs = [config.groups, config.model, *second, *config.earlier, *format_files(config.prm_format)]
    stage = open_stage("train-prm", config, inputs=inputs, work=saved)
    if stage.complete:
        return stage.out
    prm_format = find_format(config.prm_format)
    _check_advantage(config, prm_format)
    if config.as_released:
        check_released(prm_format, text_weight=config.text_weight, class_weights=config.balance_classes)
    if config.num_problems < 0:
        raise ConfigError(f"--num_problems must be 0 for all, or a number of problems; got {config.num_problems}")
    dtype = run_dtype(config, config.model)
    new = read_groups(config.groups)[: config.num_problems or None]
    earlier = earlier_groups(new, [read_groups(folder) for folder in config.earlier], config)
    read = [*new, *earlier]
    labels = label_groups(
        read, rule, max_steps=prm_format.max_steps, second=read_groups(config.consensus) if config.consensus else None
    )
    groups, unlabelled = with_a_label(labels.groups)
    if not groups:
        raise DataError(f"no step of {config.groups} has a label; without one: {dict(labels.reasons)}")
    processor = load_processor(config.model)
    template_of(processor)  # or an error, before weights load
    groups, rejected = admit_solutions(groups, processor, prm_format, max_length=config.max_length)
    if not groups:
        raise DataError(f"no response of {config.groups} can be trained on; rejected: {rejected}")
    rejected |= {NO_LABEL: unlabelled} if unlabelled else {}
    steps = labels.account(groups)
    groups = [
        with_injected_errors(group, config.injected, random.Random(f"{config.seed}:{i}"))
        for i, group in enumerate(groups)
    ]
    wanted = config.visual_contrasts
    contrasts = visual_contrasts(groups, wanted, random.Random(config.seed)) if wanted else []
    groups += contrasts
    arguments = large_model_training(stage.out, config, batch="batch_groups", rows=len(groups), dtype=dtype)
    model = load_weights(config.model, prm_format, dtype=weights_dtype(config, dtype))
    trainer = PRMTrainer(
        model,
        processor,
        prm_format,
        TrainingArguments(**arguments, logging_steps=50),
        groups,
        text_weight=config.text_weight,
        class_weights=class_weights(groups) if config.balance_classes else None,
        likelihood=Likelihood(config.concentration, config.concentration_head) if rule.binomial else None,
        as_released=config.as_released,
        peft_config=choose_trained(model, config),
        jpeg_augmentation=config.jpeg_augmentation,
    )
    if trainer.concentration_head is not None and has_head(config.model):  # of a PRM that continues
        trainer.concentration_head.load_state_dict(load_head(config.model, model).state_dict())
    trainer.train(resume_from_checkpoint=saved)
    if not config.lora_rank:
        weights_to(trainer, dtype)
    trainer.save_model(str(stage.out))
    total = sum(len(group.rollouts) for group in read)
    counts = {"in": total, "out": total - sum(rejected.values()), "rejected": rejected, "steps": steps}
    if is_first_process():
        labels.write(stage.out)
        write_atomic(stage.out / "log_history.json", json.dumps(trainer.state.log_history))
        write_prm_card(stage.out, stage.provenance(), counts, trainer, prm_format)
    account, words = training_account(trainer)
    counts |= {"earlier problems": len(earlier)} if config.earlier else {}
    counts |= {"visual contrasts": sum(len(group.solutions) for group in contrasts), "training": account}
    return stage.finish(counts, note=words + in_words(steps, groups))


def earlier_groups(
    new: Sequence[RolloutGroup], earlier: Sequence[Sequence[RolloutGroup]], config: TrainPRMConfig
) -> list[RolloutGroup]:
    """Problems of earlier labels, drawn at random, until they are `earlier_share` of all; all if there are fewer."""
    pool = [group for some in earlier for group in some]
    wanted = round(len(new) * config.earlier_share / (1 - config.earlier_share))
    return random.Random(f"earlier:{config.seed}").sample(pool, min(wanted, len(pool)))


def labelled_groups(groups: Sequence[RolloutGroup], config: TrainPRMConfig, max_steps: int) -> list[LabelledGroup]:
    """Counts → labels by the settings of the stage; see `label_groups`."""
    return label_groups(groups, label_rule(config), max_steps=max_steps).groups


def with_injected_errors(group: LabelledGroup, count: int, rng: random.Random) -> LabelledGroup:
    """The group, and up to `count` of its right responses again with one wrong digit."""
    right = [solution for solution in group.solutions if solution.ends_right]
    copies = [with_wrong_digit(solution, rng) for solution in rng.sample(right, min(count, len(right)))]
    return replace(group, solutions=(*group.solutions, *(copy for copy in copies if copy)))


def _check_advantage(config: TrainPRMConfig, prm_format: PRMFormat) -> None:
    if (config.advantage is not None) != bool(prm_format.neutral):
        raise ConfigError(
            "advantage labels have three signs: use --advantage only with a format that has a neutral token "
            f"(visualprm_advantage), and with no other; got {config.advantage} with {prm_format.name!r}"
        )
    if config.advantage is not None and (config.injected or config.visual_contrasts):
        raise ConfigError("--injected and --visual_contrasts make labels of the value; leave them out with --advantage")
