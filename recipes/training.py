"""Training arguments that every training stage of a recipe shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


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
