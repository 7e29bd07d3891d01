"""One core, no network, and one tiny policy for the whole session."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# Before any test module imports torch or a Hugging Face library.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[_name] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def processor() -> Any:
    """The digits world's real InternVL processor; a test that changes it builds its own."""
    from recipes.worlds.digits.policy import build_processor

    return build_processor()


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny InternVL on disk: real class, real processor, random weights."""
    from recipes.worlds.digits.policy import PolicySize, build_policy

    size = PolicySize(vision_hidden=32, vision_layers=1, text_hidden=32, text_layers=2, heads=2)
    return build_policy(tmp_path_factory.mktemp("policy"), seed=0, size=size)


@pytest.fixture(scope="session")
def policy(policy_folder: Path) -> Any:
    """The tiny model in eval mode; a test that trains or changes it loads its own."""
    from mpo.multimodal.loading import load_model

    return load_model(policy_folder).eval()
