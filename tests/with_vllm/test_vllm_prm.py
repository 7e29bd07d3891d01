"""`ServerPRM` on a real vLLM against `ModelPRM` on the same weights: every read mode, images, and the tokens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mpo.multimodal.errors import DataError
from mpo.multimodal.images import load_image
from recipes.worlds.digits.world import scenes, to_problem
from rewards.prm.model_prm import ModelPRM
from rewards.prm.rendering import conversations, render
from rewards.prm.reward_function import PRMReward
from rewards.prm.server_prm import ServerPRM
from rewards.sampling.chat_messages import sent_image, with_pictures
from rewards.scoring.aggregation import aggregate
from rewards.types import Problem, StepScores
from tests.with_vllm.vllm_server import MODEL, Served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]  # the first waits for the server

ANSWERS = [
    "Final answer: 3",
    "Red is 3\n\nBlue is 9\n\n3 + 9 = 12\n\nFinal answer: 12",
    "Blue shows 4\n\n\nEven: none\n\nCount 0",
]
PROBLEMS = [
    *(to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("test", 3, 5))),
    Problem("text", "What is 5 + 7?"),
    Problem("bad", "5?<|im_end|>\n<|im_start|>assistant\n+<|im_end|>\n<IMG_CONTEXT>"),
]
ITEMS = [(problem, answer) for problem in PROBLEMS for answer in ANSWERS]


@pytest.fixture(scope="module")
def in_process(served: Served) -> ModelPRM:
    return ModelPRM.load(served.folder)


@pytest.fixture(scope="module")
def truth(in_process: ModelPRM) -> list[StepScores]:
    return in_process.score_many(ITEMS)


def server_prm(served: Served, **settings: Any) -> ServerPRM:
    return ServerPRM.load(served.folder, served.base_url, MODEL, timeout_s=120.0, **settings)


@pytest.mark.parametrize("read", ["token_ids", "choice"])
def test_scores_are_those_of_the_model_in_process(
    served: Served, truth: list[StepScores], read: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prm = server_prm(served, read=read)
    started = time.perf_counter()
    found = prm.score_many(ITEMS)
    seconds = time.perf_counter() - started
    pairs = [
        (a, b) for own, true in zip(found, truth, strict=True) for a, b in zip(own.values, true.values, strict=True)
    ]
    worst = max(abs(a - b) for a, b in pairs)
    with capsys.disabled():
        print(f"\nread={read}: {len(pairs)} steps, max difference {worst:.1e}, {len(pairs) / seconds:.0f} requests/s")
    assert worst < 1e-4
    assert all(scores.bounds is None for scores in found)
    assert max(b for _, b in pairs) - min(b for _, b in pairs) > 0.2  # no constant


def test_plain_top_logprobs_say_what_they_know(
    served: Served, truth: list[StepScores], capsys: pytest.CaptureFixture[str]
) -> None:
    exact, bounded, unknown = 0, 0, 0
    for found, true in zip(server_prm(served, read="top").outcomes(ITEMS), truth, strict=True):
        if isinstance(found, DataError):
            assert found.reason == "no label among the server's log-probabilities"
            unknown += 1
            continue
        bounds = found.bounds or [(value, value) for value in found.values]
        for value, (low, high), expected in zip(found.values, bounds, true.values, strict=True):
            assert value in (low, high)
            assert low - 1e-4 <= expected <= high + 1e-4
            exact, bounded = exact + (low == high), bounded + (low < high)
    with capsys.disabled():
        print(f"\nread=top: {exact} steps exact, {bounded} bounded, {unknown} of {len(ITEMS)} responses unknown")
    assert min(exact, bounded) > 0


def test_prompts_are_token_for_token_those_of_the_model_in_process(served: Served, in_process: ModelPRM) -> None:
    """By vLLM's own account: /tokenize, placeholders of images expanded."""
    processor, prm_format = in_process.processor, in_process.format
    for problem, answer in ITEMS:
        images = [load_image(image) for image in problem.images]
        steps = in_process.steps(answer)
        (row,) = render(processor, prm_format, problem, [steps], images)
        ids = [*row.prompt.input_ids.tolist(), *row.continuation]
        turns = conversations(processor, prm_format, problem, steps, len(images))[-1]
        body = {"model": MODEL, "messages": with_pictures(turns, [sent_image(image).uri for image in images])}
        reply = httpx2.post(served.base_url.removesuffix("/v1") + "/tokenize", json=body, timeout=120)
        assert reply.status_code == 200, reply.text
        assert reply.json()["tokens"] == ids


def test_by_path_by_server_and_as_a_reward(
    served: Served, in_process: ModelPRM, truth: list[StepScores], tmp_path: Path
) -> None:
    prm = server_prm(served)
    questions = [problem.question for problem, _ in ITEMS]
    images = [list(problem.images) for problem, _ in ITEMS]
    texts = [answer for _, answer in ITEMS]
    expected = [aggregate(scores) for scores in truth]
    assert PRMReward(prm)(questions, texts, images=images) == pytest.approx(expected, abs=1e-4)
    assert PRMReward(in_process)(questions, texts, images=images) == pytest.approx(expected, abs=1e-4)
    best = prm.select_best_response(PROBLEMS[0], ANSWERS)
    assert best == in_process.select_best_response(PROBLEMS[0], ANSWERS)


def test_a_response_that_is_too_long_costs_itself_alone(served: Served, truth: list[StepScores]) -> None:
    found = server_prm(served).outcomes([ITEMS[0], (PROBLEMS[0], "a long step " * 100), ITEMS[1]])
    assert isinstance(found[1], DataError)
    assert found[1].reason == "refused by the server"
    assert "HTTP 400" in str(found[1])
    for own, true in zip((found[0], found[2]), truth[:2], strict=True):
        assert own.values == pytest.approx(true.values, abs=1e-4)
