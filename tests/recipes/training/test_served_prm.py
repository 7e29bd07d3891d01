"""A PRM behind a real HTTP server on loopback, in `mpo train-grpo` and for the guard of `mpo train-mpo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mpo.multimodal.loading import load_model, load_processor
from recipes.config import TrainGRPOConfig, TrainMPOConfig
from recipes.stage.folder import manifest_of
from recipes.training.train_grpo import train_grpo
from recipes.training.train_mpo import train_mpo
from recipes.training.training_guard import LOOKS
from rewards.errors import ServerError
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.types import Completion, PreferencePair, Problem
from tests.model_server import ModelServer
from tests.recipes.training.planted import digit_problems, prm_of_policy
from tests.served_model import ServedModel

STEPS, BATCH = 2, 4


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_problems(tmp_path_factory.mktemp("problems"), "train", 4)


@pytest.fixture(scope="module")
def prm(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prm_of_policy(policy_folder, tmp_path_factory.mktemp("prm") / "prm", prm_format="visualprm")


@pytest.fixture(scope="module")
def served(prm: Path) -> ServedModel:
    return ServedModel(load_model(prm).eval(), load_processor(prm))


@pytest.fixture(scope="module")
def contract(prm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The PRM's folder as a client needs it: without weights."""
    folder = tmp_path_factory.mktemp("contract") / "prm"
    folder.mkdir()
    for file in prm.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def settings(policy: Path, problems: Path, out: Path, **changes: Any) -> TrainGRPOConfig:
    tiny = {"max_steps": STEPS, "batch_size": BATCH, "num_generations": 2, "max_new_tokens": 12, "learning_rate": 1e-3}
    quiet = {"prompt": "direct", "save_steps": 1, "guard_every": 0, "warmup": 0.0, "timeout_s": 60.0}
    alone = {"verifier_weight": 0.0, "format_weight": 0.0, "aggregation": "last"}
    return TrainGRPOConfig(policy=policy, problems=problems, out=out, **(tiny | quiet | alone | changes))


def log_of(out: Path) -> list[dict[str, Any]]:
    return [line for line in json.loads((out / "log_history.json").read_text()) if "reward" in line]


@pytest.mark.timeout(200)
def test_the_rewards_are_those_of_the_prm_in_this_process_and_a_miss_is_none(
    policy_folder: Path, problems: Path, prm: Path, contract: Path, served: ServedModel, tmp_path: Path
) -> None:
    """A refused step leaves its response without a reward: it lowers no mean, and is counted."""
    here = train_grpo(settings(policy_folder, problems, tmp_path / "here", prm=prm))
    with ModelServer(reply=served, tokenize=served.tokenize) as server:
        there = {"prm": contract, "prm_base_url": [server.base_url], "prm_model": "prm"}
        out = train_grpo(settings(policy_folder, problems, tmp_path / "there", **there))
        asked = len(server.requests)
        server.faults = ["ok", "refuse"]
        missed = train_grpo(settings(policy_folder, problems, tmp_path / "missed", **there))
    found = {folder: manifest_of(folder)["counts"]["training"]["rewards"]["prm"] for folder in (here, out, missed)}
    assert found[here] == found[out] == {"scored": STEPS * BATCH}
    assert asked >= STEPS * BATCH
    first = {folder: log_of(folder)[0] for folder in found}
    assert first[out]["rewards/prm/mean"] == pytest.approx(first[here]["rewards/prm/mean"], abs=1e-5)
    assert first[out]["rewards/prm/std"] == pytest.approx(first[here]["rewards/prm/std"], abs=1e-5)
    assert found[missed] == {"scored": STEPS * BATCH - 1, "unscorable": 1}
    assert first[missed]["prm/unscorable"] == 1 / BATCH
    least = 0.9 * first[here]["rewards/prm/mean"]  # of four rewards about 0.5, one that counts 0 would take a quarter
    assert least < first[missed]["rewards/prm/mean"]


@pytest.mark.timeout(200)
def test_a_server_that_is_gone_ends_the_run_which_continues(
    policy_folder: Path, problems: Path, contract: Path, served: ServedModel, tmp_path: Path
) -> None:
    """Its last checkpoint is whole, and the same command ends with the weights of a run without trouble."""
    with ModelServer(reply=served, tokenize=served.tokenize) as server:
        there = {"prm": contract, "prm_base_url": [server.base_url], "prm_model": "prm"}
        straight = train_grpo(settings(policy_folder, problems, tmp_path / "straight", **there))
        in_step_one = len(server.requests) // STEPS
        config = settings(policy_folder, problems, tmp_path / "cut", **there)
        server.faults, server.then = ["ok"] * in_step_one, "401"
        with pytest.raises(ServerError, match="HTTP 401"):
            train_grpo(config)
        assert [path.name for path in config.out.glob("checkpoint-*")] == ["checkpoint-1"]
        server.then = "ok"
        cut = train_grpo(config)
    ours, expected = load_model(cut).state_dict(), load_model(straight).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    found = [manifest_of(out)["counts"]["training"]["rewards"] for out in (cut, straight)]
    assert found[0] == found[1] == {"prm": {"scored": STEPS * BATCH}}


@pytest.mark.timeout(200)
def test_the_guard_of_train_mpo_asks_it_too(
    policy_folder: Path, problems: Path, prm: Path, contract: Path, served: ServedModel, tmp_path: Path
) -> None:
    pairs = [PreferencePair(Problem("t", f"{i}?"), Completion("one"), Completion("two"), "x") for i in range(4)]
    write_trl_parquet(pairs, tmp_path / "pairs.parquet")
    looks = []
    with ModelServer(reply=served, tokenize=served.tokenize) as server:
        for name, how in {"here": {"prm": prm}, "there": {"prm": contract, "prm_base_url": [server.base_url],
                                                         "prm_model": "prm"}}.items():  # fmt: skip
            config = TrainMPOConfig(policy_folder, tmp_path / "pairs.parquet", tmp_path / name, max_steps=1,
                                    batch_size=2, save_steps=0, guard=problems, guard_every=1, guard_problems=2,
                                    guard_stop=False, guard_tokens=12, timeout_s=60.0, **how)  # fmt: skip
            out = train_mpo(config)
            looks.append([json.loads(line) for line in (out / LOOKS).read_text().splitlines()])
        assert server.requests
    for here, there in zip(*looks, strict=True):
        assert there["remaining"] == pytest.approx(here["remaining"], abs=1e-4)
        assert there["reward"] == pytest.approx(here["reward"], abs=1e-4)
