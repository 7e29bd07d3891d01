"""Memory that only cycles of Python objects still hold: a trainer that is done, with its model and its batches."""

from __future__ import annotations

import gc

import torch


def free_leftovers() -> None:
    """Free it here and now, and give the device back what no tensor uses.

    Python's collector comes when it likes. Until then the model of a finished stage stays on the device beside the next
    one's. And a data loader's worker that is forked meanwhile inherits the garbage: where it is collected there,
    tensors of a device are freed in a process that has no device.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
