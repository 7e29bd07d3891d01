"""A stage's PRM: loaded in this process, or asked behind a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpo.multimodal.errors import ConfigError
from recipes.config import GuardedTraining

if TYPE_CHECKING:
    from rewards.prm.step_prm import StepPRM


def prm_of(
    folder: Path,
    *,
    prm_format: str | None = None,
    batch_rows: int = 32,
    base_url: str | Sequence[str] = (),
    model: str | None = None,
    read: str = "token_ids",
    concurrency: int = 16,
    part: str = "solution",
) -> StepPRM:
    """The PRM of a folder; with `base_url` and `model` the folder's weights stay where they are.

    It scores the steps of that `part` of a response: "solution", "thought" or "both".

    Raises:
        ConfigError: a server without a model's name, or the other way round, or without the extra.
    """
    if bool(base_url) != (model is not None):
        missing = "name there (model)" if model is None else "address (base_url)"
        raise ConfigError(f"a PRM behind a server needs its address and its name there, got no {missing}")
    if not base_url or model is None:
        from rewards.prm.model_prm import ModelPRM

        prm: StepPRM = ModelPRM.load(folder, prm_format=prm_format, batch_rows=batch_rows)
        prm.part = part
        return prm
    try:
        from rewards.prm.server_prm import ServerPRM
    except ImportError as error:
        raise ConfigError(f"a server needs the extra: pip install -e '.[server]' ({error})") from error

    prm = ServerPRM.load(folder, base_url, model, prm_format=prm_format, read=read, concurrency=concurrency)
    prm.part = part
    return prm


def prm_in_training(config: GuardedTraining) -> StepPRM | None:
    """The PRM of a training run, in this process or behind its server; None without one.

    A step that the server refuses leaves its response without a score. A server that gives no usable reply in all
    attempts ends the run, which continues from its last checkpoint with the same command.
    """
    if config.prm is None:
        return None
    return prm_of(config.prm, base_url=config.prm_base_url, model=config.prm_model, read=config.prm_read)
