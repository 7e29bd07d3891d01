"""`mpo train-grpo` on two ranks (gloo, CPU): the updates of one on the same responses, one account, one closing line.

TRL draws with another seed in every process (`set_seed(…, device_specific=True)`), so sampled runs on one and on two
ranks differ from their first response. What TRL promises is that the rewards of a group are compared over all ranks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mpo.multimodal.checkpoint import MANIFEST as COMPLETE
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model
from recipes.stage.folder import manifest_of
from recipes.training.train_grpo import train_grpo
from recipes.training.training_guard import LOOKS
from tests.ranks import assert_same_run, launched
from tests.recipes.training import run_grpo_ranks
from tests.recipes.training.planted import digit_problems, prm_of_policy
from tests.recipes.training.run_grpo_ranks import BATCH, CASES, STEPS, settings


@pytest.fixture(scope="module")
def given(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Policy, problems and PRM."""
    folder = tmp_path_factory.mktemp("given")
    return [policy_folder, digit_problems(folder, "train", 6), prm_of_policy(policy_folder, folder / "prm")]


@pytest.fixture(scope="module")
def one(given: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run_grpo_ranks.main(folder, *given)
    return folder


@pytest.fixture(scope="module")
def two(given: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """And what both ranks wrote to stderr, in `said`."""
    folder = tmp_path_factory.mktemp("two")
    said = launched("torchrun", run_grpo_ranks.__file__, str(folder), *map(str, given))
    (folder / "said").write_text(said)
    return folder


def result(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.timeout(500)
@pytest.mark.parametrize("case", CASES)
def test_the_same_responses_make_the_same_updates(one: Path, two: Path, case: str) -> None:
    ours, expected = result(two / case), result(one / case)
    assert (ours["ranks"], expected["ranks"], ours["wrapped"]) == (2, 1, "DistributedDataParallel")
    assert any(bool(gradient.any()) for gradient in expected["gradients"].values())
    assert len({line["reward"] for line in expected["log"] if "reward" in line}) > 1
    assert ours["counts"] == expected["counts"]
    assert {name: sum(found.values()) for name, found in ours["counts"].items()} == dict.fromkeys(
        ours["counts"], STEPS * BATCH
    )
    assert_same_run(ours, expected)


@pytest.mark.timeout(500)
def test_a_sampled_run_has_one_policy_one_account_and_one_closing_line(two: Path) -> None:
    """And the checkpoint that both ranks wrote continues to the same weights and counts."""
    ranks = [torch.load(two / f"sampled-{rank}.pt", weights_only=True) for rank in range(2)]
    saved = load_model(two / "sampled").state_dict()
    for name, tensor in ranks[0]["weights"].items():
        assert torch.equal(tensor, ranks[1]["weights"][name])
        assert torch.equal(tensor, saved[name])
    training = manifest_of(two / "sampled")["counts"]["training"]
    found = training["rewards"]
    assert training["steps"] == 4
    assert {name: sum(row.values()) for name, row in found.items()} == dict.fromkeys(found, 4 * BATCH)
    assert json.loads((two / "sampled" / "checkpoint-4" / COMPLETE).read_text())["ranks"] == 2
    lines = [line for line in (two / "said").read_text().splitlines() if line.startswith("train-grpo: 6 in, 6 out")]
    assert [line.rsplit("/", 1)[-1] for line in lines] == ["sampled", "resumed"]
    resumed = torch.load(two / "resumed-1.pt", weights_only=True)["weights"]
    assert all(torch.equal(resumed[name], tensor) for name, tensor in ranks[1]["weights"].items())
    assert manifest_of(two / "resumed")["counts"]["training"]["rewards"] == found


@pytest.mark.timeout(500)
def test_the_guard_of_the_first_rank_stops_both(two: Path) -> None:
    ranks = [torch.load(two / f"stopped-{rank}.pt", weights_only=True) for rank in range(2)]
    assert [(rank["steps"], rank["stopped"]) for rank in ranks] == [(1, "image_blind_reward")] * 2
    assert all(torch.equal(tensor, ranks[1]["weights"][name]) for name, tensor in ranks[0]["weights"].items())
    looks = [json.loads(line)["step"] for line in (two / "stopped" / LOOKS).read_text().splitlines()]
    assert looks == [0, 1]


def test_a_step_that_the_processes_cannot_share_is_refused(
    given: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"batch_size=8 rows per step cannot be cut into .* on 3 processes"):
        train_grpo(settings(given[0], given[1], tmp_path / "out"))
    assert not (tmp_path / "out").exists()
