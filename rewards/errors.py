"""Errors of this package; all below `mpo.multimodal.errors.MPOError`."""

from __future__ import annotations

from mpo.multimodal.errors import DataError, MPOError


class StepAlignmentError(DataError):
    """Steps, read positions and scores do not match one to one. Never clipped, never padded."""

    reason = "steps that do not fit the format"


class StoreError(MPOError, OSError):
    """A store of work cannot be opened or written: another process holds it, the disk is full, or it is not a store."""


class ServerError(MPOError, ConnectionError):
    """A model server refused us, or gave no usable reply in all the attempts that we allow it."""


class WorkerError(MPOError, RuntimeError):
    """A worker process died repeatedly over one call."""
