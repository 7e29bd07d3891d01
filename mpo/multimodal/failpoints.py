"""Named places at which a process kills itself, to prove that its work survives: `MPO_FAILPOINT=before_commit:3`.

The number counts the passages, 1 if it is left out. It is SIGKILL: no handler runs, no file is closed. Without the
variable nothing happens.
"""

from __future__ import annotations

import os
import signal

from mpo.multimodal.errors import ConfigError

VARIABLE = "MPO_FAILPOINT"
FAILPOINTS = {
    "before_commit": "a call's results are in the store's transaction, which is not committed",
    "after_commit": "they are committed, and nothing else knows of them yet",
    "mid_export": "a file's content is handed over, and part of it is still in this process",
    "before_rename": "the file is complete and on the disk, under its temporary name",
    "after_rename": "the file has its name, and what follows it is missing",
    "before_manifest": "every file of a stage exists except its manifest",
}

_passed: dict[str, int] = {}


def reach(name: str) -> None:
    """Announce that a failpoint is passed; the process ends here if the variable names this passage.

    Args:
        name: a key of `FAILPOINTS`.

    Raises:
        ConfigError: the variable names no failpoint, or no passage of one.
    """
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    point, _, number = wanted.partition(":")
    if point not in FAILPOINTS or not (number or "1").isdecimal():
        raise ConfigError(f"{VARIABLE}={wanted!r}: expected name or name:number, of {', '.join(FAILPOINTS)}")
    if name == point:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)
