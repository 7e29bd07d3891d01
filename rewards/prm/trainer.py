"""Train a process reward model on step labels.

L = L_step + w·L_text.
L_step = −Σ_steps [m·log P(+) + (1−m)·log P(−)] / number of labelled steps, with P over the two label tokens only and m
the label of a step: 1 or 0 (hard, VisualPRM: m = [mc > 0], arXiv 2503.10291 §3.2), or mc itself (soft). A step
without a label counts nothing, e.g. one after the first error (as in PRM800K, arXiv 2305.20050).
With class weights (w₊, w₋) the two terms are w₊·m·log P(+) and w₋·(1−m)·log P(−).
With three labels (advantage, m in {1, ½, 0}) a term is −log P(the label's own token), P over the three.
L_text = mean −log p of the tokens of the responses that end right: the model goes on learning to answer while it learns
to judge, which keeps a reward model's hidden states general (GRM, arXiv 2406.10216). w = 0 by default, as in VisualPRM.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import Trainer, TrainingArguments, set_seed

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.images import load_image
from mpo.multimodal.prefix import IGNORED
from mpo.multimodal.scoring import logits_and_text_logps, logits_at
from rewards.prm.formats import PRMFormat
from rewards.prm.labels import LabelledGroup
from rewards.prm.metrics import step_metrics
from rewards.prm.model_prm import save_format
from rewards.prm.readout import label_scores
from rewards.prm.rendering import render
from rewards.prm.sharing import prepare_sharing, rows_of, spans_of


class PRMCollator:
    """Groups → rows, read positions and labels.

    Args:
        processor: of the model that is trained.
        prm_format: its contract.
        shared: packed rows, a problem's solutions behind its prompt, for a model that can read them.
    """

    def __init__(self, processor: Any, prm_format: PRMFormat, *, shared: bool = False) -> None:
        self.processor, self.format, self.shared = processor, prm_format, shared

    def __call__(self, groups: Sequence[LabelledGroup]) -> dict[str, Any]:
        """Returns `inputs` (model inputs), `positions` (a list for each row), and for each position `step_labels` and
        `problems`.

        The inputs' `labels` mark the text of the responses that end right.
        """
        rendered = []
        for group in groups:
            images = [load_image(image) for image in group.problem.images]
            steps = [solution.steps for solution in group.solutions]
            rendered.append(render(self.processor, self.format, group.problem, steps, images))
        solutions = [solution for group in groups for solution in group.solutions]
        inputs, positions = rows_of(rendered, self.processor, shared=self.shared)
        for (row, start, end), solution in zip(spans_of(inputs), solutions, strict=True):
            if not solution.ends_right:
                inputs["labels"][row, start:end] = IGNORED
        labels = [label for solution in solutions for label in solution.labels]
        problems = [group.problem.id for group in groups for solution in group.solutions for _ in solution.labels]
        return {"inputs": inputs, "positions": positions, "step_labels": labels, "problems": problems}


class PRMTrainer(Trainer):
    """`transformers.Trainer` with the step loss; writes the PRM's contract beside every checkpoint.

    Args:
        model: the model to train, an image-text-to-text model.
        processor: its processor.
        prm_format: how it will be asked, in training and ever after.
        args: training arguments; `remove_unused_columns` must be False.
        train_groups: labelled groups.
        text_weight: w of L_text, at least 0; a label head has no text to learn.
        class_weights: w₊ and w₋, e.g. of `rewards.prm.labels.class_weights`; None is 1 and 1.
        peft_config: adapters to put around the model, e.g. `peft.LoraConfig`. Checkpoints hold the adapters alone;
            `save_model` merges them into the weights, after which this trainer trains no further.

    Raises:
        ConfigError: a negative `text_weight`, or one with a label head; either weight with three labels.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        prm_format: PRMFormat,
        args: TrainingArguments,
        train_groups: Sequence[LabelledGroup],
        *,
        text_weight: float = 0.0,
        class_weights: tuple[float, float] | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if text_weight < 0:
            raise ConfigError(f"text_weight must be at least 0, got {text_weight}")
        if text_weight > 0 and prm_format.readout == "head":
            raise ConfigError(f"text_weight must be 0 with a label head, which predicts no tokens; got {text_weight}")
        if prm_format.neutral and (text_weight > 0 or class_weights):
            raise ConfigError("advantage labels go without text_weight and class_weights: they say not what is right")
        self.prm_format, self.text_weight = prm_format, text_weight
        self.class_weights = class_weights
        self._label_ids = prm_format.label_ids(processor.tokenizer)
        self._judged: list[tuple[float, bool, str]] = []  # P(+), label and problem of each step since the last log
        shared = prepare_sharing(model)
        if peft_config is not None:
            set_seed(args.seed)  # the adapters' first values
            model = get_peft_model(model, peft_config)
        collator = PRMCollator(processor, prm_format, shared=shared)
        super().__init__(
            model, args, data_collator=collator, train_dataset=list(train_groups), processing_class=processor, **kwargs
        )
        self.model_accepts_loss_kwargs = False  # the loss below is a mean; accumulation averages it

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """L_step + w·L_text of the batch."""
        asked = (model, inputs["inputs"], inputs["positions"], self._label_ids)
        text: Tensor | None = None
        if self.text_weight > 0:
            rows, text = logits_and_text_logps(*asked)
        else:
            rows = logits_at(*asked)
        logits = torch.cat(rows)  # (steps, labels)
        labels, problems = inputs["step_labels"], inputs["problems"]
        labelled = [i for i, m in enumerate(labels) if m is not None]
        targets = torch.tensor([labels[i] for i in labelled], device=logits.device)
        read = logits[labelled]
        said = label_scores(read.detach()).tolist()
        judged = zip(said, targets.tolist(), labelled, strict=True)
        right = 0.5 if self.prm_format.neutral else math.nextafter(0.5, 1.0)  # the least label that is not wrong
        self._judged += [(p, m >= right, problems[i]) for p, m, i in judged if math.isfinite(p)]
        # Sums over counts that are at least 1: a batch without labels gives 0, not NaN.
        total = self._step_terms(read, targets) / max(1, len(labelled))
        if text is not None:
            total = total - self.text_weight * text.sum() / max(1, len(text))
        return total

    def _step_terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """−Σ [w₊·m·log P(+) + w₋·(1−m)·log P(−)], or −Σ log P(label) of three labels."""
        if self.prm_format.neutral:
            columns = (2 - 2 * (targets == 1) - (targets == 0).long()).long()  # 1 → +, 0 → -, ½ → =
            return cross_entropy(logits, columns, reduction="sum")
        margin = logits[:, 0] - logits[:, 1]  # log P(+) − log P(−) over the two labels
        if self.class_weights is None:
            return binary_cross_entropy_with_logits(margin, targets, reduction="sum")
        right, wrong = self.class_weights
        ratio = margin.new_tensor(right / wrong)
        return wrong * binary_cross_entropy_with_logits(margin, targets, pos_weight=ratio, reduction="sum")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add `step_metrics` of this rank's labelled steps since the last log; labels above ½ are right, and `=`."""
        if self._judged and "loss" in logs:
            found = step_metrics(*zip(*self._judged, strict=True)).to_log()
            logs = {**logs, **{name: round(value, 4) for name, value in found.items()}}
            self._judged.clear()
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights, processor and contract; for a checkpoint, the adapters in place of the weights if there are any."""
        if isinstance(self.model, PeftModel) and not _internal_call:
            self.model = self.model.merge_and_unload()
        super().save_model(output_dir, _internal_call)
        target = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            save_format(target, self.prm_format)
