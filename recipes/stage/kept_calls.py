"""What a stage has computed so far: `calls.sqlite` in its folder, with which a killed stage continues."""

from __future__ import annotations

from recipes.stage.folder import Stage
from rewards.kept.calls import CallStore

CALLS = "calls.sqlite"


def open_calls(stage: Stage) -> CallStore:
    """The stage's store, for the same settings and inputs as before.

    Raises:
        FingerprintError: what the store holds was computed from something else, which is named.
    """
    return CallStore(stage.out / CALLS, stage.by_content())
