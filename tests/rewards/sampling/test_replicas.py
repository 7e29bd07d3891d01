"""Which replica a request goes to, and what becomes of it when replicas fail: against real servers on loopback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.images import image_sha256
from rewards.errors import ServerError
from rewards.sampling import replicas
from rewards.sampling.generator import Sample, SamplingParams
from rewards.sampling.openai_generator import OpenAIGenerator
from rewards.sampling.replicas import checked_urls, ranked, request_key
from rewards.types import Problem
from tests.model_server import ModelServer, asked_about
from tests.server_process import free_port

PROBLEMS = [
    Problem(f"p{i}", f"What is {i}?", (Image.new("RGB", (4, 4), (i // 2 * 20, 0, 0)),) if i < 16 else ())
    for i in range(20)
]  # two questions per image, four without one
URLS = st.lists(st.integers(0, 10**6).map("http://h{}/v1".format), min_size=2, max_size=6, unique=True)


@given(URLS, st.lists(st.text(), max_size=20), st.data())
def test_a_lost_replica_moves_its_own_keys_alone(urls: list[str], keys: list[str], data: st.DataObject) -> None:
    lost = data.draw(st.sampled_from(urls))
    others = [url for url in urls if url != lost]
    for key in keys:
        order = ranked(key, urls)
        assert sorted(order) == sorted(urls)
        assert ranked(key, others) == [url for url in order if url != lost]
        assert ranked(key, urls[::-1]) == order


def test_keys_spread_evenly() -> None:
    """3000 keys over three replicas: 1000 each with a standard deviation of sqrt(3000 · 1/3 · 2/3) = 26."""
    urls = [f"http://host{i}:8000/v1" for i in range(3)]
    found = Counter(ranked(str(key), urls)[0] for key in range(3000))
    assert all(abs(number - 1000) < 5 * 26 for number in found.values())


def test_the_key_is_the_picture_or_else_the_question() -> None:
    red, copy, blue = (image_sha256(Image.new("RGB", (2, 2), colour)) for colour in ("red", "red", "blue"))
    assert request_key([red], "a") == request_key([copy], "b") != request_key([blue], "a")
    assert request_key([red, blue], "a") != request_key([blue, red], "a")
    assert request_key([], "a") != request_key([], "b")


@pytest.mark.parametrize("urls", [[], ["http://a/v1", "http://a/v1/"], ["http://a/v1", "b"]])
def test_addresses_that_cannot_work(urls: list[str]) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        checked_urls(urls)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ModelServer]]:
    monkeypatch.setattr(replicas, "FIRST_BACK_OFF_S", 0.05)
    with ExitStack() as stack:
        yield [stack.enter_context(ModelServer(models=("tiny",))) for _ in range(3)]


def generator(*urls: str, **settings: Any) -> OpenAIGenerator:
    quick = {"timeout_s": 30.0, "longest_wait_s": 0.01, "params": SamplingParams(max_new_tokens=16)} | settings
    return OpenAIGenerator(urls, "tiny", **quick)


def draw(*urls: str, **settings: Any) -> list[Sample]:
    return [sample for batch in generator(*urls, **settings).draw(PROBLEMS, 2, seed=0) for sample in batch]


def units(samples: list[Sample]) -> list[tuple[int, int]]:
    return sorted((sample.problem, sample.index) for sample in samples if sample.completion is not None)


ALL = [(place, index) for place in range(len(PROBLEMS)) for index in range(2)]


def closed_address() -> str:
    return f"http://127.0.0.1:{free_port()}/v1"


def test_every_picture_has_its_replica(servers: list[ModelServer]) -> None:
    samples = draw(*(server.base_url for server in servers), concurrency=2, samples_a_request=1)
    assert units(samples) == ALL
    assert sum(len(server.requests) for server in servers) == 2 * len(PROBLEMS)
    asked = [{asked_about(body) for body in server.requests} for server in servers]
    assert sum(map(len, asked)) == len(set().union(*asked)) == 8 + 4
    assert max(server.most for server in servers) <= 2
    assert [server.paths[0] for server in servers] == ["/v1/models"] * 3


def test_one_server_is_asked_as_ever(servers: list[ModelServer]) -> None:
    assert units(draw(servers[0].base_url)) == ALL
    assert "/v1/models" not in servers[0].paths


def test_a_replica_that_is_not_there_leaves_its_requests_to_the_others(
    servers: list[ModelServer], caplog: pytest.LogCaptureFixture
) -> None:
    gone = closed_address()
    assert units(draw(gone, servers[0].base_url, servers[1].base_url)) == ALL
    assert sum(len(server.requests) for server in servers[:2]) == len(PROBLEMS)
    assert f"dropped until it is back: {gone}" in caplog.text


def test_a_replica_that_only_fails_is_dropped_and_taken_back(
    servers: list[ModelServer], caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = servers[:2]
    bad.faults = ["500"] * 2
    asking = generator(bad.base_url, good.base_url, attempts=2, concurrency=1)
    samples = [sample for batch in asking.draw(PROBLEMS * 5, 1, seed=0) for sample in batch]
    assert len(units(samples)) == 100
    assert "dropped" in caplog.text
    assert f"back: {bad.base_url}" in caplog.text
    assert len(bad.requests) > 2, "asked again after it was back"
    assert len(bad.requests) + len(good.requests) == 2 + 100


def test_a_request_that_breaks_every_replica_is_given_up(servers: list[ModelServer]) -> None:
    """One problem that no server survives is named at the end; the others are drawn."""
    for server in servers:
        server.breaks_on = "What is 3?"
    asking = generator(*(server.base_url for server in servers), attempts=2)
    drawn: list[Sample] = []
    drawing = asking.draw(PROBLEMS, 2, seed=0)
    with pytest.raises(ServerError, match=r"problem p3: .* HTTP 500.*\(1 requests failed\); what was drawn is kept"):
        drawn.extend(sample for batch in drawing for sample in batch)
    assert units(drawn) == [unit for unit in ALL if unit[0] != 3]
    assert [sum("What is 3?" in str(body) for body in server.requests) for server in servers] == [2, 2, 2]


def test_another_model_is_an_error_before_anything_is_asked(servers: list[ModelServer]) -> None:
    servers[1].models = ("small", "other")
    with pytest.raises(ConfigError, match=rf"{servers[1].base_url} serves 'small', 'other', not 'tiny'"):
        draw(*(server.base_url for server in servers))
    assert not any(server.requests for server in servers)


def test_a_replica_that_comes_back_with_another_model_stays_dropped(
    servers: list[ModelServer], caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = servers[:2]
    good.delay_s = 0.05
    drawing = generator(bad.base_url, good.base_url, attempts=1, concurrency=1).draw(PROBLEMS * 2, 1, seed=0)
    samples = next(drawing)
    bad.models, bad.then = ("other",), "500"
    samples += [sample for batch in drawing for sample in batch]
    assert len(units(samples)) == 40
    assert bad.paths.count("/v1/models") > 1
    assert [record.message for record in caplog.records if record.message.startswith("back")] == []


def test_when_all_are_gone_the_error_names_them(servers: list[ModelServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "ALL_DOWN_S", 0.3)
    gone = [closed_address(), closed_address()]
    with pytest.raises(
        ServerError, match=r"no server could be reached for 0.3 s: .*Connect.*run the same command"
    ) as caught:
        draw(*gone)
    assert all(url in str(caught.value) for url in gone)
