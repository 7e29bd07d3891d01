"""A tiny InternVL on disk (real class, real processor, random weights) and preference rows for it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from typing import Any

from PIL import Image

from mpo.config import MPOConfig
from recipes.worlds.digits.policy import PolicySize, build_policy

SIZE = PolicySize(vision_hidden=32, vision_layers=1, text_hidden=32, text_layers=2, heads=2)


@cache
def tiny_internvl() -> str:
    """The checkpoint's folder, built once a test process."""
    folder = tempfile.mkdtemp(prefix="tiny-internvl-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(build_policy(folder, seed=0, size=SIZE))


def preference_row(index: int, **columns: Any) -> dict[str, Any]:
    """One pair; length of the chosen response and number of tiles differ from row to row."""
    return {
        "problem_id": f"pair-{index}",
        "images": [Image.new("RGB", (32 * (1 + index % 2), 32), (20 * index % 255, 0, 0))],
        "prompt": [{"role": "user", "content": f"How many digits are {index}?"}],
        "chosen": [{"role": "assistant", "content": "one two " * (1 + index % 3) + str(index)}],
        "rejected": [{"role": "assistant", "content": f"three {index}"}],
        **columns,
    }


def preference_rows(number: int) -> list[dict[str, Any]]:
    return [preference_row(index) for index in range(number)]


def tiny_config(folder: Any, **changes: Any) -> MPOConfig:
    """Plain SGD at a large step: Adam would turn rounding noise of a zero gradient into a full step."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "beta": 1.0,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return MPOConfig(**(settings | changes))
