"""MPOConfig: TRL's DPOConfig, so that its users keep their flags, plus twelve fields of MPO's own.

A DPOConfig field that MPO does not act on is refused when it is changed from its default: a flag that is accepted
and ignored is worse than an error. One that asks for speed alone is set back with a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, get_args

import torch
from transformers.utils import is_torch_bf16_gpu_available, logging
from trl import DPOConfig

from mpo.layout import Layout
from mpo.losses import LENGTH_EXPONENT, GenerationAverage
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.jpeg import Jpeg
from mpo.older_flags import known_flags
from mpo.reward_shift import RewardShift, ShiftMode
from mpo.types import LossWeights

logger = logging.get_logger(__name__)

_FROZEN = "MPO needs a frozen reference: a moving one (TR-DPO) scores worse in arXiv 2411.10442"

# Inherited field → what to do instead. Only the default value is accepted.
REFUSED: dict[str, str] = {
    "loss_type": "MPO's parts are fixed: set preference_weight, quality_weight and generation_weight",
    "loss_weights": "set preference_weight, quality_weight and generation_weight",
    "f_divergence_type": "L_q has no f-divergence form: MPO uses the reverse KL",
    "f_alpha_divergence_coef": "L_q has no f-divergence form: MPO uses the reverse KL",
    "ld_alpha": "MPO has no length desensitisation; generation_average chooses how L_g weights length",
    "discopop_tau": "DiscoPOP is not a part of MPO",
    "use_weighting": "give the rows a 'weight' column, which multiplies the loss of each pair",
    "sync_ref_model": _FROZEN,
    "ref_model_mixup_alpha": _FROZEN,
    "ref_model_sync_steps": _FROZEN,
    "truncation_mode": "cutting a row would separate image tokens from their image: max_length rejects long rows",
    "pad_token": "set processing_class.tokenizer.pad_token and pass the processor to MPOTrainer",
    "model_init_kwargs": "load the model with mpo.multimodal.loading.load_model and pass it to MPOTrainer",
    "trust_remote_code": "remote code is never run: convert the checkpoint to its native transformers class",
    "router_aux_loss_coef": "MPO adds no auxiliary loss for mixtures of experts",
    "activation_offloading": "not supported: use gradient_checkpointing",
    "label_smoothing_factor": "set label_smoothing (of L_p)",
    "remove_unused_columns": "the collator reads columns that the model's forward does not have",
}

# Inherited field that asks for speed alone → why it does nothing here. It is set back with a warning.
IGNORED: dict[str, str] = {
    "padding_free": "multimodal rows are padded",
    "pad_to_multiple_of": "multimodal rows are padded to the longest of their batch",
    "dataset_num_proc": "rows are encoded by the collator: set dataloader_num_workers",
    "use_liger_kernel": "it would replace the forward pass that computes log-probs in chunks",
}

# Settings of MPO that decide the updates, beside those of `mpo.multimodal.checkpoint.DECISIVE`.
DECISIVE = (
    *("beta", "preference_weight", "quality_weight", "generation_weight", "label_smoothing", "generation_average"),
    *("reward_shift", "reward_shift_momentum", "disable_dropout", "layout"),
    *("group_by_prompt", "train_sampling_strategy", "master_weights", "jpeg_augmentation"),
)

_DEFAULTS: dict[str, Any] = {"loss_type": ["sigmoid"], "remove_unused_columns": False}


@dataclass
class MPOConfig(DPOConfig):
    """Settings of one MPO run. `beta`, `label_smoothing`, `disable_dropout`,
    `precompute_ref_log_probs` and `precompute_ref_batch_size` are DPOConfig's.

    Defaults that differ from DPOConfig's, so that the first run works on any machine: `bf16` and
    `gradient_checkpointing` are on only where the accelerator supports them (a CPU runs float32), `max_length` is None,
    `remove_unused_columns` is False, and a loss that is not finite stops the run instead of being logged as 0
    (`logging_nan_inf_filter`).

    Args:
        max_length: most tokens of a row, its prompt with the image tokens and its longer response together. A longer
            row is rejected and counted before step 0; it is never cut, unlike in DPOConfig. None is no limit.
        preference_weight: w_p of L_p (DPO), ≥ 0.
        quality_weight: w_q of L_q (BCO), ≥ 0.
        generation_weight: w_g of L_g (language model), ≥ 0.
        reward_shift: δ of L_q: "cumulative" (InternVL), "ema" (NeMo-RL) or "zero" (TRL ≥ 0.29).
        reward_shift_momentum: m of "ema", in [0, 1).
        generation_average: "response" (the paper), "token" or "square" (InternVL2.5).
        layout: "shared" runs each prompt once for both its responses, "paired" once for each of them; "auto" shares
            where the model can, and logs the reason where it cannot. The values are the same up to rounding.
        group_by_prompt: keep the pairs of one prompt together, so that they share it in the shared layout and each
            response is computed once. Prompts are shuffled instead of pairs, so a step sees fewer different prompts.
        train_sampling_strategy: Trainer's, of which "batch_rebalance" cuts a step into micro-batches of pairs of about
            one length with even load over ranks (`mpo.sampler.TokenBalancedSampler`). Pairs that do not fill an epoch's
            last step are left out of it; another epoch leaves out others.
        max_row_tokens: longest packed row; a prompt whose responses do not fit is repeated in further rows. None never
            splits.
        jpeg_augmentation: training images that pass through JPEG at a random quality (`mpo/multimodal/jpeg.py`): those
            of rows that are "marked" `data_augment`, "all" or "none". Evaluation never compresses, and a precomputed
            reference knows the images as they are, so it leaves marked rows alone and refuses "all".
        master_weights: train all weights of a model in bfloat16, which an optimizer steps through float32 copies
            (`mpo.multimodal.master_weights`). The reference is in bfloat16 too. One process; no adapters.
        reference_cache_dir: where `precompute_ref_log_probs` keeps its values; None is `output_dir`/reference_cache.
        allow_config_change: resume a checkpoint although settings that decide the updates differ; they are logged.

    Raises:
        ConfigError: a value that cannot work, or a field of DPOConfig that MPO does not act on.

    Example:
        >>> MPOConfig("runs/mpo", beta=0.2).weights
        LossWeights(preference=0.8, quality=0.2, generation=1.0)
    """

    preference_weight: float = field(default=0.8, metadata={"help": "w_p, weight of the preference loss (DPO)."})
    quality_weight: float = field(default=0.2, metadata={"help": "w_q, weight of the quality loss (BCO)."})
    generation_weight: float = field(default=1.0, metadata={"help": "w_g, weight of the generation loss."})
    reward_shift: ShiftMode = field(
        default="cumulative", metadata={"help": "How the reward shift of the quality loss is averaged."}
    )
    reward_shift_momentum: float = field(default=0.99, metadata={"help": "Momentum of reward_shift=ema."})
    generation_average: GenerationAverage = field(
        default="response", metadata={"help": "Whether each response, token or square root of tokens counts the same."}
    )
    layout: Layout = field(
        default="auto", metadata={"help": "Whether a prompt goes through the model once for both its responses."}
    )
    group_by_prompt: bool = field(
        default=False, metadata={"help": "Keep the pairs of a prompt together, so that they share it."}
    )
    max_row_tokens: int | None = field(
        default=None, metadata={"help": "Longest packed row; a prompt with more responses is repeated."}
    )
    master_weights: bool = field(
        default=False, metadata={"help": "Train bfloat16 weights through float32 copies that the optimizer owns."}
    )
    reference_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of precomputed reference log-probs."},
    )
    jpeg_augmentation: Jpeg = field(
        default="marked", metadata={"help": "Which training images are compressed at random: none, marked rows, all."}
    )
    allow_config_change: bool = field(
        default=False, metadata={"help": "Resume although the checkpoint's run had other settings."}
    )

    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]  # DPOConfig: bool = True
        default=None, metadata={"help": "Recompute activations to save memory; on by default on an accelerator."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Most tokens of a row, images included; longer rows are rejected, never cut."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Only False: the collator reads every column."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "False: a loss that is not finite is never logged as if it were."}
    )

    def __post_init__(self) -> None:
        self._refuse_what_mpo_ignores()
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and is_torch_bf16_gpu_available()
        if self.activation_checkpointing is None:  # transformers' new name of gradient_checkpointing
            on_by_default = not self.use_cpu
            self.activation_checkpointing = (
                on_by_default if self.gradient_checkpointing is None else self.gradient_checkpointing
            )
        if self.use_cpu:
            self.dataloader_pin_memory = False
        self._check_values()
        super().__post_init__()
        if self.ddp_find_unused_parameters is None:
            # A batch without images leaves the vision tower without gradients. Reentrant checkpointing forbids it.
            kwargs: Any = self.activation_checkpointing_kwargs or {}
            self.ddp_find_unused_parameters = not kwargs.get("use_reentrant", False)
        # Accelerate would try to concatenate the batches of an IterableDataset, whose ids are strings.
        self.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]  # an object by now

    @property
    def weights(self) -> LossWeights:
        """(w_p, w_q, w_g)."""
        return LossWeights(self.preference_weight, self.quality_weight, self.generation_weight)

    def _refuse_what_mpo_ignores(self) -> None:
        defaults = {f.name: f.default for f in fields(DPOConfig)} | _DEFAULTS
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        for name, instead in REFUSED.items():
            value = getattr(self, name)
            if value != defaults[name]:
                raise ConfigError(f"{name}={value!r} has no effect in MPO (expected {defaults[name]!r}): {instead}")
        for name, why in IGNORED.items():
            if getattr(self, name) != defaults[name]:
                logger.warning("%s=%r has no effect in MPO: %s", name, getattr(self, name), why)
                setattr(self, name, defaults[name])

    def _check_sampling(self) -> None:
        if self.train_sampling_strategy == "group_by_length":
            raise ConfigError("rows have no length column: set train_sampling_strategy='batch_rebalance', which counts")
        if self.train_sampling_strategy == "batch_rebalance" and self.group_by_prompt:
            raise ConfigError("train_sampling_strategy='batch_rebalance' sorts by length: leave group_by_prompt out")

    def _check_values(self) -> None:
        self._check_sampling()
        LossWeights(self.preference_weight, self.quality_weight, self.generation_weight)  # raises by itself, like the
        RewardShift(self.reward_shift, momentum=self.reward_shift_momentum)  # state that it becomes
        if self.generation_average not in LENGTH_EXPONENT:
            raise ConfigError(
                f"generation_average must be one of {list(LENGTH_EXPONENT)}, got {self.generation_average!r}"
            )
        if self.layout not in get_args(Layout):
            raise ConfigError(f"layout must be one of {list(get_args(Layout))}, got {self.layout!r}")
        if self.max_row_tokens is not None and self.max_row_tokens < 1:
            raise ConfigError(f"max_row_tokens must be at least 1, or None, got {self.max_row_tokens}")
        if not self.beta > 0:
            raise ConfigError(f"beta must be > 0, got {self.beta}")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"max_length must be >= 1 or None, got {self.max_length}")
        if self.jpeg_augmentation not in get_args(Jpeg):
            raise ConfigError(
                f"jpeg_augmentation must be one of {list(get_args(Jpeg))}, got {self.jpeg_augmentation!r}"
            )
        if self.jpeg_augmentation == "all" and self.precompute_ref_log_probs:
            raise ConfigError(
                "jpeg_augmentation='all' changes the images at every visit, and precompute_ref_log_probs keeps the "
                "reference's values for one of them: leave one of the two out"
            )
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing must lie in [0, 0.5), got {self.label_smoothing}")


_init = MPOConfig.__init__


@wraps(_init)
def _answering_older_flags(self: MPOConfig, *values: Any, **given: Any) -> None:
    _init(self, *values, **known_flags(given, (f.name for f in fields(MPOConfig))))


# A dataclass writes its own `__init__`, which could only say that it does not know a flag of an earlier TRL.
MPOConfig.__init__ = _answering_older_flags  # type: ignore[method-assign]
