"""`mpo env`: what a bug report needs besides `accelerate env`, and nothing of its user.

`accelerate env` prints Python, torch, the devices and the memory. Here: the project itself, the packages beside it, and
the attention that a shared prompt gets. No path, no host or user name, no environment variable.
"""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mpo.multimodal.varlen import why_no_kernel
from recipes.config import EnvConfig

CHECKOUT = Path(__file__).resolve().parents[2]
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
        "project": {"mpo-prm": _version("mpo-prm"), "commit": _commit(CHECKOUT)},
        "packages": {name: _version(name) for name in PACKAGES},
        "attention": {"shared prompt": _attention()},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit(folder: Path) -> str | None:
    """The commit of a checkout and whether its files were changed; None where this is an installed package."""
    if not (folder / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}, with changes" if changes else commit


def _attention() -> str:
    """What the parts of a packed row go through (`mpo/multimodal/shared_prefix.py`), and why."""
    one_by_one = "one scaled_dot_product_attention per part of a row"
    if reason := why_no_kernel():
        return f"{one_by_one}: {reason}"
    return "torch.nn.attention.varlen in half precision, if a first batch agrees; in float32, " + one_by_one
