"""Computing the reference's log-probs once, before training: what a run does with `mpo/reference.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from peft import PeftModel
from torch import Tensor, nn

from mpo.config import MPOConfig
from mpo.forward import logger, model_inputs, reference_logps
from mpo.layout import Layout, PromptSharing
from mpo.multimodal.errors import ConfigError
from mpo.reference import Batch, ReferenceCache, digest_of_processor, digest_of_weights, missing, precompute


@dataclass(frozen=True)
class ReferenceRun:
    """The reference of a run whose policy has not been trained yet.

    Attributes:
        policy: the model as it will be trained, possibly with fresh adapters.
        reference: a frozen model; None: the policy itself, without its adapters if it has any.
        processor: of both.
        collate: rows → a batch with `response_keys`, as in training.
        args: of the run.
        accelerator: of the run.
        layout: "paired" where the run does not share prompts.
    """

    policy: nn.Module
    reference: nn.Module | None
    processor: Any
    collate: Callable[[list[Any]], Batch]
    args: MPOConfig
    accelerator: Accelerator
    layout: Layout

    def computed(self, datasets: Sequence[Any]) -> ReferenceCache:
        """The reference's values of all rows; those that the cache on the disk lacks are computed.

        Raises:
            ConfigError: rows without a length, a collator without `response_keys`, values of another reference.
        """
        rows = _with_length(datasets)
        cache = self._opened(rank=self.args.process_index)
        policy, reference = self.policy, self._reference
        was_training = policy.training
        policy.eval()
        # A rank computes only what it lacks, maybe nothing, so it checks its first packed batch alone.
        sharing = PromptSharing(self.layout, [reference or policy], all_ranks=False)

        def logps(batch: Batch) -> Tensor:
            inputs, _ = model_inputs(send_to_device(batch, self.accelerator.device))
            with self.accelerator.autocast():
                inputs = sharing.admit(inputs, [reference or policy])
                return reference_logps(policy, inputs, reference=reference)

        for some in rows:
            computed = precompute(cache, some, logps=logps, **self._share)
            logger.info("reference log-probs: %d of %d rows computed, the others were known", computed, len(some))
        policy.train(was_training)
        self.accelerator.wait_for_everyone()
        cache.reload()
        return cache

    def kept(self, datasets: Sequence[Any]) -> ReferenceCache:
        """The reference's values of all rows, from the disk alone: for weights that will be sharded.

        Every rank raises, or none: each looks at its share of the rows.

        Raises:
            ConfigError: as `computed`, and a cache that lacks rows.
        """
        rows = _with_length(datasets)
        cache = self._opened(rank=None)
        lacking = torch.tensor(
            sum(missing(cache, some, **self._share) for some in rows), device=self.accelerator.device
        )
        if total := int(self.accelerator.reduce(lacking, reduction="sum")):
            raise ConfigError(
                f"the reference cache {cache.folder} lacks {total} rows, and precompute_ref_log_probs needs whole "
                "weights to compute them: build the trainer once without FSDP or DeepSpeed on the same rows and "
                "folder, or leave it out, so that the reference runs beside the policy"
            )
        return cache

    @property
    def _reference(self) -> nn.Module | None:
        """None: the policy with its adapters disabled."""
        return self.reference if isinstance(self.policy, PeftModel) else self.reference or self.policy

    @property
    def _share(self) -> Mapping[str, Any]:
        """This process's share of the rows, and how they are collated."""
        return {
            "collate": self.collate,
            "batch_size": self.args.precompute_ref_batch_size or self.args.per_device_train_batch_size,
            "rank": self.args.process_index,
            "world_size": self.args.world_size,
        }

    def _opened(self, *, rank: int | None) -> ReferenceCache:
        assert self.args.output_dir is not None
        made_by = {
            "weights": digest_of_weights(self._reference or self.policy),
            "processor": digest_of_processor(self.processor),
            "dtype": f"{self.policy.dtype}, autocast {self.accelerator.mixed_precision}",
        }
        folder = self.args.reference_cache_dir or Path(self.args.output_dir, "reference_cache")
        with self.accelerator.main_process_first():
            return ReferenceCache(folder, made_by, rank=rank)


def _with_length(datasets: Sequence[Any]) -> list[Any]:
    """The data sets of a trainer's arguments: each one, none, or several by name."""
    found = [
        rows for some in datasets for rows in (some.values() if isinstance(some, dict) else [some]) if rows is not None
    ]
    if any(not hasattr(rows, "__len__") for rows in found):
        raise ConfigError("precompute_ref_log_probs needs datasets with a length, got a stream: load the rows first")
    return found
