"""A PRM on two ranks (gloo, CPU), whole or in shards: losses, metrics and weights of one; each resumes the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mpo.multimodal.packing import LAYOUT
from rewards.prm.collator import first_groups
from tests.ranks import assert_same_run, launched
from tests.rewards.prm import run_prm_ranks
from tests.rewards.prm.run_prm_ranks import CASES, RESUMED, SAVED, STEPS


def result(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases on one rank."""
    folder = tmp_path_factory.mktemp("one")
    run_prm_ranks.main(folder, CASES)
    return folder


@pytest.fixture(scope="module")
def two(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases on two ranks, and the saved ones resumed on two from what one rank saved."""
    folder = tmp_path_factory.mktemp("two")
    launched("torchrun", run_prm_ranks.__file__, str(folder), str(one), *CASES)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_ranks_do_not_matter(one: Path, two: Path, case: str) -> None:
    ours, expected = (result(folder / case / "result.pt") for folder in (two, one))
    assert (ours["ranks"], expected["ranks"]) == (2, 1)
    assert ours["wrapped"] == "DistributedDataParallel"
    assert any(bool(gradient.any()) for gradient in expected["gradients"].values())
    lines = [line for line in expected["log"] if "loss" in line]
    assert all({"step_accuracy", "macro_f1", "auc", "within_problem_auc", "ece"} <= line.keys() for line in lines)
    assert_same_run(ours, expected)


def test_shards_do_not_matter(one: Path, two: Path) -> None:
    """`run_prm_ranks` asserts that every parameter is a DTensor."""
    expected = result(one / "sharded.pt")
    assert_same_run(result(two / "sharded.pt"), expected)
    losses = [line["loss"] for line in expected["log"]]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("case", sorted(RESUMED))
def test_saved_on_one_resumed_on_two(one: Path, two: Path, case: str) -> None:
    assert_resumed(result(two / "resumed" / case / "result.pt"), result(one / case / "result.pt"))


@pytest.mark.parametrize("case", sorted(RESUMED))
def test_saved_on_two_resumed_on_one(two: Path, tmp_path: Path, case: str) -> None:
    run_prm_ranks.train(tmp_path, case, world_size=1, resume=two / case / f"checkpoint-{SAVED}")
    assert_resumed(result(tmp_path / case / "result.pt"), result(two / case / "result.pt"))


def assert_resumed(resumed: dict[str, Any], straight: dict[str, Any]) -> None:
    """The gradients that a resumed run keeps are those of its own first step."""
    assert [line["step"] for line in resumed["log"] if "loss" in line] == [*range(1, STEPS + 1)]
    assert_same_run({**resumed, "gradients": {}}, {**straight, "gradients": {}})


def test_repeated_groups_run_and_count_nothing(tmp_path: Path) -> None:
    """Loss and counts of the first group alone, though both groups are in the rows."""
    groups = run_prm_ranks.labelled_groups()[1:3]
    trainer = run_prm_ranks.build_trainer(tmp_path, world_size=1, groups=groups, lora=False)
    batch, alone = trainer.data_collator(groups), trainer.data_collator(groups[:1])
    kept = first_groups(batch, 1)
    assert kept["inputs"][LAYOUT] is batch["inputs"][LAYOUT]
    assert (
        trainer._counts([kept], torch.device("cpu")).tolist() == trainer._counts([alone], torch.device("cpu")).tolist()
    )
    trainer.model.eval()
    losses = [trainer.compute_loss(trainer.model, some).item() for some in (kept, alone, batch)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-2)
    nothing = first_groups(batch, 0)
    assert trainer.compute_loss(trainer.model, nothing).item() == 0.0
