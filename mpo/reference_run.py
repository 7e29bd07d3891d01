"""Computing the reference's log-probs once, before training: what a trainer does with `mpo/reference.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from mpo.forward import logger, model_inputs, reference_logps
from mpo.layout import Layout, PromptSharing
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.ranks import check_whole_weights
from mpo.reference import ReferenceCache, digest_of_processor, digest_of_weights, missing, precompute


def cached_reference(trainer: Any) -> ReferenceCache:
    """Compute the reference's values of all rows that the cache lacks, and let the reference go.

    Args:
        trainer: an `MPOTrainer` whose policy has not been trained yet; without a reference model, and without
            adapters, that policy is the reference.

    Raises:
        ConfigError: a cache that lacks rows where weights will be sharded, rows without a length, a collator without
            `response_keys`, values of another reference.
    """
    args, policy, reference = trainer.args, trainer.model, trainer.ref_model
    sharded = trainer.weights_get_sharded  # when training starts: here they are whole
    if trainer.is_fsdp_enabled:
        check_whole_weights(trainer.accelerator)
    if not isinstance(policy, PeftModel):
        reference = reference or policy
    made_by = {
        "weights": digest_of_weights(reference or policy),
        "processor": digest_of_processor(trainer.processing_class),
        "dtype": f"{policy.dtype}, autocast {trainer.accelerator.mixed_precision}",
    }
    folder = args.reference_cache_dir or Path(args.output_dir, "reference_cache")
    with trainer.accelerator.main_process_first():
        cache = ReferenceCache(folder, made_by, rank=None if sharded else args.process_index)
    share: dict[str, Any] = {
        "collate": trainer.data_collator,
        "batch_size": args.precompute_ref_batch_size or args.per_device_train_batch_size,
        "rank": args.process_index,
        "world_size": args.world_size,
    }
    if sharded:
        _check_complete(trainer, cache, share)
    else:
        _fill(trainer, cache, share, reference)
    trainer.ref_model = None
    return cache


def _check_complete(trainer: Any, cache: ReferenceCache, share: dict[str, Any]) -> None:
    """Every rank raises, or none: each looks at its share of the rows."""
    lacking = torch.tensor(
        sum(missing(cache, rows, **share) for rows in _datasets(trainer)), device=trainer.args.device
    )
    if total := int(trainer.accelerator.reduce(lacking, reduction="sum")):
        raise ConfigError(
            f"the reference cache {cache.folder} lacks {total} rows, and precompute_ref_log_probs needs whole weights "
            "to compute them: build the trainer once without FSDP or DeepSpeed on the same rows and folder, or leave "
            "it out, so that the reference runs beside the policy"
        )


def _fill(trainer: Any, cache: ReferenceCache, share: dict[str, Any], reference: Any) -> None:
    args, policy = trainer.args, trainer.model
    was_training = policy.training
    policy.eval()
    # A rank computes only what it lacks, maybe nothing, so it checks its first packed batch alone.
    layout: Layout = args.layout if trainer.sharing.on else "paired"
    sharing = PromptSharing(layout, [reference or policy], all_ranks=False)
    for rows in _datasets(trainer):
        computed = precompute(cache, rows, logps=partial(_prepared_logps, trainer, reference, sharing), **share)
        logger.info("reference log-probs: %d of %d rows computed, the others were known", computed, len(rows))
    policy.train(was_training)
    trainer.accelerator.wait_for_everyone()
    cache.reload()


def _prepared_logps(trainer: Any, reference: Any, sharing: PromptSharing, batch: dict[str, Any]) -> Tensor:
    inputs, _ = model_inputs(trainer._prepare_inputs(batch))
    with trainer.accelerator.autocast():
        inputs = sharing.admit(inputs, [reference or trainer.model])
        return reference_logps(trainer.model, inputs, reference=reference)


def _datasets(trainer: Any) -> list[Any]:
    given = [trainer.train_dataset, trainer.eval_dataset]
    found = [
        rows for some in given for rows in (some.values() if isinstance(some, dict) else [some]) if rows is not None
    ]
    if any(not hasattr(rows, "__len__") for rows in found):
        raise ConfigError("precompute_ref_log_probs needs datasets with a length, got a stream: load the rows first")
    return found
