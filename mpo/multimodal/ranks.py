"""What has to be the same on every rank if weights are sharded: each holds a part and asks the others for theirs.

A module's parts are gathered when it runs, so a module that one rank runs and another does not leaves both waiting,
or mixes up what they send each other. So a rank whose rows show no image runs the vision tower on a blank one, whose
features are multiplied by 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather
from PIL import Image
from torch import Tensor

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.messages import prompt_text
from mpo.multimodal.prefix import encode_prompt
from mpo.multimodal.vision import BLANK

BLANK_SIZE = (56, 56)  # pixels; Qwen-VL takes none below 28


def with_blank_image(batch: Mapping[str, Any], processor: Any) -> dict[str, Any]:
    """The batch; where it has no image and another rank's has, with a blank one that counts nothing (`vision.py`).

    So all ranks run the vision tower together, or none does. Every rank calls this, once per batch.

    Args:
        batch: model inputs, on the model's device.
        processor: of the model.
    """
    has_image = any(name.startswith("pixel_values") for name in batch)
    device = batch["input_ids"].device
    ranks = gather(torch.tensor([has_image], device=device)).tolist()
    if has_image or not any(ranks):
        return dict(batch)
    return {**batch, BLANK: {name: value.to(device) for name, value in blank_features(processor).items()}}


def blank_features(processor: Any) -> Mapping[str, Tensor]:
    """The image features of a small grey image."""
    text = prompt_text(processor, [{"role": "user", "content": [{"type": "image"}]}])
    return encode_prompt(processor, text, [Image.new("RGB", BLANK_SIZE, (128, 128, 128))]).image_features


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
