"""What a stage has computed so far: `calls.sqlite` in its folder, with which a killed stage goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mpo.multimodal.messages import template_of
from recipes.stage.folder import Stage
from rewards.kept.calls import CallStore
from rewards.kept.keys import digest
from rewards.types import RolloutGroup

CALLS = "calls.sqlite"


def open_calls(stage: Stage, *, processor: Any = None, groups: Iterable[RolloutGroup] = ()) -> CallStore:
    """The stage's store, for the same settings, inputs, prompt template and images as before.

    Args:
        stage: that computes.
        processor: of the model, whose prompt template the results depend on; a stage without a model has none.
        groups: whose images they depend on.

    Raises:
        FingerprintError: what is there was computed from something else, which is named.
    """
    fingerprint = stage.by_content()
    if processor is not None:
        fingerprint["template"] = digest(template_of(processor))[:16]
        fingerprint["pictures"] = _pictures(groups)
    return CallStore(stage.out / CALLS, fingerprint)


def _pictures(groups: Iterable[RolloutGroup]) -> str:
    """Content key of all image files, as they lie on the disk."""
    paths = dict.fromkeys(Path(str(image)) for group in groups for image in group.problem.images)
    return digest([_file_digest(path) for path in paths])[:16]


def _file_digest(path: Path) -> str | None:
    if not path.is_file():
        return None  # whoever decodes it will say so
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
