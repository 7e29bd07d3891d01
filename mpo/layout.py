"""Whether a run's batches share their prompts: decided from the models, then checked on the first batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from accelerate.utils import reduce
from peft import PeftModel
from torch import Tensor
from transformers.utils import logging

from mpo.multimodal.agreement import check_first_batch
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.packing import LAYOUT, paired_rows
from mpo.multimodal.scoring import innermost, token_logps
from mpo.multimodal.shared_prefix import enable_shared_prefix, why_not_shared
from mpo.multimodal.vision import encode_images_once, share_frozen_vision

logger = logging.get_logger(__name__)

Layout = Literal["auto", "shared", "paired"]


class PromptSharing:
    """Packed batches for models that read them correctly; their paired form for all others. Either way, an image goes
    through a vision tower once per batch.

    `on` is the decision, `reason` its reason; `kernel` is whether attention may use the variable-length kernel.

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
        self.kernel = True  # where there is one, until a first batch shows otherwise
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
            batch[LAYOUT].varlen = self.kernel
        return dict(batch) if self.on or LAYOUT not in batch else paired_rows(batch)

    def _check(self, batch: Mapping[str, Any], models: Sequence[Any]) -> None:
        """Every rank runs the same forwards and collectives, whatever its batch: a wrapped forward is a collective."""
        packed = torch.tensor(LAYOUT in batch, dtype=torch.float32, device=batch["input_ids"].device)
        if not self._summed(packed):
            return
        reads = [partial(_token_values, model) for model in models]
        found = check_first_batch(batch, reads, models=models, fill=self.all_ranks, summed=self._summed)
        self._checked, self.on, self.kernel = True, found.shares, found.kernel
        if found.shares:
            self.reason += f"; {found.reason}"
        else:
            self._refuse(found.reason)

    def _summed(self, values: Tensor) -> Tensor:
        return reduce(values, reduction="sum") if self.all_ranks else values

    def _refuse(self, reason: str) -> None:
        self.reason = reason
        if self.layout == "shared":
            raise ConfigError(f"layout='shared' is not possible: {reason}; set layout='auto' or 'paired'")
        logger.warning("each prompt goes through the model once per response (layout 'paired'): %s", reason)


def _token_values(model: Any, inputs: Mapping[str, Any], place: int | None) -> list[Tensor]:
    return token_logps(model, inputs)
