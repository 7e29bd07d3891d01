"""A PRM behind several servers, one in a process that is killed: the scores of the same model in this process."""

from __future__ import annotations

import copy
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model
from recipes.worlds.digits.policy import build_processor
from recipes.worlds.digits.world import scenes, to_problem
from rewards.prm.formats import VISUALPRM
from rewards.prm.model_prm import ModelPRM
from rewards.prm.server_prm import ServerPRM
from rewards.types import Problem, StepScores
from tests.model_server import ModelServer, asked_about
from tests.served_model import ServedModel
from tests.server_process import ServerProcess, free_port, until

ANSWERS = ["Final answer: 3", "Red is 3\n\nBlue is 9\n\nFinal answer: 12"]
PROBLEMS = [*(to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("test", 10, 5))), Problem("t", "5 + 7?")]
ITEMS = [(problem, answer) for problem in PROBLEMS for answer in ANSWERS]
STEPS = len(PROBLEMS) * (1 + 3)


@pytest.fixture(scope="module")
def model(policy_folder: Path) -> Any:
    return load_model(policy_folder).eval()


@pytest.fixture(scope="module")
def expected(model: Any, processor: Any) -> list[StepScores]:
    return ModelPRM(copy.deepcopy(model), processor, VISUALPRM).score_many(ITEMS)


def behind(processor: Any, *urls: str, concurrency: int = 2) -> ServerPRM:
    return ServerPRM(urls, "tiny", processor, VISUALPRM, timeout_s=60.0, longest_wait_s=0.01, concurrency=concurrency)


def values(scores: list[StepScores]) -> list[float]:
    return [value for row in scores for value in row.values]


def serving(stack: ExitStack, model: Any, *, tokenize: Any = None) -> ModelServer:
    served = ServedModel(model, build_processor())
    return stack.enter_context(ModelServer(reply=served, tokenize=tokenize or served.tokenize, models=("tiny",)))


def test_all_steps_of_a_picture_go_to_one_server(model: Any, processor: Any, expected: list[StepScores]) -> None:
    gone = f"http://127.0.0.1:{free_port()}/v1"
    with ExitStack() as stack:
        servers = [serving(stack, model) for _ in range(2)]
        prm = behind(processor, gone, *(server.base_url for server in servers))
        assert values(prm.score_many(ITEMS)) == pytest.approx(values(expected), abs=1e-5)
    asked = [[asked_about(body) for body in server.requests] for server in servers]
    pictures = [{about for about in row if not about.startswith("### Question")} for row in asked]
    assert not pictures[0] & pictures[1]
    assert len(pictures[0] | pictures[1]) == len({problem.images[0].tobytes() for problem in PROBLEMS[:-1]})
    assert len(asked[0]) + len(asked[1]) == STEPS
    assert all(server.most <= 2 for server in servers)


def test_a_server_killed_half_way_costs_no_step(
    model: Any, policy_folder: Path, processor: Any, expected: list[StepScores], tmp_path: Path, caplog: Any
) -> None:
    lost = ServerProcess(tmp_path / "log", model=policy_folder)

    def kill() -> None:
        until(lambda: len(lost.asked()) >= 3)
        lost.kill()

    with ExitStack() as stack:
        stack.callback(lost.kill)
        kept = serving(stack, model)
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        found = behind(processor, lost.base_url, kept.base_url, concurrency=1).score_many(ITEMS)
        killer.join(timeout=60)
    assert not killer.is_alive()
    assert values(found) == pytest.approx(values(expected), abs=1e-5)
    assert f"dropped until it is back: {lost.base_url}" in caplog.text
    assert STEPS <= len(lost.asked()) + len(kept.requests) <= STEPS + 1


def test_every_server_must_have_the_labels(model: Any, processor: Any) -> None:
    with ExitStack() as stack:
        servers = [serving(stack, model), serving(stack, model, tokenize=lambda text: [7])]
        with pytest.raises(ConfigError, match=rf"{servers[1].base_url} reads the label '\+' as the tokens \[7\]"):
            behind(processor, *(server.base_url for server in servers)).score_many(ITEMS)
        assert not any(server.requests for server in servers)
