"""Sampling from a server, against a real one on loopback that also misbehaves."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.images import load_image
from rewards.errors import ServerError
from rewards.kept.keys import derived_seed
from rewards.sampling import chat_client, chat_messages
from rewards.sampling.generator import Sample, SamplingParams
from rewards.sampling.openai_generator import OpenAIGenerator
from rewards.types import FinishReason, Problem
from tests.model_server import ModelServer, answer

RED = Image.new("RGBA", (3, 2), (255, 0, 0, 255))
PROBLEMS = [Problem(f"p{i}", f"What is {i}?", (RED,) * (i % 3)) for i in range(6)]
PASSING = [
    "500", "429", "drip", "reset", "html", "garbage", "surrogate", "nan", "too_few", "too_many", "twice",
    "empty_choices", "huge", "packed",
]  # fmt: skip


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def generator(server: ModelServer, **settings: Any) -> OpenAIGenerator:
    quick = {"timeout_s": 30.0, "longest_wait_s": 0.01, "params": SamplingParams(max_new_tokens=16)} | settings
    return OpenAIGenerator(server.base_url, "tiny", **quick)


def _deadline(fault: str) -> float:
    """Short where it is waited for, long where it must not come first on a busy machine."""
    return 1.0 if fault == "drip" else 30.0


def units(samples: list[Sample]) -> list[tuple[int, int]]:
    return sorted((sample.problem, sample.index) for sample in samples)


def flat(batches: Iterator[list[Sample]]) -> list[Sample]:
    return [sample for batch in batches for sample in batch]


def test_one_request_a_problem_with_a_seed_of_its_own(server: ModelServer) -> None:
    drawn = generator(server).generate(PROBLEMS, 4, seed=7)
    assert len(server.requests) == len(PROBLEMS)
    asked = {body["messages"][0]["content"][-1]["text"]: body for body in server.requests}
    for problem, completions in zip(PROBLEMS, drawn, strict=True):
        body = asked[problem.question]
        assert body["seed"] == derived_seed(7, problem, 0) >> 32 < 2**31
        assert [c.text for c in completions] == [answer(body, index) for index in range(4)]
        assert [c.finish_reason for c in completions] == [FinishReason(r) for r in ("stop", "stop", "length", "stop")]
        settings = {"model": "tiny", "n": 4, "temperature": 1.0, "top_p": 1.0, "max_tokens": 16}
        assert settings.items() <= body.items()
        assert not {"top_k", "logprobs", "continue_final_message", "extra_body"} & set(body)
    assert len({body["seed"] for body in server.requests}) == len(PROBLEMS)
    assert generator(server).generate(PROBLEMS, 4, seed=7) == drawn
    assert generator(server).generate(PROBLEMS, 4, seed=8) != drawn


def test_an_image_is_encoded_once_for_all_requests_about_it(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight requests per problem, two problems per image; and again where no image is kept."""
    encoded: list[Any] = []
    real = chat_messages.sent_image
    monkeypatch.setattr(chat_messages, "sent_image", lambda image: encoded.append(image) or real(image))
    for name in ("a.png", "b.png"):
        Image.effect_noise((16, 16), 50).save(tmp_path / name)
    problems = [Problem(f"p{i}", f"What is {i}?", (tmp_path / f"{'ab'[i // 2 % 2]}.png",)) for i in range(8)]
    generator(server, samples_a_request=1, concurrency=1).generate(problems[:4], 8, seed=0)
    assert len(server.requests) == 32
    assert encoded == [tmp_path / "a.png", tmp_path / "b.png"]
    monkeypatch.setattr(chat_messages, "KEPT_CHARACTERS", 0)
    generator(server, concurrency=1).generate(problems, 1, seed=0)
    assert len(encoded) == 2 + len(problems)


