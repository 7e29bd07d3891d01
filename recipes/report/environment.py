"""`mpo env`: what a bug report needs to know of this installation, and nothing of its user.

Versions, devices, sizes and yes-or-no answers only: no path, no host or user name, no environment variable.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from mpo.multimodal.varlen import why_no_kernel
from recipes.config import EnvConfig

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "pillow",
)
OPTIONAL = (
    *("bitsandbytes", "deepspeed", "flash-attn", "kernels", "liger-kernel", "math-verify", "openai", "scikit-learn"),
    *("sentencepiece", "tensorboard", "trackio", "vllm", "wandb"),
)
PROGRAMS = ("chromium", "chromedriver")  # the report's browser tests skip without them


def environment(config: EnvConfig) -> dict[str, Any]:
    """Print the report, as lines or as one JSON object; give it back."""
    report = describe()
    print(json.dumps(report, indent=2) if config.json else "\n".join(_lines(report)))
    return report


def describe() -> dict[str, Any]:
    """The report as plain data; None stands for what is not there."""
    return {
        "mpo-prm": {"version": _version("mpo-prm"), **_commit(CHECKOUT)},
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}".strip(),
        "packages": {name: _version(name) for name in PACKAGES},
        "optional packages": {name: _version(name) for name in OPTIONAL},
        "cpu": {"cores": os.cpu_count(), "usable": _usable_cores()},
        "memory": {
            "total GiB": _gib(psutil.virtual_memory().total),
            "free GiB": _gib(psutil.virtual_memory().available),
        },
        "devices": _devices(),
        "attention": _attention(),
        "programs": {name: shutil.which(name) is not None for name in PROGRAMS},
    }


def _usable_cores() -> int | None:
    """Cores that this process may run on; None where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit(folder: Path) -> dict[str, Any]:
    """The commit of a checkout and whether its files were changed; None where this is an installed package."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD") if (folder / ".git").exists() else None
    changes = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "changed": None if changes is None else bool(changes)}


def _devices() -> list[dict[str, Any]]:
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    found: list[dict[str, Any]] = []
    for index in range(torch.accelerator.device_count()):
        device: dict[str, Any] = {"kind": kind.type if kind else None}
        if kind and kind.type == "cuda":
            known = torch.cuda.get_device_properties(index)
            device |= {"name": known.name, "memory GiB": _gib(known.total_memory)}
            device |= {"capability": f"{known.major}.{known.minor}", "bfloat16": torch.cuda.is_bf16_supported()}
        found.append(device)
    return found


def _attention() -> dict[str, Any]:
    """What torch was built with, and what the shared prefix can use (`mpo/multimodal/varlen.py`)."""
    return {
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "flash in torch": torch.backends.cuda.is_flash_attention_available(),
        "shared prompts": shared_prompts(),
    }


def shared_prompts() -> str:
    """What computes a row of several responses here, and why it is not the kernel."""
    reason = why_no_kernel()
    return "variable-length kernel" if reason is None else f"segment by segment by SDPA: {reason}"


def _gib(size: int) -> float:
    return round(size / 2**30, 1)


def _lines(report: Mapping[str, Any]) -> list[str]:
    """One line per entry, without those that are not there."""
    lines = []
    for name, value in report.items():
        entries = value if isinstance(value, list) else [value]
        texts = [_text(entry) for entry in entries] or ["none but the CPU"]
        lines += [f"{name + ':':<19}{text}" for text in texts]
    return lines


def _text(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return str(entry)
    words = {True: "yes", False: "no"}
    return ", ".join(
        f"{name} {words[value] if isinstance(value, bool) else value}"
        for name, value in entry.items()
        if value is not None
    )
