"""What has to be the same on every rank if weights are sharded: each holds a part and asks the others for theirs.

A module's parts are gathered when it runs, so a module that one rank runs and another does not leaves both waiting,
or mixes up what they send each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather

from mpo.multimodal.errors import ConfigError


def check_pictures(batch: Mapping[str, Any]) -> None:
    """Every rank's batch has an image, or none has; every rank calls this, once per batch.

    Raises:
        ConfigError: on every rank, if some run the vision tower and others do not.
    """
    has_picture = any(name.startswith("pixel_values") for name in batch)
    ranks = gather(torch.tensor([has_picture], device=batch["input_ids"].device)).tolist()
    if any(ranks) and not all(ranks):
        without = [rank for rank, has in enumerate(ranks) if not has]
        raise ConfigError(
            f"expected an image in the batch of every rank or of none, got none on rank(s) {without} of {len(ranks)}: "
            "with sharded weights (FSDP, DeepSpeed) all ranks run the vision tower together; train on rows without "
            "images in a run of their own, or all rows with recipes/accelerate/multi_gpu.yaml"
        )


def check_whole_weights(accelerator: Any) -> None:
    """Under FSDP, each rank has read the weights itself before a reference is copied from them.

    Raises:
        ConfigError: only rank 0 has, and the reference of all others would be noise.
    """
    if accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading leaves every rank but the first without weights until the policy is "
            "sharded, too late for the reference: set it to false, or train adapters (peft_config), whose reference "
            "is the policy itself"
        )
