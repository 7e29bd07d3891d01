"""`mpo warm-start`: supervised training on demonstrated answers, with TRL's SFTTrainer.

The collator is ours, so that a row is tokenised exactly as sampling, scoring and MPO tokenise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from mpo.multimodal.finite import FiniteTrainer
from mpo.multimodal.images import load_image
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.memory_bound import KEPT_BYTES, Kept
from mpo.multimodal.messages import Message, prompt_text, response_ids, template_of, user_message
from mpo.multimodal.prefix import EncodedPrompt, encode_prompt, stack_rows
from mpo.multimodal.turn import turn_of
from recipes.config import WarmStartConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import read_groups
from recipes.training.arguments import training_defaults
from rewards.types import Problem


def warm_start(config: WarmStartConfig) -> Path:
    """Train `config.policy` on the demonstrations; write model and processor to `config.out`."""
    stage = open_stage("warm-start", config, inputs=[config.policy, config.demonstrations])
    if stage.complete:
        return stage.out
    groups = read_groups(config.demonstrations)
    problems = [group.problem for group in groups]
    rows = [
        {"problem": index, "response": rollout.completion.text}
        for index, group in enumerate(groups)
        for rollout in group.rollouts
    ]
    processor = load_processor(config.policy)
    template_of(processor)  # or an error, before weights load
    arguments = SFTConfig(
        **training_defaults(stage.out, config),
        per_device_train_batch_size=config.batch_size,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        completion_only_loss=False,
        logging_steps=50,
    )
    trainer = WarmStartTrainer(
        model=load_model(config.policy),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        data_collator=DemonstrationCollator(processor, problems),
    )
    trainer.train()
    trainer.save_model(str(stage.out))
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    note = f"{trainer.state.global_step} optimizer steps, {trainer.state.epoch or 0:.2g} epochs"
    note += f", last logged loss {float(losses[-1]):.4g}" if losses else ""
    return stage.finish({"in": len(rows), "out": len(rows), "rejected": {}}, note=note)


class WarmStartTrainer(FiniteTrainer, SFTTrainer):
    """TRL's trainer with the guard that all trainers share."""


class DemonstrationCollator:
    """Rows `{problem, response}` → inputs and labels; prompts are kept from epoch to epoch, as many as fit."""

    def __init__(self, processor: Any, problems: Sequence[Problem]) -> None:
        self.processor, self.problems = processor, problems
        self._encoded: Kept[EncodedPrompt] = Kept(KEPT_BYTES)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Model inputs and labels; only the answers are supervised."""
        prompts = [self._prompt(row["problem"]) for row in rows]
        answers = [self._answer(row["problem"], row["response"]) for row in rows]
        return stack_rows(prompts, answers, pad_token_id=self.processor.tokenizer.pad_token_id)

    def _answer(self, index: int, response: str) -> list[int]:
        question, text = self._asked(self.problems[index])
        before = turn_of(self.processor, question, text, response).before
        return response_ids(self.processor, response, before=before)

    def _prompt(self, index: int) -> EncodedPrompt:
        return self._encoded(index, lambda: self._encode(self.problems[index]))

    def _encode(self, problem: Problem) -> EncodedPrompt:
        return encode_prompt(self.processor, self._asked(problem)[1], [load_image(image) for image in problem.images])

    def _asked(self, problem: Problem) -> tuple[list[Message], str]:
        """The conversation up to the response, and as text."""
        question = [user_message(problem.question, len(problem.images), placed=problem.placed)]
        return question, prompt_text(self.processor, question)
