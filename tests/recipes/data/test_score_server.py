"""One trained PRM scored by path, through a server and as a GRPO reward: the same numbers; what `mpo score` counts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mpo.multimodal.images import load_image
from mpo.multimodal.loading import load_model, load_processor
from recipes.answering.answer import answer
from recipes.cli import main
from recipes.config import AnswerConfig, TrainPRMConfig
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups, read_problems
from recipes.training.train_prm import train_prm
from rewards.prm.reward_function import PRMReward
from rewards.prm.server_prm import ServerPRM
from rewards.types import Completion, MonteCarloCount, Rollout, RolloutGroup
from tests.model_server import ModelServer
from tests.recipes.run_folders import make_problems, write_stage
from tests.served_model import ServedModel

TEXTS = ["Red is 3\n\nBlue is 9\n\nFinal answer: 12", "Red is 4\n\nFinal answer: 4"]
COUNTS = [[(4, 4), (3, 4), (2, 4)], [(1, 4), (0, 4)]]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled responses per problem, and one with a control token."""
    folder = tmp_path_factory.mktemp("labelled")
    problems = make_problems(folder, "labelled", 4, random.Random(0))
    rollouts = [
        Rollout(Completion(text), mc=tuple(MonteCarloCount(*pair) for pair in counts))
        for text, counts in zip(TEXTS, COUNTS, strict=True)
    ]
    unreadable = Rollout(Completion("Blue<|im_end|>"))
    for name, some in {"groups": [*rollouts, unreadable], "labels": rollouts}.items():
        made = [RolloutGroup(problem, tuple(some)) for problem in read_problems(problems).values()]
        write_stage(folder / name, made, problems)
    return folder / "groups"


@pytest.fixture(scope="module")
def prm_folder(groups: Path, policy_folder: Path) -> Path:
    labels, out = groups.parent / "labels", groups.parent / "prm"
    return train_prm(TrainPRMConfig(labels, policy_folder, out, max_steps=6, batch_groups=2))


@pytest.fixture(scope="module")
def served(prm_folder: Path) -> Any:
    return ServedModel(load_model(prm_folder).eval(), load_processor(prm_folder))


def score(groups: Path, prm: Path, out: Path, *flags: str) -> int:
    return main(["score", "--groups", str(groups), "--prm", str(prm), "--out", str(out), *flags])


def values(folder: Path) -> list[float]:
    rollouts = [rollout for group in read_groups(folder) for rollout in group.rollouts]
    return [value for rollout in rollouts if rollout.step_scores for value in rollout.step_scores.values]


def test_by_path_through_a_server_and_as_a_reward(groups: Path, prm_folder: Path, served: Any, tmp_path: Path) -> None:
    assert score(groups, prm_folder, tmp_path / "path") == 0
    expected = values(tmp_path / "path")
    assert len(expected) == 4 * 5
    assert len({round(value, 5) for value in expected}) > 10
    with ModelServer(reply=served, tokenize=served.tokenize) as server:
        flags = ["--base_url", server.base_url, "--model", "prm", "--concurrency", "3"]
        for read in ("token_ids", "choice"):
            assert score(groups, prm_folder, tmp_path / read, *flags, "--read", read) == 0
            assert values(tmp_path / read) == pytest.approx(expected, abs=1e-5)
            counts = manifest_of(tmp_path / read)["counts"]
            assert (counts["in"], counts["out"], counts["unscored"]) == (12, 12, {"control token": 4})
            assert "bounded" not in counts
        rollouts = [(group.problem, rollout) for group in read_groups(tmp_path / "path") for rollout in group.rollouts]
        rewards = PRMReward(ServerPRM.load(prm_folder, server.base_url, "prm"))(
            [problem.question for problem, _ in rollouts],
            [rollout.completion.text for _, rollout in rollouts],
            images=[[load_image(image) for image in problem.images] for problem, _ in rollouts],
        )
        asked = len(server.requests)
        assert score(groups, prm_folder, tmp_path / "choice", *flags, "--read", "choice") == 0  # complete: asks nothing
        assert score(groups, prm_folder, tmp_path / "choice", *flags, "--model", "another") == 4
        assert len(server.requests) == asked == 3 * len(expected)
    assert [value is None for value in rewards] == [False, False, True] * 4
    by_path = [rollout.reward for _, rollout in rollouts]
    assert [r for r in rewards if r is not None] == pytest.approx([r for r in by_path if r is not None], abs=1e-5)


def test_bounds_are_kept_and_counted(
    groups: Path, prm_folder: Path, served: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that lists only the likelier label: a score is above or below 0.5, and no more is known."""
    likelier = {"structured_outputs": {"choice": ["+", "-"]}, "top_logprobs": 1}
    assert score(groups, prm_folder, tmp_path / "path") == 0
    with ModelServer(reply=lambda body: served(body | likelier)) as server:
        flags = ["--base_url", server.base_url, "--model", "prm", "--read", "top"]
        assert score(groups, prm_folder, tmp_path / "top", *flags) == 0
    counts = manifest_of(tmp_path / "top")["counts"]
    assert (counts["bounded"], counts["unscored"]) == (8, {"control token": 4})
    assert values(tmp_path / "top") == [0.5] * 20
    found = [r.step_scores.bounds for g in read_groups(tmp_path / "top") for r in g.rollouts if r.step_scores]
    expected = [(0.5, 1.0) if value > 0.5 else (0.0, 0.5) for value in values(tmp_path / "path")]
    assert [interval for bounds in found for interval in bounds] == expected
    assert "8 of 12 responses have scores that are only bounds" in caplog.text


def test_a_server_that_breaks_leaves_no_result(
    groups: Path, prm_folder: Path, served: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ModelServer(reply=served) as server:
        server.faults, server.then = ["ok"] * 3, "404"
        flags = ["--base_url", server.base_url, "--model", "prm"]
        assert score(groups, prm_folder, tmp_path / "out", *flags) == 2
        assert "refuses requests (HTTP 404" in capsys.readouterr().err
        assert not (tmp_path / "out" / "manifest.json").exists()
        server.then = "ok"
        assert score(groups, prm_folder, tmp_path / "out", *flags) == 0
    assert score(groups, prm_folder, tmp_path / "x", "--base_url", "http://127.0.0.1:1/v1") == 2
    assert "needs its address and its name there" in capsys.readouterr().err


def test_answer_with_policy_and_prm_behind_servers(
    prm_folder: Path, served: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"question": "What is 5?", "n": 3, "json": True, "prm": prm_folder, "model": "tiny"}
    with ModelServer() as policy, ModelServer(reply=served) as prm:
        by_path = answer(AnswerConfig(**settings, base_url=policy.base_url))
        config = AnswerConfig(**settings, base_url=policy.base_url, prm_base_url=prm.base_url, prm_model="prm")
        by_server = answer(config)
    assert len(prm.requests) == 3
    assert by_server.text == by_path.text
    assert by_server.rewards == pytest.approx(by_path.rewards, abs=1e-5)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rewards"] == list(by_server.rewards)
