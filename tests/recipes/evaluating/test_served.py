"""`mpo evaluate` with two real tiny policies on loopback servers, a real PRM in this process and one on a server."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from mpo.multimodal.loading import load_model, load_processor
from recipes.cli import main
from recipes.evaluating.results import EVALUATION
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups
from recipes.worlds.digits.policy import PolicySize, build_policy
from rewards.choosing.evaluation import accuracy_at_k
from rewards.prm.formats import find_format
from rewards.prm.model_prm import save_format
from rewards.scoring.confidence import self_certainty
from tests.model_server import ModelServer
from tests.recipes.run_folders import make_problems
from tests.sampled_model import SampledModel
from tests.served_model import ServedModel


@pytest.fixture(scope="module")
def other_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tiny model, with weights of its own."""
    size = PolicySize(vision_hidden=32, vision_layers=1, text_hidden=32, text_layers=2, heads=2)
    return build_policy(tmp_path_factory.mktemp("other"), seed=1, size=size)


@pytest.fixture
def folders(tmp_path: Path, policy_folder: Path) -> Path:
    """A PRM with random weights, another policy, and two small benchmarks of our own."""
    save_format(shutil.copytree(policy_folder, tmp_path / "prm"), find_format("visualprm"))
    for name in ("sums", "counts"):
        make_problems(tmp_path / name, "test", 3, random.Random(name))
    return tmp_path


def test_two_served_policies_and_two_prms(folders: Path, policy_folder: Path, other_policy: Path) -> None:
    served_prm = ServedModel(load_model(folders / "prm").eval(), load_processor(folders / "prm"))
    with (
        ModelServer(reply=SampledModel(policy_folder), models=("a",)) as one,
        ModelServer(reply=SampledModel(other_policy), models=("b",)) as two,
        ModelServer(reply=served_prm, tokenize=served_prm.tokenize, models=("prm",)) as prm,
    ):
        settings: dict[str, Any] = {
            "ns": [1, 2, 4],
            "sample": {"prompt": "direct", "max_new_tokens": 12},
            "policies": {
                "A": {"base_url": [one.base_url], "model": "a"},
                "B": {"base_url": [two.base_url], "model": "b"},
            },
            "benchmarks": {name: {"problems": str(folders / name / "test.jsonl")} for name in ("sums", "counts")},
            "critics": {
                "PRM": {"prm": str(folders / "prm")},
                "PRM on a server": {"prm": str(folders / "prm"), "base_url": [prm.base_url], "model": "prm"},
                "Own certainty": {"self_certainty": True},
            },
        }
        path = folders / "matrix.yaml"
        path.write_text(json.dumps(settings))
        assert main(["evaluate", str(path), "--out", str(folders / "out")]) == 0
        asked = [len(server.requests) for server in (one, two, prm)]
        assert main(["evaluate", str(path), "--out", str(folders / "out")]) == 0
        assert [len(server.requests) for server in (one, two, prm)] == asked  # nothing is drawn or scored again
    assert {body["model"] for body in one.requests} == {"a"}
    assert all(asked)
    check(folders / "out")


def check(out: Path) -> None:
    """Every cell is what the library computes from the groups of its folder."""
    evaluation = json.loads((out / "results" / EVALUATION).read_text())
    assert len(evaluation["cells"]) == 2 * 2 * 9 * 3
    for told in evaluation["responses"]:
        assert (told["problems"], told["responses"], told["most"]) == (3, 12, 4)
        assert 1 <= told["tokens"] <= 12
    for policy in ("A", "B"):
        for bench in ("sums", "counts"):
            critics = out / "policies" / policy / bench / "n4" / "critics"
            scored = {
                name: read_groups(critics / name / "rewards") for name in ("PRM", "PRM-on-a-server", "Own-certainty")
            }
            for group in scored["Own-certainty"]:
                for rollout in group.rollouts:
                    assert rollout.reward == pytest.approx(self_certainty(rollout.completion))
            for ours, theirs in zip(scored["PRM"], scored["PRM-on-a-server"], strict=True):
                for a, b in zip(ours.rollouts, theirs.rollouts, strict=True):
                    assert a.reward == b.reward or a.reward == pytest.approx(b.reward, abs=1e-4)
            (cell,) = [
                one
                for one in evaluation["cells"]
                if (one["policy"], one["benchmark"], one["critic"], one["n"]) == (policy, bench, "PRM", 2)
            ]
            expected = [accuracy_at_k(group, "prm", 2) for group in scored["PRM"]]
            assert cell["accuracy"]["mean"] == pytest.approx(sum(expected) / len(expected))
            unscored = sum(manifest_of(critics / "PRM" / "rewards")["counts"]["unscored"].values())
            assert cell["unscored"] == unscored / 12