def test_pictures_are_data_uris_of_our_own_bytes(server: ModelServer, tmp_path: Path) -> None:
    RED.save(tmp_path / "a.webp", lossless=True)
    generator(server).generate([Problem("a", "Which?", (RED, tmp_path / "a.webp"))], 1, seed=0)
    first, second, text = server.requests[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "Which?"}
    for block in (first, second):
        head, _, data = block["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        assert load_image(base64.b64decode(data)) == load_image(RED)


def test_a_prefix_is_continued(server: ModelServer) -> None:
    generator(server, params=SamplingParams(top_k=5)).generate(PROBLEMS[:2], 2, prefixes=["3 + ", ""], seed=0)
    continued, plain = sorted(server.requests, key=lambda body: -len(body["messages"]))
    assert continued["messages"][1] == {"role": "assistant", "content": [{"type": "text", "text": "3 + "}]}
    assert continued["continue_final_message"] is True
    assert continued["add_generation_prompt"] is False
    assert continued["top_k"] == plain["top_k"] == 5
    assert continued["seed"] == derived_seed(0, PROBLEMS[0], 0, "3 + ") >> 32
    assert len(plain["messages"]) == 1
    assert "continue_final_message" not in plain


def test_token_counts_and_logprobs(server: ModelServer) -> None:
    ((told,),) = generator(server).generate(PROBLEMS[:1], 1, seed=0)
    assert (told.num_tokens, told.token_logprobs) == (5, None)
    ((unknown, _),) = generator(server).generate(PROBLEMS[:1], 2, seed=0)
    assert unknown.num_tokens == 0  # the sum over two choices says nothing of one
    (pair,) = generator(server).draw(PROBLEMS[:1], 3, seed=0)
    assert [sample.tokens for sample in pair] == [5, 5, 5]  # shares: their sum is what the server counted
    ((kept, _),) = generator(server, logprobs=True).generate(PROBLEMS[:1], 2, seed=0)
    assert (kept.num_tokens, kept.token_logprobs) == (5, (-0.5,) * 5)


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_tried_again(server: ModelServer, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "MAX_REPLY_BYTES", 2**22)
    expected = generator(server, logprobs=True).generate(PROBLEMS[:1], 3, seed=0)
    before = len(server.requests)
    server.faults = [fault, fault, "ok"]
    asking = generator(server, logprobs=True, timeout_s=_deadline(fault))
    assert asking.generate(PROBLEMS[:1], 3, seed=0) == expected
    assert len(server.requests) == before + 3
    assert server.requests[-1] == server.requests[-3], "the same request"


@pytest.mark.parametrize("fault", [*PASSING, "nobody"])
def test_a_fault_that_stays_ends_in_one_clear_error(
    server: ModelServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded attempts and time, nothing half drawn, and an error that names server, attempts and fault."""
    monkeypatch.setattr(chat_client, "MAX_REPLY_BYTES", 2**22)
    server.then = "ok" if fault == "nobody" else fault
    asking = generator(server, attempts=2, concurrency=2, logprobs=True, timeout_s=_deadline(fault))
    if fault == "nobody":
        server.shutdown()
        server.server_close()
    drawn: list[Sample] = []
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"http://127\.0\.0\.1:\d+/v1 gave no usable reply in 2 attempts") as caught:
        drawn += flat(asking.draw(PROBLEMS, 3, seed=0))
    assert time.monotonic() - started < 60
    assert not drawn
    assert len(server.requests) <= 2 * 4  # it gives up after three problems, with two asked at a time
    words = {
        "500": "HTTP 500",
        "429": "slow down",
        "drip": "within 1 s",
        "huge": "larger than",
        "packed": "compressed",
    }
    usual = "an unusable reply" if fault not in ("reset", "nobody") else "Connection error"
    assert words.get(fault, usual) in str(caught.value)


def test_retry_after_is_kept_up_to_a_limit(server: ModelServer) -> None:
    """The server asks for 30 s. Without it, the first wait would be at most 0.5 s."""
    server.faults = ["429"]
    started = time.monotonic()
    generator(server, longest_wait_s=1.0).generate(PROBLEMS[:1], 1, seed=0)
    assert 1.0 <= time.monotonic() - started < 30


def test_one_problem_without_reply_does_not_cost_the_others(server: ModelServer) -> None:
    """All others come first, then the error; what came can be handed in as done."""
    server.faults = ["ok", "500", "500"]
    asking = generator(server, attempts=2, concurrency=1)
    drawn: list[Sample] = []
    batches = asking.draw(PROBLEMS, 2, seed=0)
    for _ in range(5):
        drawn += next(batches)
    with pytest.raises(
        ServerError, match=r"problem p1: .*HTTP 500.*\(1 requests failed\).*run the same command to continue"
    ):
        next(batches)
    assert {place for place, _ in units(drawn)} == {0, 2, 3, 4, 5}
    before = len(server.requests)
    rest = flat(asking.draw(PROBLEMS, 2, seed=0, done=set(units(drawn))))
    assert len(server.requests) == before + 1
    assert units(drawn + rest) == [(place, index) for place in range(6) for index in range(2)]


def test_only_what_is_missing_is_asked_for(server: ModelServer) -> None:
    done = {(0, 0), (0, 2), *((place, index) for place in range(1, 6) for index in range(4))}
    samples = flat(generator(server).draw(PROBLEMS, 4, seed=0, done=done))
    (body,) = server.requests
    assert (body["n"], units(samples)) == (2, [(0, 1), (0, 3)])
    assert {sample.seed for sample in samples} == {body["seed"]} == {derived_seed(0, PROBLEMS[0], 1) >> 32}


def test_a_server_that_ignores_n(server: ModelServer) -> None:
    asking = generator(server, samples_a_request=1)
    (drawn,) = asking.generate(PROBLEMS[:1], 3, seed=0)
    assert [body["n"] for body in server.requests] == [1, 1, 1]
    assert len({completion.text for completion in drawn}) == 3
    assert all(completion.num_tokens == 5 for completion in drawn)
    generator(server, samples_a_request=2).generate(PROBLEMS[:1], 3, seed=0)
    assert sorted(body["n"] for body in server.requests[3:]) == [1, 2]


def test_a_request_that_the_server_refuses_is_a_value_with_a_reason(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    server.faults = ["refuse"]
    samples = flat(generator(server, concurrency=1).draw(PROBLEMS[:2], 2, seed=0))
    refused = [sample for sample in samples if sample.completion is None]
    assert units(refused) == [(0, 0), (0, 1)]
    assert all("HTTP 400" in s.reason and "prompt too long" in s.reason for s in refused)
    assert "sk-canary" not in refused[0].reason
    assert len(server.requests) == 2, "a refusal is not tried again"
    server.faults = ["refuse"]
    with pytest.raises(DataError, match=r"no completion for problem 'p0'.*too long"):
        generator(server).generate(PROBLEMS[:1], 2, seed=0)


def test_an_odd_end_is_no_completion_and_a_null_is_an_empty_one(server: ModelServer) -> None:
    server.faults = ["filtered", "null"]
    first, second = generator(server, concurrency=1).draw(PROBLEMS[:2], 1, seed=0)
    assert first[0].completion is None
    assert first[0].reason == "the server: finish_reason 'content_filter'"
    assert second[0].completion is not None
    assert second[0].completion.text == ""


@pytest.mark.parametrize(("fault", "said"), [("401", "HTTP 401"), ("404", "does not exist"), ("redirect", "HTTP 307")])
def test_a_server_that_refuses_us_is_not_asked_again(
    server: ModelServer, fault: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    caplog.set_level("DEBUG")
    server.then = fault
    asking = generator(server, concurrency=1)
    with pytest.raises(ServerError, match=said) as caught:
        flat(asking.draw(PROBLEMS, 1, seed=0))
    assert len(server.requests) == 1
    assert "/internal" not in server.paths
    assert server.base_url in str(caught.value)
    assert "sk-canary" not in str(caught.value) + caplog.text


def test_the_key_is_sent_and_comes_from_the_environment(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    generator(server).generate(PROBLEMS[:1], 1, seed=0)
    assert server.headers[0]["authorization"] == "Bearer sk-canary"


def test_requests_at_a_time_are_bounded() -> None:
    with ModelServer(delay_s=0.1) as server:
        asking = generator(server, concurrency=4)
        asking.generate([replace(PROBLEMS[0], id=str(i)) for i in range(12)], 1, seed=0)
    assert server.most == 4


def test_leaving_early_ends_all_requests() -> None:
    with ModelServer(delay_s=0.05) as server:
        drawing = generator(server, concurrency=2).draw(PROBLEMS, 1, seed=0)
        next(drawing)
        drawing.close()
        asked = len(server.requests)
        time.sleep(0.2)
        assert len(server.requests) == asked <= 4


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "file:///etc/passwd", "http://", "http://host:x/v1", "ftp://h/v1"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="not an http or https URL"):
        OpenAIGenerator(url, "tiny", SamplingParams())


@pytest.mark.parametrize(
    "url", ["http://me:secret@[::1]:80/v1", "http://[::1]:80/v1?k=secret", "http://[::1]:80/v1#secret"]
)
def test_credentials_in_an_address_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"give http://\[::1\]:80/v1 and put the key in .* OPENAI_API_KEY") as caught:
        OpenAIGenerator(url, "tiny", SamplingParams())
    assert "secret" not in str(caught.value)


def test_settings_that_cannot_work(server: ModelServer) -> None:
    with pytest.raises(ConfigError, match="concurrency"):
        generator(server, concurrency=0)
    with pytest.raises(ConfigError, match="greedy decoding takes n=1"):
        generator(server, params=SamplingParams(temperature=0)).generate(PROBLEMS, 2, seed=0)
