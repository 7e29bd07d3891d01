"""`mpo env`: what a bug report needs besides `accelerate env`, and nothing of its user.

`accelerate env` prints Python, torch, the devices and the memory. Here: the project itself, the packages beside it, and
the attention that a shared prompt gets. No path, no host or user name, no environment variable.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mpo.multimodal.varlen import why_no_kernel
from recipes.config import EnvConfig
from recipes.stage.closing import CHECKOUT, commit_of

PACKAGES = (
    *("transformers", "trl", "peft", "datasets", "huggingface_hub", "pillow", "torchvision"),
    *("bitsandbytes", "deepspeed", "flash-attn", "kernels", "liger-kernel", "math-verify", "openai", "scikit-learn"),
    *("sentencepiece", "tensorboard", "trackio", "vllm", "wandb"),
)


def environment(config: EnvConfig) -> dict[str, Any]:
    """Print the report, as lines or as one JSON object; give it back."""
    report = describe()
    lines = [f"{name}: {value}" for part in report.values() for name, value in part.items() if value is not None]
    print(json.dumps(report, indent=2) if config.json else "\n".join(lines))
    return report


def describe() -> dict[str, dict[str, str | None]]:
    """The report as plain data; None means that something does not exist."""
    return {
        "project": {"mpo-prm": _version("mpo-prm"), "commit": commit_of(CHECKOUT)},
        "packages": {name: _version(name) for name in PACKAGES},
        "attention": {"shared prompt": _attention()},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _attention() -> str:
    """What the parts of a packed row go through (`mpo/multimodal/shared_prefix.py`), and why."""
    one_by_one = "one scaled_dot_product_attention per part of a row"
    if reason := why_no_kernel():
        return f"{one_by_one}: {reason}"
    return "torch.nn.attention.varlen in half precision, if a first batch agrees; in float32, " + one_by_one
