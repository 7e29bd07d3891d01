"""Errors of this package; all below `mpo.multimodal.errors.MPOError`."""

from __future__ import annotations

from mpo.multimodal.errors import DataError


class StepAlignmentError(DataError):
    """Steps, read positions and scores do not match one to one. Never clipped, never padded."""
