"""What every training stage of a recipe shares: training arguments, and where a killed run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mpo.multimodal.errors import FingerprintError
from mpo.multimodal.files import write_atomic
from recipes.run import Stage

RESUME = "resume.json"


def training_defaults(out: Path, config: Any) -> dict[str, Any]:
    """Cosine schedule, no checkpoints in mid-stage, nothing sent anywhere, the accelerator if there is one.

    Args:
        out: the stage's folder.
        config: a stage config with `max_steps`, `learning_rate` and `seed`.
    """
    accelerated = torch.accelerator.is_available()
    return {
        "output_dir": str(out),
        "max_steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, config.max_steps // 20),
        "weight_decay": 0.05,
        "seed": config.seed,
        "bf16": False,  # tiny models train in float32 everywhere
        "use_cpu": not accelerated,
        "dataloader_pin_memory": accelerated,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_nan_inf_filter": False,
    }


def checkpoint_to_resume(stage: Stage) -> str | None:
    """The newest whole checkpoint of a killed run of this stage, or None; leaves a note of what the run is.

    The trainer writes `trainer_state.json` last: a checkpoint without a readable one was cut off inside its save.

    Raises:
        FingerprintError: the folder holds checkpoints of other settings or inputs.
    """
    folders = sorted(stage.out.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    note = stage.out / RESUME
    if folders and (not note.exists() or json.loads(note.read_text()) != stage.fingerprint):
        raise FingerprintError(
            f"stage {stage.name}: {stage.out} holds checkpoints of other settings or inputs; choose another folder or "
            "delete it"
        )
    write_atomic(note, json.dumps(stage.fingerprint, indent=1))
    whole = [folder for folder in folders if _is_json(folder / "trainer_state.json")]
    return str(whole[-1]) if whole else None


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return True
