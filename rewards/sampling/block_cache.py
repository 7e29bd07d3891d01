"""A cache layer that grows by blocks: transformers' own copies all keys and values for every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

BLOCK = 64  # positions


class BlockLayer(DynamicLayer):
    """A `DynamicLayer` whose keys and values are the filled part of a larger tensor.

    Args:
        layer: whose keys and values it takes over, (R, H, T, D).
    """

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        assert layer.keys is not None, "a layer that has read a prompt"
        assert layer.values is not None
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values
        self._room: tuple[Tensor, Tensor] | None = None  # in which keys and values lie; None: they lie where they came

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values with the new ones behind them, (R, H, T, D), views."""
        assert self.keys is not None
        assert self.values is not None
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < end:
            self._room = _larger(self.keys, end), _larger(self.values, end)
        keys, values = self._room
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows; room for more positions is made when they come."""
        super().batch_select_indices(indices)
        self._room = None


def _larger(filled: Tensor, end: int) -> Tensor:
    """The tensor (R, H, T, D) in one with room for whole blocks up to `end` positions at least."""
    rows, heads, length, size = filled.shape
    room = torch.empty(rows, heads, -(-end // BLOCK) * BLOCK, size, dtype=filled.dtype, device=filled.device)
    room[:, :, :length] = filled
    return room
