"""From a stage's settings to TRL's GRPOTrainer, not yet started: rows, rewards, arguments, checkpoints."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import gather_object
from transformers import ProgressCallback
from trl import GRPOConfig, GRPOTrainer

from mpo.multimodal.checkpoint import CheckpointedTrainer
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.files import write_atomic
from mpo.multimodal.images import load_image
from mpo.multimodal.loading import load_processor
from mpo.multimodal.messages import end_of_turn_id, sanitised
from recipes.config import TrainGRPOConfig
from recipes.training.arguments import CHECKPOINTS, micro_batches, training_defaults
from recipes.training.weights import load_policy, run_dtype
from rewards.prm.reward_function import PRMReward
from rewards.sampling.prompts import messages_of
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.scoring.reward_functions import FormatReward, LengthReward, OnlineReward, ProcessReward, VerifierReward
from rewards.types import Problem
from rewards.verifying.answer_checker import AnswerChecker

SHOWN = re.compile(r"reward|rewards/\w+/mean|completions/mean_length|guard/\w+")  # of a step's log, in the terminal
COUNTS = "reward_counts.json"  # in a checkpoint: what the reward functions have found up to there
# TRL's options. Ratios and advantages: GRPO arXiv 2402.03300 (clip range 0.2 as in PPO, arXiv 1707.06347), GSPO
# arXiv 2507.18071 (clip ranges section 5.1), Dr. GRPO arXiv 2503.20783 (no division by length and deviation).
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "importance_sampling_level": "token", "scale_rewards": "group", "epsilon": 0.2},
    "gspo": {
        **{"loss_type": "grpo", "importance_sampling_level": "sequence", "scale_rewards": "group"},
        **{"epsilon": 3e-4, "epsilon_high": 4e-4},
    },
    "dr_grpo": {"loss_type": "dr_grpo", "importance_sampling_level": "token", "scale_rewards": "none", "epsilon": 0.2},
}


def rows_of(problems: Sequence[Problem], processor: Any) -> datasets.Dataset:
    """TRL's rows: `prompt`, `images` and `problem_id`; images are opened when a row is read.

    Args:
        problems: with the prompt template that the policy is to see.
        processor: of the policy; its control tokens in a question are broken up.
    """
    by_id = {problem.id: problem for problem in problems}

    def made(batch: Mapping[str, list[str]]) -> dict[str, list[Any]]:
        asked = [by_id[id] for id in batch["problem_id"]]
        return {
            "problem_id": list(batch["problem_id"]),
            "prompt": [sanitised(processor, messages_of(problem)) for problem in asked],
            "images": [[load_image(image) for image in problem.images] for problem in asked],
        }

    rows = datasets.Dataset.from_dict({"problem_id": list(by_id)})
    rows.set_transform(made)
    return rows


def rewards_of(
    config: TrainGRPOConfig,
    problems: Mapping[str, Problem],
    checker: AnswerChecker,
    prm: ProcessRewardModel | None,
    processor: Any,
) -> list[tuple[OnlineReward, float]]:
    """The reward functions whose weight is above 0, each with its weight."""
    ends = {end_of_turn_id(processor), processor.tokenizer.eos_token_id} - {None}
    found: list[tuple[OnlineReward, float]] = [(VerifierReward(checker, ends), config.verifier_weight)]
    if prm is not None:
        scored = PRMReward(prm, how=config.aggregation, problems=problems)
        gate = checker if config.prm_gate else None
        found.append((ProcessReward(scored, gate=gate, ends=ends), config.prm_weight))
    found.append((FormatReward(checker, ends), config.format_weight))
    found.append((LengthReward(config.max_new_tokens, ends=ends), config.length_weight))
    return [(reward, weight) for reward, weight in found if weight]


def grpo_config(config: TrainGRPOConfig, out: Path, weights: Sequence[float], **changes: Any) -> GRPOConfig:
    """The trainer's settings; `changes` override the config.

    Args:
        config: of the stage.
        out: where the trainer may write.
        weights: of the reward functions, in their order.
        changes: of the trainer's settings.

    Raises:
        ConfigError: a step that cannot be cut into micro-batches.
    """
    per_device, accumulation = micro_batches(config.batch_size, config.per_device_batch)
    clip = {"epsilon": config.epsilon, "epsilon_high": config.epsilon_high}
    settings: dict[str, Any] = {
        **training_defaults(out, config),
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": int(config.max_steps * config.warmup),
        "weight_decay": 0.0,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation * config.updates_per_generation,
        "bf16": run_dtype(config, config.policy) == torch.bfloat16,
        "gradient_checkpointing": config.gradient_checkpointing,
        "num_generations": config.num_generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "beta": config.beta,
        "reward_weights": list(weights),
        "logging_steps": 1,
        "report_to": config.report_to,
        **ALGORITHMS[config.algorithm],
        **{name: value for name, value in clip.items() if value is not None},
    }
    if config.vllm_base_url:
        server = {"vllm_mode": "server", "vllm_server_base_url": config.vllm_base_url}
        settings |= {"use_vllm": True, **server}
    if config.save_steps:
        settings |= {"save_strategy": "steps", "save_steps": config.save_steps, "save_total_limit": CHECKPOINTS}
    return GRPOConfig(**(settings | changes))


def build_trainer(
    config: TrainGRPOConfig, out: Path, problems: Sequence[Problem], rewards: Sequence[tuple[OnlineReward, float]]
) -> ResumableGRPOTrainer:
    """TRL's trainer, with checkpoints that are complete or skipped.

    Raises:
        ConfigError: what TRL does not support, by name.
    """
    args = grpo_config(config, out, [weight for _, weight in rewards])
    model, adapters = load_policy(config, run_dtype(config, config.policy))
    processor = load_processor(config.policy)
    processor.tokenizer.padding_side = "left"
    trainer = ResumableGRPOTrainer(
        model,
        reward_funcs=[reward for reward, _ in rewards],
        args=args,
        train_dataset=rows_of(problems, processor),
        processing_class=processor,
        peft_config=adapters,
    )
    if trainer.ref_model is not None and not _same(model, trainer.ref_model):
        raise ConfigError(
            f"beta={config.beta} with all weights trained: TRL loads the reference from {model.config._name_or_path}, "
            "which is not this policy; merge the adapter first, set lora_rank, or set beta to 0"
        )
    trainer.counts = {reward.name: reward.counts for reward, _ in rewards}
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(ShortProgress())
    return trainer


class ShortProgress(ProgressCallback):
    """The bar, with the rewards, lengths and looks of the guard of a step; TRL logs forty numbers at each."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write what a person watches; the whole log is kept in `log_history.json` and sent to the tracker."""
        shown = {name: value for name, value in (logs or {}).items() if SHOWN.fullmatch(name)}
        super().on_log(args, state, control, logs=shown, **kwargs)


