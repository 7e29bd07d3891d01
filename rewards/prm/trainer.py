"""Train a process reward model on step labels.

L = L_step + w·L_text.
L_step = −Σ_steps [m·log P(+) + (1−m)·log P(−)] / number of labelled steps, with P over the two label tokens only and m
the label of a step: 1 or 0 (hard, VisualPRM: m = [mc > 0], arXiv 2503.10291 §3.2), or mc itself (soft). A step
without a label counts nothing, e.g. one after the first error (as in PRM800K, arXiv 2305.20050).
With class weights (w₊, w₋) the two terms are w₊·m·log P(+) and w₋·(1−m)·log P(−).
With `likelihood` a step is learned from its count, k of n: L_step = −Σ_steps log P(k | n, P(+)) / Σ n, up to a constant
(`rewards/prm/step_losses.py`). At equal n this is the loss of soft labels.
With three labels (advantage, m in {1, ½, 0}) a term is −log P(the label's own token), P over the three.
L_text = mean −log p of the tokens of the responses that end right: the model keeps learning to answer while it learns
to judge, which keeps a reward model's hidden states general (GRM, arXiv 2406.10216). w = 0 by default, as in VisualPRM.
Steps and tokens are counted over all micro-batches and ranks of an optimizer step (`mpo.multimodal.whole_steps`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.jpeg import Jpeg, JpegAugmentation, JpegEpochs
from mpo.multimodal.logps import enable_chunked_logps
from mpo.multimodal.packing import LAYOUT
from mpo.multimodal.positions import RowPositions
from mpo.multimodal.ranks import with_blank_image
from mpo.multimodal.scoring import logits_and_text_logps, logits_at, text_tokens, token_logps
from mpo.multimodal.whole_steps import WholeStepTrainer
from rewards.prm.collator import PRMCollator, first_groups
from rewards.prm.concentration import attach_head, load_head
from rewards.prm.evaluating.metrics import step_metrics
from rewards.prm.formats import PRMFormat
from rewards.prm.labelling.labels import LabelledGroup
from rewards.prm.model_prm import load_weights, save_format
from rewards.prm.readout import label_scores
from rewards.prm.released import check_released
from rewards.prm.rows import check_sharing, prepare_sharing, unshared
from rewards.prm.step_losses import Likelihood, check_counts, check_losses, label_loss
from rewards.types import MonteCarloCount

logger = logging.get_logger(__name__)


Judged = tuple[float, bool, str]  # P(+), label and problem of a step


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
        likelihood: learn each step's count by its likelihood; every labelled step then has one
            (`LabelledSolution.counts`). None learns the labels. With `per_step` a concentration head is trained too.
        as_released: train on the rows of the VisualPRM release (`rewards/prm/released.py`): L_step is the mean −log p,
            over the vocabulary, of the labels' own signs and the ends of their turns. Steps are not judged: no metrics.
        eval_dataset: labelled groups, or several lists of them by name: `eval_loss` and the metrics of their steps,
            with `eval_`, are of the whole set, whatever the batch and the number of ranks.
        peft_config: adapters to put around the model, e.g. `peft.LoraConfig`. Checkpoints hold the adapters alone;
            `save_model` merges them into the weights, after which this trainer trains no further.
        jpeg_augmentation: training images that are compressed at random (`mpo/multimodal/jpeg.py`): "all", those of
            problems whose `meta` holds `data_augment` ("marked"), or "none".

    Raises:
        ConfigError: a negative `text_weight`, or one with a label head; either weight with three labels; adapters or a
            concentration head under FSDP or DeepSpeed; `likelihood` with class weights, three labels, released rows, or
            steps without counts.

    Attributes:
        concentration_head: that predicts each step's κ, a part of the model; None without `likelihood.per_step`.
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
        likelihood: Likelihood | None = None,
        as_released: bool = False,
        peft_config: PeftConfig | None = None,
        jpeg_augmentation: Jpeg = "marked",
        **kwargs: Any,
    ) -> None:
        check_losses(prm_format, likelihood, text_weight=text_weight, class_weights=class_weights, released=as_released)
        if likelihood is not None:
            check_counts(train_groups, kwargs.get("eval_dataset"))
        if as_released:
            check_released(prm_format, text_weight=text_weight, class_weights=class_weights)
            enable_chunked_logps(model)
        self.prm_format, self.text_weight, self.as_released = prm_format, text_weight, as_released
        self.class_weights, self.likelihood = class_weights, likelihood
        self._per_step = 2 if as_released else 1  # tokens that L_step counts for a labelled step: sign and end of turn
        self._label_ids = prm_format.label_ids(processor.tokenizer)
        self._judged: dict[str, list[Judged]] = {"train": [], "eval": []}  # since the last log, or of this evaluation
        self._evaluated_sums: Tensor | None = None  # of this evaluation: step terms, text terms, and their counts
        self._shares = shared = prepare_sharing(model)
        self._kernel: bool | None = None  # whether attention may use it; unknown until a first packed batch
        positions = RowPositions.without_weights(model)
        if peft_config is not None:
            set_seed(args.seed)  # the adapters' first values
            model = get_peft_model(model, copy.deepcopy(peft_config))  # PEFT writes into what it is given
            if args.gradient_checkpointing:
                model.enable_input_require_grads()
        self.concentration_head = None
        if likelihood is not None and likelihood.per_step:
            self.concentration_head = attach_head(model, start=likelihood.concentration)
        jpeg = JpegAugmentation(jpeg_augmentation, seed=args.seed)
        collator = PRMCollator(
            processor,
            prm_format,
            shared=shared,
            with_text=text_weight > 0,
            released=as_released,
            jpeg=jpeg,
            positions=positions,
        )
        super().__init__(
            model, args, data_collator=collator, train_dataset=list(train_groups), processing_class=processor, **kwargs
        )
        self.add_callback(JpegEpochs(jpeg))
        whole = {"peft_config": peft_config, "likelihood.per_step": self.concentration_head}
        if self.weights_get_sharded and (given := [name for name, one in whole.items() if one is not None]):
            raise ConfigError(
                "a PRM's adapters and its concentration head are saved whole, and FSDP and DeepSpeed shard: leave "
                f"{' and '.join(given)} out, or start with recipes/accelerate/multi_gpu.yaml"
            )

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """L_step + w·L_text: local sums × world size / `num_items_in_batch`, the step's counts, or the batch's."""
        if self.weights_get_sharded:
            inputs = {**inputs, "inputs": with_blank_image(inputs["inputs"], self.processing_class)}
        problems = [*dict.fromkeys(inputs["problems"])]
        step_terms, text_terms = self._terms(model, inputs)
        world_size = 1 if num_items_in_batch is None else self.accelerator.num_processes
        counts = self._counts([inputs], step_terms.device) if num_items_in_batch is None else num_items_in_batch
        steps, tokens = counts.clamp(min=1).unbind()  # without a label the loss is 0, not NaN
        total = step_terms / steps
        if self.text_weight > 0:
            total = total + self.text_weight * text_terms / tokens
        if model.training:
            self._observe(total, problems)
        elif any(label is not None for label in inputs["step_labels"]):
            self._observe_evaluated(total, problems)
        if num_items_in_batch is None:
            sums = torch.stack([step_terms.detach(), text_terms.detach(), *counts.float()])
            self._evaluated_sums = sums if self._evaluated_sums is None else self._evaluated_sums + sums
        return total * world_size

    def _terms(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The sums of L_step and of L_text over a batch; what the steps were judged is kept for the metrics."""
        rows, positions = self._as_read(model, inputs)
        if self.as_released:
            learned = -torch.cat(token_logps(model, rows)).sum()
            return learned, torch.zeros_like(learned)
        head, text = self.concentration_head, torch.zeros(0)
        if self.text_weight > 0:
            found, text = logits_and_text_logps(model, rows, positions, self._label_ids, beside=head)
        else:
            found = logits_at(model, rows, positions, self._label_ids, beside=head)
        logits = torch.cat(found)  # (steps, labels), and log κ behind them with a concentration head
        labels, problems = inputs["step_labels"], inputs["problems"]
        labelled = [i for i, m in enumerate(labels) if m is not None]
        targets = torch.tensor([labels[i] for i in labelled], device=logits.device)
        read = logits[labelled]
        said = label_scores(read[:, : len(self._label_ids)].detach()).tolist()
        judged = zip(said, targets.tolist(), labelled, strict=True)
        right = 0.5 if self.prm_format.neutral else math.nextafter(0.5, 1.0)  # the least label that is not wrong
        mode = "train" if model.training else "eval"
        self._judged[mode] += [(p, m >= right, problems[i]) for p, m, i in judged if math.isfinite(p)]
        if self.likelihood is not None:
            return self._count_terms(read, [inputs["step_counts"][i] for i in labelled]), -text.sum().to(logits.device)
        learned = label_loss(read, targets, neutral=bool(self.prm_format.neutral), class_weights=self.class_weights)
        return learned, -text.sum().to(logits.device)

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
        """Labelled steps (or their draws) and tokens of L_text of these micro-batches, int64 (2,)."""
        steps = sum(
            self._weight(*pair) for b in batches for pair in zip(b["step_labels"], b["step_counts"], strict=True)
        )
        tokens = [text_tokens(batch["inputs"], self._label_ids) for batch in batches if self.text_weight > 0]
        return torch.tensor([steps, sum(map(int, tokens))], device=device)

    def _counts_of_batches(self, batches: list[dict[str, Any]]) -> Tensor:
        return self._counts(batches, self.args.device)

    def _counts_of_rows(self, rows: Sequence[int]) -> Tensor | None:
        """Labelled steps, or their draws; how many tokens of text a group has, only its rendered rows tell."""
        if self.text_weight > 0:
            return None
        groups: Any = self.train_dataset
        steps = sum(
            self._weight(*pair)
            for row in rows
            for some in groups[row].solutions
            for pair in zip(some.labels, some.counts or [None] * len(some.labels), strict=True)
        )
        return torch.tensor([steps, 0])

    def _weight(self, label: float | None, count: MonteCarloCount | None) -> int:
        """What a step adds to the denominator of L_step: 1, the 2 tokens of a released row, or its draws."""
        if label is None:
            return 0
        return self._per_step if self.likelihood is None or count is None else count.total

    def _over_ranks(self, counts: Tensor, device: torch.device) -> Tensor:
        return self._sum_over_ranks(counts.to(device))

    def _counting(self, batch: dict[str, Any], *, rows: int) -> dict[str, Any]:
        return first_groups(batch, rows)

    def _count_terms(self, logits: Tensor, counts: Sequence[MonteCarloCount]) -> Tensor:
        """−Σ log P(k | n, P(+)), up to a constant; logits (S, 2), or (S, 3) with log κ."""
        assert self.likelihood is not None
        correct, total = (
            logits.new_tensor([getattr(count, name) for count in counts]) for name in ("correct", "total")
        )
        concentration = logits[:, 2] if self.concentration_head is not None else None
        return self.likelihood(logits[:, 0] - logits[:, 1], correct, total, concentration).sum()

    # Evaluation and logging.

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's loop; the loss is L_step + w·L_text over the whole set, and the metrics of its steps join it."""
        self._judged["eval"], self._evaluated_sums = [], None
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        assert output.metrics is not None
        sums, self._evaluated_sums = self._evaluated_sums, None
        if sums is not None:
            steps, text, labelled, tokens = self._sum_over_ranks(sums).tolist()
            loss = steps / max(labelled, 1) + self.text_weight * text / max(tokens, 1)
            found = {"loss": loss, **self._step_metrics("eval")}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the metrics of all ranks' labelled steps since the last log; labels above ½ are right, and `=`."""
        if "loss" in logs:
            logs = {**logs, **self._step_metrics("train")}
        super().log(logs, *args, **kwargs)

    def _step_metrics(self, mode: str) -> dict[str, float]:
        """`step_metrics` of what was judged in training or evaluation, of all ranks; what was judged is let go."""
        judged = gather_object(self._judged[mode])
        self._judged[mode] = []
        found = step_metrics(*zip(*judged, strict=True)).to_log() if judged else {}
        return {name: round(value, 4) for name, value in found.items()}

    def _run_settings(self) -> dict[str, Any]:
        own: dict[str, Any] = {"text_weight": self.text_weight, "class_weights": self.class_weights}
        own |= {"as_released": True} if self.as_released else {}
        own |= {"likelihood": repr(self.likelihood)} if self.likelihood is not None else {}
        own |= {"concentration_head": True if self.concentration_head is not None else None}  # older runs lack it
        return {**super()._run_settings(), **own, "prm_format": self.prm_format.to_dict()}

    def _row_contents(self) -> Iterator[Any]:
        """Texts and labels; images are not decoded."""
        groups: Any = self.train_dataset
        for group in groups:
            solutions = [
                [[step.text for step in some.steps], some.labels, *([some.counts] if some.counts else [])]
                for some in group.solutions
            ]
            yield [group.problem.id, group.problem.question, solutions]

    def _read_weights(self, checkpoint: str) -> Any:
        model = load_weights(checkpoint, self.prm_format)
        if self.concentration_head is not None:
            model.concentration_head = load_head(checkpoint, model)
        return model

    def _load_renamed_weights(self, checkpoint: str) -> bool:
        if self.concentration_head is not None:  # adapters are loaded without it
            self.concentration_head.load_state_dict(load_head(checkpoint, self.model).state_dict())
        return super()._load_renamed_weights(checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights, processor and contract; for a checkpoint, the adapters in place of the weights if there are any."""
        if isinstance(self.model, PeftModel) and not _internal_call:
            self.model = self.model.merge_and_unload()
        super().save_model(output_dir, _internal_call)
        target = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            save_format(target, self.prm_format, head=self.concentration_head)
