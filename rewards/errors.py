"""Errors of this package; all below `mpo.multimodal.errors.MPOError`."""

from __future__ import annotations

from collections.abc import Mapping

from mpo.multimodal.errors import DataError, MPOError


class StepAlignmentError(DataError):
    """Steps, read positions and scores do not match one to one. Never clipped, never padded."""

    reason = "steps that do not fit the format"


class StoreError(MPOError, OSError):
    """A store of work cannot be opened or written: another process holds it, the disk is full, or it is not a store."""


class ServerError(MPOError, ConnectionError):
    """A model server refused us, or gave no usable reply in all the attempts that we allow it.

    Args:
        message: what happened.
        problems: id → why, of problems that got no usable reply from a server that was there and answered.
    """

    def __init__(self, message: str, *, problems: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.problems = dict(problems or {})


class WorkerError(MPOError, RuntimeError):
    """A worker process died repeatedly over one call."""


class TokensSpentError(MPOError):
    """As many tokens were generated as the user allows; what they gave is kept."""

    def __init__(self, spent: int, most: int) -> None:
        super().__init__(
            f"stopped: {spent:,} tokens were generated, and max_tokens_total is {most:,}; what they gave is kept, and "
            "the same command with a larger max_tokens_total, or 0 for no limit, continues"
        )
