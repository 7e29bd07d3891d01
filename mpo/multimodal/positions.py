"""Where a model places the tokens of its rows, found out in the process that makes the batch.

Qwen-VL and its kin place an image's tokens by time, height and width (M-RoPE). Their own `get_rope_index` reads ids and
grids value by value, which on an accelerator is dozens of waits per forward pass, once for the policy and once for the
reference. It needs the config and no weights, so collators call it; what a model would compute itself is bit-equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.packing import LAYOUT, PackedLayout, packed_positions


class RowPositions:
    """Position ids of a batch, as the model would compute them.

    Args:
        backbone: `model.base_model`, without PEFT or DDP around the model.

    Example:
        >>> from types import SimpleNamespace
        >>> layout = PackedLayout([2], [(4, 6)])
        >>> batch = {"input_ids": torch.tensor([[7, 8, 9, 5, 9, 6]]), "shared_prefix": layout}
        >>> RowPositions(SimpleNamespace())(batch)["position_ids"].tolist()
        [[0, 1, 2, 3, 2, 3]]
    """

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone

    @classmethod
    def without_weights(cls, model: Any) -> RowPositions:
        """The same, small enough to be sent to the processes that make batches.

        Args:
            model: without PEFT or DDP around it.
        """
        backbone = model.base_model
        own = object.__new__(type(backbone))
        vars(own)["config"] = backbone.config
        return cls(own)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`position_ids` of rows from `stack_rows` or `pack_rows`; empty where the model would count them itself.

        Returns:
            (B, T) int64, or (3, B, T) for rows with images of a model that has M-RoPE; packed rows always have them.

        Raises:
            ConfigError: image grids without `mm_token_type_ids`, in packed rows.
        """
        layout: PackedLayout | None = batch.get(LAYOUT)
        images = {name: value for name, value in batch.items() if name.endswith("_grid_thw")}
        if not hasattr(self._backbone, "get_rope_index"):
            images = {}
        if layout is None:
            if not images or "mm_token_type_ids" not in batch:
                return {}
            mask, types = batch["attention_mask"], batch["mm_token_type_ids"]
            return {
                "position_ids": self._backbone.get_rope_index(batch["input_ids"], types, attention_mask=mask, **images)[
                    0
                ]
            }
        positions = packed_positions(self._prompts(batch, layout, images), layout, batch["input_ids"].shape[1])
        return {"position_ids": positions[0] if len(positions) == 1 else positions}

    def _prompts(self, batch: Mapping[str, Any], layout: PackedLayout, images: Mapping[str, Tensor]) -> Tensor:
        """(1, B, P), or (3, B, P) for a model whose rotary embedding has a time, a height and a width."""
        width = max(layout.prefixes) + 1
        ids = batch["input_ids"][:, :width]
        counts = torch.arange(width, device=ids.device).expand(1, *ids.shape)
        if not images:
            return counts
        mask = (counts[0] <= torch.tensor(layout.prefixes, device=ids.device)[:, None]).long()
        if "mm_token_type_ids" not in batch:
            name = type(self._backbone).__name__
            raise ConfigError(f"expected 'mm_token_type_ids' beside {sorted(images)}: {name} needs both")
        types = batch["mm_token_type_ids"][:, :width]
        positions: Tensor = self._backbone.get_rope_index(ids, types * mask, attention_mask=mask, **images)[0]
        return positions
