"""Weights in shards (FSDP2, two ranks on gloo): loss, rewards and gradients of one process with whole weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import run_sharded
import torch

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.ranks import check_whole_weights
from tests.mpo.run_sharded import CASES
from tests.ranks import launched


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases on two ranks; `run_sharded` asserts that every parameter is a DTensor."""
    folder = tmp_path_factory.mktemp("sharded")
    launched("torchrun", run_sharded.__file__, str(folder))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_sharded_weights_make_the_same_step(sharded: Path, case: str) -> None:
    expected = run_sharded.step(case)
    ours: dict[str, Any] = torch.load(sharded / f"{case}.pt", weights_only=True)
    torch.testing.assert_close(ours["loss"], expected["loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours["rewards"], expected["rewards"], rtol=0, atol=1e-5)
    assert bool(expected["rewards"].abs().min() > 1e-3)
    assert ours["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        norm = float(gradient.norm())
        assert float((ours["gradients"][name] - gradient).norm()) <= 1e-5 * max(norm, 1e-3), name


def test_a_reference_needs_whole_weights() -> None:
    plugins = [SimpleNamespace(cpu_ram_efficient_loading=efficient) for efficient in (False, True)]
    accelerators = [SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)) for plugin in plugins]
    check_whole_weights(accelerators[0])
    with pytest.raises(ConfigError, match="set it to false, or train adapters"):
        check_whole_weights(accelerators[1])
