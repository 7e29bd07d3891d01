"""MPOTrainer: transformers' Trainer with the MPO loss, a frozen reference and δ as checkpointed state.

One optimizer step, whatever its micro-batches and ranks: `get_batch_samples` counts its denominators, `compute_loss`
adds local sums over them, the gradient is checked, the optimizer steps, δ is committed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import disable_dropout_in_model

from mpo.admission import admit_all, context_of
from mpo.collator import PreferenceCollator, collators, first_pairs
from mpo.config import DECISIVE, MPOConfig
from mpo.forward import chosen_lengths, model_inputs, pair_logps, prepare_models, source_of
from mpo.initial_policy import StartCheck
from mpo.layout import PromptSharing
from mpo.losses import Denominators, implicit_rewards, mpo_loss
from mpo.metrics import MetricMeans, batch_metrics, with_total
from mpo.monitors import RunMonitor
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.jpeg import JpegEpochs
from mpo.multimodal.loading import load_processor
from mpo.multimodal.ranks import check_whole_weights, with_blank_image
from mpo.multimodal.scoring import innermost
from mpo.multimodal.whole_steps import WholeStepTrainer
from mpo.older_flags import as_processor, check_dataset, refuse_older_arguments
from mpo.reference import ReferenceCache
from mpo.reference_run import ReferenceRun
from mpo.reward_shift import RewardShift
from mpo.sampler import PromptGroupSampler, TokenBalancedSampler, seed_of, token_balanced
from mpo.spans import SPAN_COLUMN
from mpo.types import MPOLoss, PairLogps

REWARD_SHIFT_FILE = "reward_shift.json"
CONTENT_COLUMNS = ("chosen", "rejected", SPAN_COLUMN)  # what a resume must find unchanged

Batch = dict[str, Any]


class MPOTrainer(WholeStepTrainer):
    """Trains a multimodal policy on TRL vision-preference rows with L = w_p·L_p + w_q·L_q + w_g·L_g.

    Paper: https://arxiv.org/abs/2411.10442. The update and the logged loss do not depend on how a batch is cut into
    micro-batches or over ranks.

    Args:
        model: a folder, `org/name` or `org/name@revision` on the hub, or a loaded model (plain, or PEFT with fresh
            adapters).
        ref_model: the same for the reference. None: with PEFT the policy without its adapters, else a frozen copy
            of `model` as given. So resume with `train(resume_from_checkpoint=…)`, never by passing a checkpoint as
            `model`: that would move the reference.
        args: settings; its defaults are the paper's.
        train_dataset: rows of `PreferenceCollator`: a `datasets.Dataset` or a list of dicts. Rows that cannot be
            trained on are left out before step 0 and counted by reason: `trainer.admission["train"]`.
        eval_dataset: the same; evaluation reads δ and never changes it.
        processing_class: the model's processor; None loads it from the model's path.
        peft_config: wraps the model, e.g. `LoraConfig(target_modules="all-linear", exclude_modules="lm_head")`.
        callbacks: passed on to Trainer.
        optimizers: passed on to Trainer.
        data_collator: None makes a `PreferenceCollator`.
        older: nothing; an argument of TRL's trainers is refused with what takes its place.

    Raises:
        ConfigError: a model, reference or adapter that cannot work together.
        DataError: a dataset none of whose rows can be trained on.
    """

    args: MPOConfig

    def __init__(
        self,
        model: str | Path | PreTrainedModel | PeftModel,
        ref_model: str | Path | PreTrainedModel | None = None,
        args: MPOConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        data_collator: Callable[[list[Any]], Batch] | None = None,
        **older: Any,
    ) -> None:
        refuse_older_arguments(older, MPOConfig)
        check_dataset("train_dataset", train_dataset)
        args = args or MPOConfig(output_dir="mpo-output")
        set_seed(args.seed)  # PEFT draws its adapters before Trainer sets the seed
        processor = as_processor(processing_class or load_processor(source_of(model)))
        train_dataset, eval_dataset, self.admission = admit_all(
            data_collator or PreferenceCollator(processor),
            train=train_dataset,
            evaluation=eval_dataset,
            args=args,
            context=context_of(model),
        )
        checked = self.admission.get("train")
        self._chosen_tokens = None if checked is None else checked.chosen_tokens
        self._checked_rows = train_dataset  # of which these are
        policy, reference = prepare_models(
            model,
            ref_model,
            peft_config=peft_config,
            checkpointing=bool(args.activation_checkpointing),
            copy_policy=not args.precompute_ref_log_probs,
            dtype=torch.bfloat16 if args.master_weights else torch.float32,
        )
        if args.disable_dropout:
            disable_dropout_in_model(policy)
        self.sharing = PromptSharing(args.layout, [policy, *([] if reference is None else [reference])])
        made = collators(processor, innermost(policy), args, shared_prefix=self.sharing.on)
        collator, self.eval_collator, jpeg = made if data_collator is None else (data_collator, data_collator, made[2])
        super().__init__(
            model=policy,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        is_read_from_cache = args.precompute_ref_log_probs and self.weights_get_sharded  # the reference never runs
        self.ref_model = reference if reference is None or is_read_from_cache else self._placed(reference)
        self.reference_cache: ReferenceCache | None = None
        if args.precompute_ref_log_probs:
            self.reference_cache, self.ref_model = self.cached_reference(), None
        self.reward_shift = RewardShift(args.reward_shift, momentum=args.reward_shift_momentum)
        self.monitor = RunMonitor(starts_at_reference=ref_model is None, after_step=self._commit_reward_shift)
        self.add_callback(self.monitor)
        self.add_callback(JpegEpochs(jpeg))
        self._means = {"train": MetricMeans(), "eval": MetricMeans()}
        self._balanced: TokenBalancedSampler | None = None
        self._start = StartCheck(self, expected=ref_model is None)

    # One optimizer step, in the order in which things happen.

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """An order that keeps the pairs of a prompt together, or micro-batches of one length; else Trainer's."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.group_by_prompt:
            return PromptGroupSampler(rows, seed=seed_of(self.args))
        if self.args.train_sampling_strategy == "batch_rebalance":
            self._balanced = token_balanced(rows, self.data_collator, self.args, shared=self.sharing.on)
            return self._balanced
        return super()._get_train_sampler(train_dataset)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Batch], Any]:
        """As in Trainer; a resumed epoch's batch sampler is told which one it is, which Trainer (5.23) leaves out."""
        if self._balanced is not None:  # the iterator starts at its first batch
            self._balanced.set_epoch(int(self.state.epoch or 0))
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of one micro-batch: local sums × world size / `num_items_in_batch`, the step's `Denominators`.

        DDP and FSDP average gradients over ranks, which the world size undoes. Without denominators (evaluation), the
        mean over this batch.
        """
        inputs, pairs = model_inputs(inputs)
        pair_ids, cache = pairs["pair_ids"], self.reference_cache
        known = None if cache is None else cache.lookup(pairs.get("response_keys", []), inputs["input_ids"].device)
        if self.weights_get_sharded:
            inputs = with_blank_image(inputs, self.processing_class)
        with self.accelerator.autocast():  # a first batch is checked in the number type that the pass runs in
            inputs = self.sharing.admit(inputs, [model] if self.ref_model is None else [model, self.ref_model])
        logps = pair_logps(model, inputs, pairs["pair_index"], reference=self.ref_model, reference_sums=known)
        loss = self.loss_of(logps, pair_weight=pairs.get("pair_weight"), denominators=num_items_in_batch)
        if model.training:
            self._start(logps)
            self.monitor.count(inputs["attention_mask"])
            self.reward_shift.observe(*implicit_rewards(logps, beta=self.args.beta))
            self._observe(loss.total, pair_ids)
        elif pair_ids:
            self._observe_evaluated(loss.total, pair_ids)
        metrics = batch_metrics(
            loss,
            logps,
            pairs,
            beta=self.args.beta,
            reward_shift=self.reward_shift.value,
            step_pairs=None if num_items_in_batch is None else num_items_in_batch.pairs,
            rows=len(inputs["input_ids"]),
        )
        own = None if model.training else {"loss/generation": self._counted(logps.chosen_lengths).generation}
        self._means["train" if model.training else "eval"].add(metrics, pairs=len(pair_ids), own=own)
        world_size = 1 if num_items_in_batch is None else self.accelerator.num_processes
        total = loss.total * world_size
        return (total, {}) if return_outputs else total

    def loss_of(
        self, logps: PairLogps, *, pair_weight: Tensor | None = None, denominators: Denominators | None = None
    ) -> MPOLoss:
        """L of some pairs under this run's settings and its δ of this moment; see `mpo.losses.mpo_loss`."""
        return mpo_loss(
            logps,
            beta=self.args.beta,
            reward_shift=self.reward_shift.value,
            weights=self.args.weights,
            generation_average=self.args.generation_average,
            label_smoothing=self.args.label_smoothing,
            pair_weight=pair_weight,
            denominators=denominators,
        )

    def _commit_reward_shift(self) -> None:
        self.reward_shift.commit(self._sum_over_ranks)

    # Evaluation and logging.

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's loop; its metrics are joined by ours, so that they are returned, logged and can pick the best."""
        self._means["eval"].pop()
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        means = self._means["eval"].pop(self._sum_over_ranks)
        assert output.metrics is not None
        means = with_total(means, self.args.weights)  # Trainer's mean is over batches, of whatever size
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Merge the training metrics since the last log into Trainer's line about the training loss."""
        if "loss" in logs:
            logs.update(self._means["train"].pop(self._sum_over_ranks))
            logs.update(self.monitor.token_rate.pop(self._sum_over_ranks))
        super().log(logs, start_time)

    # δ lives and dies with a checkpoint.

    def _save_own_state(self, folder: Path) -> None:
        (folder / REWARD_SHIFT_FILE).write_text(json.dumps(self.reward_shift.state_dict()) + "\n")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.reward_shift.load_state_dict(json.loads(Path(checkpoint, REWARD_SHIFT_FILE).read_text()))

    def _run_settings(self) -> dict[str, Any]:
        given = self.args.to_dict()
        return {**super()._run_settings(), **{name: given.get(name) for name in DECISIVE}}

    def _row_contents(self) -> Iterator[Any]:
        """The responses and the part that counts; images are not decoded."""
        rows: Any = self.train_dataset
        if hasattr(rows, "select_columns"):
            rows = rows.select_columns([name for name in CONTENT_COLUMNS if name in rows.column_names])
        yield from ([row.get(name) for name in CONTENT_COLUMNS] for row in rows)

    # Helpers.

    def _counting(self, batch: Batch, *, rows: int) -> Batch:
        return first_pairs(batch, rows)

    def _counts_of_batches(self, batches: list[Batch]) -> Denominators:
        return self._counted(torch.cat([chosen_lengths(batch).cpu() for batch in batches]))

    def _counts_of_rows(self, rows: Sequence[int]) -> Denominators | None:
        tokens = self._chosen_tokens if self.train_dataset is self._checked_rows else None
        return None if tokens is None else self._counted(torch.tensor([tokens[row] for row in rows], dtype=torch.int64))

    def _counted(self, lengths: Tensor) -> Denominators:
        return Denominators.of(lengths, self.args.generation_average)

    def _check_counts(self, batch: Batch, rows: Sequence[int]) -> None:
        tokens = self._chosen_tokens
        if tokens is None or batch["pair_lengths"] == (expected := [tokens[row] for row in rows]):
            return
        raise ConfigError(
            f"the pairs {batch['pair_ids']} have {batch['pair_lengths']} chosen tokens, and had {expected} when the "
            "rows were checked: rows must not change from one reading to the next"
        )

    def _over_ranks(self, counts: Denominators, device: torch.device) -> Denominators:
        local = torch.stack([torch.as_tensor(count, device=device) for count in (counts.pairs, counts.generation)])
        return Denominators(*self._sum_over_ranks(local).unbind())

    def cached_reference(self) -> ReferenceCache:
        """The reference's log-probs of all rows: computed where they are lacking, or only read where weights will be
        sharded. The policy must not have been trained yet.

        Raises:
            ConfigError: see `mpo.reference_run.ReferenceRun`.
        """
        if self.is_fsdp_enabled:
            check_whole_weights(self.accelerator)
        run = ReferenceRun(
            policy=self.model,
            reference=self.ref_model,
            processor=self.processing_class,
            collate=self.data_collator,
            args=self.args,
            accelerator=self.accelerator,
            layout=self.args.layout if self.sharing.on else "paired",
        )
        datasets = [self.train_dataset, self.eval_dataset]
        return run.kept(datasets) if self.weights_get_sharded else run.computed(datasets)

    def _placed(self, reference: PreTrainedModel) -> Any:
        """The frozen reference on its device, sharded like the policy."""
        if self.args.disable_dropout:
            disable_dropout_in_model(reference)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(reference, self.accelerator)
        if self.is_fsdp_enabled:
            check_whole_weights(self.accelerator)
            return prepare_fsdp(reference, self.accelerator)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)
