"""The one error tree. Every error a user can cause derives from `MPOError` and states four things:
what was expected, what came, where, and what to do.

The stdlib base (`ValueError`, `FileNotFoundError`, …) is kept beside it, so that callers who know
nothing of this package can still catch what they expect.
"""

from __future__ import annotations


class MPOError(Exception):
    """Root of every error that this project raises for a user. The CLI prints it as one line and exits 2."""


class ConfigError(MPOError, ValueError):
    """A configuration key or value that cannot work."""


class FingerprintError(ConfigError):
    """A folder holds the work of other settings or inputs; continuing would mix the two. The CLI exits 4."""


class DataError(MPOError, ValueError):
    """A row of a dataset that breaks its format.

    Args:
        message: what was expected, what came, and what to do, with the row's own values.
        reason: the kind of fault in a few words, the same for every row that has it: rows are counted by it.
    """

    reason = "breaks the format of a row"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.reason


class ImageError(DataError):
    """An image that is missing, unreadable, too large, of a refused format, or outside its root folder."""

    reason = "image that cannot be used"


class StageError(MPOError, FileNotFoundError):
    """A stage was run before the stage whose output it reads."""


class NonFiniteLossError(MPOError, ArithmeticError):
    """A loss or gradient became NaN or infinite; raised before the optimizer could spread it."""
