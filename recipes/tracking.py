"""Reporting to Weights & Biases: what a run logs, and nothing about the machine that it runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError
from recipes.run import is_first_process

# By default wandb records the command line (with any key in it), host name, user, git remote and diff, the program's
# source, installed packages, and everything that is printed.
NOTHING_ELSE: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": "",
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
STAGING = "WANDB_DATA_DIR"  # where pictures of tables wait for their upload; by default in the home folder


@contextmanager
def tracking(report_to: str, out: Path, *, name: str) -> Iterator[None]:
    """A wandb run around a stage, with its files in `out`; nothing for "none".

    `WANDB_MODE=offline` sends nothing: `wandb sync OUT/wandb/offline-run-…` does so later. `WANDB_PROJECT` names the
    project. The trainer in it is given the same `report_to` and finds the run. Of several ranks the first reports.

    Raises:
        ConfigError: another `report_to`, or wandb cannot start (no key).
    """
    if report_to not in ("none", "wandb"):
        raise ConfigError(f"report_to must be 'none' or 'wandb', got {report_to!r}")
    if report_to == "none" or not is_first_process():
        yield
        return
    before = os.environ.get(STAGING)
    os.environ[STAGING] = before or str(out.resolve() / "wandb")
    try:
        with _started(out, name):  # ends the run, as failed where an error passes
            yield
    finally:
        if before is None:
            del os.environ[STAGING]


def _started(out: Path, name: str) -> Any:
    import wandb

    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mpo-prm"),
            name=name,
            dir=str(out),
            settings=wandb.Settings(**NOTHING_ELSE),
        )
    except wandb.errors.UsageError as error:
        raise ConfigError(
            f"wandb did not start ({error}): log in, set WANDB_MODE=offline, or report to none"
        ) from error
