"""Two ranks (gloo, CPU) make the updates of one, and each goes on from what the other saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import run_ranks
import torch

from tests.mpo.run_ranks import CASES, RESUMED, SAVED, STEPS
from tests.ranks import assert_same_run, launched

BY_ACCELERATE = ("full", "full paired", "lora", "lora paired")


def result(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases on one rank."""
    folder = tmp_path_factory.mktemp("one")
    run_ranks.main(folder, CASES)
    return folder


@pytest.fixture(scope="module")
def two(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases on two ranks, and the saved ones resumed on two from what one rank saved."""
    folder = tmp_path_factory.mktemp("two")
    launched("torchrun", run_ranks.__file__, str(folder), str(one), *CASES)
    return folder


def assert_same(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same run, with the same δ and the same layout."""
    assert ours["shared"] == expected["shared"]
    assert ours["delta"] == pytest.approx(expected["delta"], abs=1e-5)
    assert expected["delta"] != 0.0
    assert_same_run(ours, expected)


@pytest.mark.parametrize("case", CASES)
def test_ranks_do_not_matter(one: Path, two: Path, case: str) -> None:
    ours, expected = result(two / case), result(one / case)
    assert (ours["ranks"], expected["ranks"]) == (2, 1)
    assert ours["wrapped"] == "DistributedDataParallel"
    assert any(bool(gradient.any()) for gradient in expected["gradients"].values())
    assert_same(ours, expected)


def test_accelerate_launch(one: Path, tmp_path: Path) -> None:
    """Started with the configuration that we ship, on CPUs: `MPOConfig` finds no GPU and takes gloo."""
    launched("accelerate", run_ranks.__file__, str(tmp_path), str(one), *BY_ACCELERATE)
    for case in BY_ACCELERATE:
        ours = result(tmp_path / case)
        assert ours["ranks"] == 2
        assert_same(ours, result(one / case))


@pytest.mark.parametrize("case", sorted(RESUMED))
def test_saved_on_one_resumed_on_two(one: Path, two: Path, case: str) -> None:
    assert_resumed(result(two / "resumed" / case), result(one / case))


@pytest.mark.parametrize("case", sorted(RESUMED))
def test_saved_on_two_resumed_on_one(two: Path, tmp_path: Path, case: str) -> None:
    run_ranks.train(tmp_path, case, world_size=1, resume=two / case / f"checkpoint-{SAVED}")
    assert_resumed(result(tmp_path / case), result(two / case))


def assert_resumed(resumed: dict[str, Any], straight: dict[str, Any]) -> None:
    """The gradients that a resumed run keeps are those of its own first step."""
    steps = [line["step"] for line in resumed["log"] if "loss" in line]
    assert steps == [*range(1, STEPS + 1)]
    assert_same({**resumed, "gradients": {}}, {**straight, "gradients": {}})
