"""Train a process reward model on step labels.

L = −Σ_steps [m·log P(+) + (1−m)·log P(−)] / number of steps, with P over the two label tokens only and m the
label of a step: 1 or 0 (hard, VisualPRM: m = [mc > 0], arXiv 2503.10291 §3.2), or mc itself (soft).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from mpo.multimodal.images import load_image
from mpo.multimodal.scoring import logits_at
from rewards.errors import StepAlignmentError
from rewards.prm.formats import PRMFormat
from rewards.prm.model_prm import save_format
from rewards.prm.rendering import render, rows_of
from rewards.types import Problem, Step


@dataclass(frozen=True)
class LabelledSolution:
    """Steps of one response with one label each, in [0, 1]."""

    steps: tuple[Step, ...]
    labels: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.labels):
            raise StepAlignmentError(f"a solution has {len(self.steps)} steps but {len(self.labels)} labels")


@dataclass(frozen=True)
class LabelledGroup:
    """Labelled responses of one problem. A batch keeps them together, so that right and wrong answers to the same
    picture stand side by side; a PRM that never sees that contrast learns how hard a picture is and nothing else.
    """

    problem: Problem
    solutions: tuple[LabelledSolution, ...]


class PRMCollator:
    """Groups → rows, read positions and labels."""

    def __init__(self, processor: Any, prm_format: PRMFormat) -> None:
        self.processor, self.format = processor, prm_format

    def __call__(self, groups: Sequence[LabelledGroup]) -> dict[str, Any]:
        """Returns `inputs` (model inputs of B rows), `positions` and `step_labels` (a list for each row)."""
        rendered = []
        for group in groups:
            images = [load_image(image) for image in group.problem.images]
            steps = [solution.steps for solution in group.solutions]
            rendered += render(self.processor, self.format, group.problem, steps, images)
        return {
            "inputs": rows_of(rendered, self.processor.tokenizer.pad_token_id),
            "positions": [list(row.read_positions) for row in rendered],
            "step_labels": [list(solution.labels) for group in groups for solution in group.solutions],
        }


class PRMTrainer(Trainer):
    """`transformers.Trainer` with the step loss; writes the PRM's contract beside every checkpoint.

    Args:
        model: the model to train, an image-text-to-text model.
        processor: its processor.
        prm_format: how it will be asked, in training and ever after.
        args: training arguments; `remove_unused_columns` must be False.
        train_groups: labelled groups.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        prm_format: PRMFormat,
        args: TrainingArguments,
        train_groups: Sequence[LabelledGroup],
        **kwargs: Any,
    ) -> None:
        self.prm_format = prm_format
        self._label_ids = prm_format.label_ids(processor.tokenizer)
        self._correct = torch.zeros(2)  # right step decisions and steps since the last log
        collator = PRMCollator(processor, prm_format)
        super().__init__(
            model, args, data_collator=collator, train_dataset=list(train_groups), processing_class=processor, **kwargs
        )
        self.model_accepts_loss_kwargs = False  # the loss below is a mean; accumulation averages it

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Mean binary cross-entropy over the steps of the batch."""
        rows = logits_at(model, inputs["inputs"], inputs["positions"], self._label_ids)
        logits = torch.cat(rows)  # (steps, 2)
        targets = torch.tensor([m for row in inputs["step_labels"] for m in row], device=logits.device)
        margin = logits[:, 0] - logits[:, 1]  # log P(+) − log P(−) over the two labels
        right = ((margin > 0) == (targets > 0.5)).sum().item()
        self._correct += torch.tensor([float(right), float(len(targets))])
        return torch.nn.functional.binary_cross_entropy_with_logits(margin, targets)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the share of right step decisions since the last log."""
        if self._correct[1] > 0 and "loss" in logs:
            logs = {**logs, "step_accuracy": round(float(self._correct[0] / self._correct[1]), 4)}
            self._correct.zero_()
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights, processor and contract."""
        super().save_model(output_dir, _internal_call)
        target = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            save_format(target, self.prm_format)
