"""Whether a run's batches share their prompts: decided from the models, then checked on the first batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from accelerate.utils import gather
from peft import PeftModel
from torch import Tensor
from transformers.utils import logging

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.packing import LAYOUT, paired_rows
from mpo.multimodal.scoring import innermost, response_lengths, response_logps
from mpo.multimodal.shared_prefix import enable_shared_prefix, why_not_shared
from mpo.multimodal.vision import encode_images_once, share_frozen_vision

logger = logging.get_logger(__name__)

Layout = Literal["auto", "shared", "paired"]

# Largest difference between the two layouts, in nats per token: rounding is far below it, a wrong mask far above.
TOLERANCE, TOLERANCE_HALF = 1e-3, 5e-2


class PromptSharing:
    """Packed batches for models that read them correctly; their paired form for all others. Either way, an image goes
    through a vision tower once per batch.

    `on` is the decision, `reason` its reason.

    Args:
        layout: "auto" shares where every model can, else logs a warning with the reason; "shared" requires it; "paired"
            never shares.
        models: policy and, if there is one, reference, possibly with PEFT around them; they are prepared in place.
        all_ranks: every rank admits its batches in step with the others, and they decide together; False where a rank
            has batches of its own number, as in precomputing, and decides alone.

    Raises:
        ConfigError: "shared", and a model that cannot.
    """

    def __init__(self, layout: Layout, models: Sequence[Any], *, all_ranks: bool = True) -> None:
        self.layout, self.all_ranks = layout, all_ranks
        bases = [innermost(model) for model in models]
        reasons = [] if layout == "paired" else [reason for base in bases if (reason := why_not_shared(base))]
        self.on = layout != "paired" and not reasons
        self.reason = "layout='paired' was requested" if layout == "paired" else "the model can read a shared prompt"
        if reasons:
            self._refuse(reasons[0])
        for base in bases:
            encode_images_once(base)
            if self.on:
                enable_shared_prefix(base)
        if len(models) > 1 or isinstance(models[0], PeftModel):  # a reference reads the same batch
            share_frozen_vision(*bases)
        self.varlen = torch.cuda.is_available()  # until a first batch shows otherwise
        self._checked = False

    def admit(self, batch: Mapping[str, Any], models: Sequence[Any]) -> dict[str, Any]:
        """The batch as the models may read it; the first packed one is compared with its paired form.

        Args:
            batch: model inputs, packed or not: other ranks' batches may be.
            models: all that will read it, as they are called (wrapped).

        Raises:
            ConfigError: "shared", and log-probs that differ.
        """
        if self.on and not self._checked:
            self._check(batch, models)
        if LAYOUT in batch:
            batch[LAYOUT].varlen = self.varlen
        return dict(batch) if self.on or LAYOUT not in batch else paired_rows(batch)

    def _check(self, batch: Mapping[str, Any], models: Sequence[Any]) -> None:
        """Every rank runs the same forwards and collectives, whatever its batch: a wrapped forward is a collective."""
        packed = torch.tensor([LAYOUT in batch], device=batch["input_ids"].device)
        if not self._gathered(packed).any():
            return
        dtype, device = next(innermost(models[0]).parameters()).dtype, batch["input_ids"].device
        half = dtype != torch.float32 or torch.is_autocast_enabled(device.type)
        limit = TOLERANCE_HALF if half else TOLERANCE
        worst = self._worst(batch, models)
        if self.varlen and not worst <= limit:
            logger.warning("attention runs segment by segment: the variable-length kernel is off by %.2g", worst)
            self.varlen = False
            worst = self._worst(batch, models)
        self._checked = True
        if not worst <= limit:  # a NaN is no agreement
            self.on = False
            self._refuse(
                f"its log-probs differ from those of the paired layout by {worst:.2g} per token on a first batch"
            )
        else:
            self.reason += f"; on a first batch, log-probs differ from the paired layout's by {worst:.1e} per token"

    def _worst(self, batch: Mapping[str, Any], models: Sequence[Any]) -> float:
        """Largest difference of all models and ranks; infinite where the variable-length kernel cannot run at all."""
        if LAYOUT in batch:
            batch[LAYOUT].varlen = self.varlen
        try:
            differences = torch.stack([_difference(model, batch) for model in models])
        except RuntimeError as error:
            if not self.varlen:
                raise
            logger.warning("the variable-length kernel failed: %s", error)
            differences = torch.full((len(models),), torch.inf, device=batch["input_ids"].device)
        return float(self._gathered(differences).max())

    def _gathered(self, values: Tensor) -> Tensor:
        return gather(values) if self.all_ranks else values

    def _refuse(self, reason: str) -> None:
        self.reason = reason
        if self.layout == "shared":
            raise ConfigError(f"layout='shared' is not possible: {reason}; set layout='auto' or 'paired'")
        logger.warning("each prompt goes through the model once per response (layout 'paired'): %s", reason)


@torch.no_grad()
def _difference(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Largest difference between packed and paired log-probs, in nats per token; modes and random state stay.

    A batch that is paired already runs twice and differs by 0.
    """
    was_training = model.training
    model.eval()
    device = batch["input_ids"].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        shared, _ = response_logps(model, batch)
        paired, _ = response_logps(model, paired_rows(batch) if LAYOUT in batch else batch)
    model.train(was_training)
    return ((shared - paired).abs() / response_lengths(batch)).max()