class ResumableGRPOTrainer(CheckpointedTrainer, GRPOTrainer):
    """TRL's trainer, unchanged but for what is saved and loaded: checkpoints are complete or skipped.

    transformers' own resume reads a full checkpoint by the names of the file. For an InternVL none of them matches, and
    the run would continue from the weights at the start with a warning; `CheckpointedTrainer` reads them by name.

    Attributes:
        counts: name of a reward → what it has found in this process; each checkpoint keeps the sum over all.
    """

    counts: Mapping[str, Counter[str]]

    def total_counts(self) -> dict[str, dict[str, int]]:
        """`counts` over all processes, which all call this."""
        total: dict[str, Counter[str]] = {name: Counter() for name in self.counts}
        for own in gather_object([{name: dict(found) for name, found in self.counts.items()}]):
            for name, found in own.items():
                total[name].update(found)
        return {name: dict(found) for name, found in total.items()}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._kept_counts = self.total_counts()
        super()._save_checkpoint(model, trial)

    def _save_own_state(self, folder: Path) -> None:
        write_atomic(folder / COUNTS, json.dumps(self._kept_counts))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if not self.is_world_process_zero():  # the first process holds what all had found
            return
        for name, kept in json.loads(Path(resume_from_checkpoint, COUNTS).read_text(encoding="utf-8")).items():
            self.counts[name].update(kept)


def _same(policy: Any, reference: Any) -> bool:
    theirs = dict(reference.named_parameters())
    return all(
        torch.equal(weight.detach().cpu(), theirs[name].detach().cpu().to(weight.dtype))
        for name, weight in policy.named_parameters()
    )
