"""Train a process reward model on step labels.

L = L_step + w·L_text.
L_step = −Σ_steps [m·log P(+) + (1−m)·log P(−)] / number of labelled steps, with P over the two label tokens only and m
the label of a step: 1 or 0 (hard, VisualPRM: m = [mc > 0], arXiv 2503.10291 §3.2), or mc itself (soft). A step
without a label counts nothing, e.g. one after the first error (as in PRM800K, arXiv 2305.20050).
With class weights (w₊, w₋) the two terms are w₊·m·log P(+) and w₋·(1−m)·log P(−).
With three labels (advantage, m in {1, ½, 0}) a term is −log P(the label's own token), P over the three.
L_text = mean −log p of the tokens of the responses that end right: the model keeps learning to answer while it learns
to judge, which keeps a reward model's hidden states general (GRM, arXiv 2406.10216). w = 0 by default, as in VisualPRM.
Steps and tokens are counted over all micro-batches and ranks of an optimizer step (`mpo.multimodal.whole_steps`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import TrainingArguments, set_seed
from transformers.utils import logging

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.images import load_image
from mpo.multimodal.jpeg import Jpeg, JpegAugmentation, JpegEpochs, compressed
from mpo.multimodal.memory_bound import KEPT_BYTES, Kept
from mpo.multimodal.packing import LAYOUT
from mpo.multimodal.prefix import IGNORED
from mpo.multimodal.ranks import check_pictures
from mpo.multimodal.scoring import logits_and_text_logps, logits_at, text_tokens
from mpo.multimodal.whole_steps import WholeStepTrainer
from rewards.prm.evaluating.metrics import step_metrics
from rewards.prm.formats import PRMFormat
from rewards.prm.labelling.labels import LabelledGroup
from rewards.prm.model_prm import load_weights, save_format
from rewards.prm.readout import label_scores
from rewards.prm.rendering import RenderedSolution, render
from rewards.prm.rows import check_sharing, prepare_sharing, rows_of, spans_of, unshared

logger = logging.get_logger(__name__)


class PRMCollator:
    """Groups → rows, read positions and labels. Rendered groups are kept from epoch to epoch, as many as fit.

    Args:
        processor: of the model that is trained.
        prm_format: its contract.
        shared: packed rows, a problem's responses behind its prompt, for a model that can read them.
        jpeg: compresses images at random (`mpo/multimodal/jpeg.py`); None leaves all as they are.
    """

    def __init__(
        self, processor: Any, prm_format: PRMFormat, *, shared: bool = False, jpeg: JpegAugmentation | None = None
    ) -> None:
        self.processor, self.format, self.shared, self.jpeg = processor, prm_format, shared, jpeg
        self._rendered: Kept[tuple[LabelledGroup, list[RenderedSolution]]] = Kept(KEPT_BYTES)

    def __call__(self, groups: Sequence[LabelledGroup]) -> dict[str, Any]:
        """Returns `inputs` (model inputs), `positions` (a list for each row), for each position `step_labels`,
        `problems` and `step_groups` (its group's place in the batch), and for each response `solution_groups`.

        The inputs' `labels` mark the text of the responses that end right.
        """
        rendered = [self._rows_of(group) for group in groups]
        placed = [(place, solution) for place, group in enumerate(groups) for solution in group.solutions]
        inputs, positions = rows_of(rendered, self.processor, shared=self.shared)
        for (row, start, end), (_, solution) in zip(spans_of(inputs), placed, strict=True):
            if not solution.ends_right:
                inputs["labels"][row, start:end] = IGNORED
        step_groups = [place for place, solution in placed for _ in solution.labels]
        return {
            "inputs": inputs,
            "positions": positions,
            "step_labels": [label for _, solution in placed for label in solution.labels],
            "problems": [groups[place].problem.id for place in step_groups],
            "step_groups": step_groups,
            "solution_groups": [place for place, _ in placed],
        }

    def _rows_of(self, group: LabelledGroup) -> list[RenderedSolution]:
        marked = group.problem.meta.get("data_augment")
        quality = self.jpeg.quality(marked, group.problem.id) if self.jpeg else 0
        return self._rendered((id(group), quality), partial(self._with_rows, group, quality))[1]

    def _with_rows(self, group: LabelledGroup, quality: int) -> tuple[LabelledGroup, list[RenderedSolution]]:
        """The group itself as well: it is found by identity, and stays alive while its rows are kept."""
        images = [load_image(image) for image in group.problem.images]
        images = [compressed(image, quality) for image in images] if quality else images
        steps = [solution.steps for solution in group.solutions]
        return group, render(self.processor, self.format, group.problem, steps, images)


def first_groups(batch: Mapping[str, Any], groups: int) -> dict[str, Any]:
    """The batch with labels of its first groups only; the others still run, and count nowhere.

    Args:
        batch: of `PRMCollator`.
        groups: how many to keep, 0 or more; there may be fewer.
    """
    labels = batch["inputs"]["labels"].clone()
    for (row, start, end), place in zip(spans_of(batch["inputs"]), batch["solution_groups"], strict=True):
        if place >= groups:
            labels[row, start:end] = IGNORED
    steps = zip(batch["step_labels"], batch["step_groups"], strict=True)
    return {
        **batch,
        "inputs": {**batch["inputs"], "labels": labels},
        "step_labels": [label if place < groups else None for label, place in steps],
    }


class PRMTrainer(WholeStepTrainer):
    """`transformers.Trainer` with the step loss; writes the PRM's contract beside every checkpoint.

    The update, the logged loss and the metrics do not depend on how a step's groups are cut into micro-batches or over
    ranks.

    Args:
        model: the model to train, an image-text-to-text model.
        processor: its processor.
        prm_format: how it will be asked, in training and ever after.
        args: training arguments; `remove_unused_columns` must be False.
        train_groups: labelled groups.
        text_weight: w of L_text, at least 0; a label head has no text to learn.
        class_weights: w₊ and w₋, e.g. of `rewards.prm.labelling.labels.class_weights`; None is 1 and 1.
        peft_config: adapters to put around the model, e.g. `peft.LoraConfig`. Checkpoints hold the adapters alone;
            `save_model` merges them into the weights, after which this trainer trains no further.
        jpeg_augmentation: training images that are compressed at random (`mpo/multimodal/jpeg.py`): "all", those of
            problems whose `meta` holds `data_augment` ("marked"), or "none".

    Raises:
        ConfigError: a negative `text_weight`, or one with a label head; either weight with three labels; adapters under
            FSDP or DeepSpeed.
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
        jpeg_augmentation: Jpeg = "marked",
        **kwargs: Any,
    ) -> None:
        if text_weight < 0:
            raise ConfigError(f"text_weight must be at least 0, got {text_weight}")
        if text_weight > 0 and prm_format.readout == "head":
            raise ConfigError(f"text_weight must be 0 with a label head, which predicts no tokens; got {text_weight}")
        if prm_format.neutral and (text_weight > 0 or class_weights):
            raise ConfigError(
                "text_weight and class_weights cannot be used with advantage labels, which do not say whether a step "
                "is right"
            )
        self.prm_format, self.text_weight = prm_format, text_weight
        self.class_weights = class_weights
        self._label_ids = prm_format.label_ids(processor.tokenizer)
        self._judged: list[tuple[float, bool, str]] = []  # P(+), label and problem of each step since the last log
        self._shares = shared = prepare_sharing(model)
        self._kernel: bool | None = None  # whether attention may use it; unknown until a first packed batch
        if peft_config is not None:
            set_seed(args.seed)  # the adapters' first values
            model = get_peft_model(model, peft_config)
            if args.gradient_checkpointing:
                model.enable_input_require_grads()
        jpeg = JpegAugmentation(jpeg_augmentation, seed=args.seed)
        collator = PRMCollator(processor, prm_format, shared=shared, jpeg=jpeg)
        super().__init__(
            model, args, data_collator=collator, train_dataset=list(train_groups), processing_class=processor, **kwargs
        )
        self.add_callback(JpegEpochs(jpeg))
        if peft_config is not None and self.weights_get_sharded:
            raise ConfigError(
                "a PRM's adapters are merged into whole weights, which FSDP and DeepSpeed shard: leave peft_config "
                "out, or start with recipes/accelerate/multi_gpu.yaml"
            )

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """L_step + w·L_text: local sums × world size / `num_items_in_batch`, the step's counts, or the batch's."""
        if self.weights_get_sharded:
            check_pictures(inputs["inputs"])
        asked = (model, *self._as_read(model, inputs), self._label_ids)
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
        world_size = 1 if num_items_in_batch is None else self.accelerator.num_processes
        counts = self._counts([inputs], logits.device) if num_items_in_batch is None else num_items_in_batch
        steps, tokens = counts.clamp(min=1).unbind()  # without a label the loss is 0, not NaN
        total = self._step_terms(read, targets) / steps
        if text is not None:
            total = total - self.text_weight * text.sum() / tokens
        if model.training:
            self._observe(total, [*dict.fromkeys(problems)])
        return total * world_size

    def _as_read(self, model: Any, batch: Mapping[str, Any]) -> tuple[Mapping[str, Any], Sequence[Sequence[int]]]:
        """Inputs and positions in the layout that the model reads right, which the first packed batch shows."""
        inputs, positions = batch["inputs"], batch["positions"]
        if self._shares and self._kernel is None:
            packed = torch.tensor(float(LAYOUT in inputs), device=inputs["input_ids"].device)
            if self._sum_over_ranks(packed):
                with self.accelerator.autocast():  # its limit is that of the number type that the pass runs in
                    found = check_sharing(
                        model, inputs, positions, self._label_ids, fill=True, summed=self._sum_over_ranks
                    )
                self._shares, self._kernel = found.shares, found.kernel
                if not found.shares:
                    logger.warning("each response is read with a prompt of its own: %s", found.reason)
        if LAYOUT not in inputs:
            return inputs, positions
        inputs[LAYOUT].varlen = self._kernel is not False
        return (inputs, positions) if self._shares else unshared(inputs, positions)

    def _counts(self, batches: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        """Labelled steps and tokens of L_text of these micro-batches, int64 (2,)."""
        steps = sum(label is not None for batch in batches for label in batch["step_labels"])
        tokens = [text_tokens(batch["inputs"], self._label_ids) for batch in batches if self.text_weight > 0]
        return torch.tensor([steps, sum(map(int, tokens))], device=device)

    def _counts_of_batches(self, batches: list[dict[str, Any]]) -> Tensor:
        return self._counts(batches, self.args.device)

    def _counts_of_rows(self, rows: Sequence[int]) -> Tensor | None:
        """Labelled steps; how many tokens of text a group has, only its rendered rows tell."""
        if self.text_weight > 0:
            return None
        groups: Any = self.train_dataset
        steps = sum(m is not None for row in rows for some in groups[row].solutions for m in some.labels)
        return torch.tensor([steps, 0])

    def _over_ranks(self, counts: Tensor, device: torch.device) -> Tensor:
        return self._sum_over_ranks(counts.to(device))

    def _counting(self, batch: dict[str, Any], *, rows: int) -> dict[str, Any]:
        return first_groups(batch, rows)

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
        """Add `step_metrics` of all ranks' labelled steps since the last log; labels above ½ are right, and `=`."""
        if "loss" in logs:
            judged = gather_object(self._judged)
            self._judged = []
            found = step_metrics(*zip(*judged, strict=True)).to_log() if judged else {}
            logs = {**logs, **{name: round(value, 4) for name, value in found.items()}}
        super().log(logs, *args, **kwargs)

    def _run_settings(self) -> dict[str, Any]:
        own = {"text_weight": self.text_weight, "class_weights": self.class_weights}
        return {**super()._run_settings(), **own, "prm_format": self.prm_format.to_dict()}

    def _row_contents(self) -> Iterator[Any]:
        """Texts and labels; images are not decoded."""
        groups: Any = self.train_dataset
        for group in groups:
            solutions = [[[step.text for step in some.steps], some.labels] for some in group.solutions]
            yield [group.problem.id, group.problem.question, solutions]

    def _read_weights(self, checkpoint: str) -> Any:
        return load_weights(checkpoint, self.prm_format)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights, processor and contract; for a checkpoint, the adapters in place of the weights if there are any."""
        if isinstance(self.model, PeftModel) and not _internal_call:
            self.model = self.model.merge_and_unload()
        super().save_model(output_dir, _internal_call)
        target = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            save_format(target, self.prm_format)
