"""Reporting to wandb, TensorBoard or trackio: what a run logs, in the stage's own folder.

wandb is told to record nothing about the machine. TensorBoard puts the host's name into the names of its files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError
from recipes.stage.folder import is_first_process

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
# report_to → the variable that names the place of its files, and the folder in a stage's folder; images of wandb's
# tables would wait for their upload in the home folder, and trackio's database would be there
PLACES = {
    "wandb": ("WANDB_DATA_DIR", "wandb"),
    "tensorboard": ("TENSORBOARD_LOGGING_DIR", "tensorboard"),
    "trackio": ("TRACKIO_DIR", "trackio"),
}


@contextmanager
def tracking(report_to: str, out: Path, *, name: str) -> Iterator[None]:
    """Files of a tracker in `out` while a stage runs; nothing for "none".

    For wandb a run is started, too: `WANDB_MODE=offline` sends nothing, `wandb sync OUT/wandb/offline-run-…` does so
    later; `WANDB_PROJECT` names the project. The trainer inside is given the same `report_to`, and finds the run or
    starts one. Of several ranks the first reports.

    Raises:
        ConfigError: another `report_to`, a tracker that is not installed, or wandb cannot start (no key).
    """
    if report_to not in ("none", *PLACES):
        raise ConfigError(f"report_to must be one of none, {', '.join(PLACES)}, got {report_to!r}")
    if report_to != "none" and find_spec(report_to) is None:
        raise ConfigError(f"report_to={report_to} needs the package: pip install {report_to}")
    if report_to == "none" or not is_first_process():
        yield
        return
    variable, folder = PLACES[report_to]
    before = os.environ.get(variable)
    os.environ[variable] = before or str(out.resolve() / folder)
    try:
        with _started(out, name) if report_to == "wandb" else nullcontext():  # wandb: ends it, as failed on an error
            yield
    finally:
        if before is None:
            del os.environ[variable]


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
