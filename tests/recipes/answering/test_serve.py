"""`mpo serve` under load on loopback: real HTTP, a real process with a real tiny PRM, and clients that misbehave."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from PIL import Image

from mpo.multimodal.errors import DataError
from recipes.answering.score_app import score_app
from recipes.cli import main
from rewards.prm.formats import find_format
from rewards.prm.model_prm import ModelPRM, save_format
from rewards.scoring.aggregation import aggregate
from rewards.scoring.scoring_queue import ScoringQueue
from rewards.types import Problem, StepScores
from tests.rewards.scripted import RulePRM
from tests.server_process import free_port, until

# seconds that a busy machine may take; httpx gives up after 5
post, get = partial(httpx.post, timeout=60), partial(httpx.get, timeout=60)

ROOT = Path(__file__).parents[3]


class SlowPRM(RulePRM):
    """Waits until it may, notes the size of each call, and breaks at a text; of one letter it tells the spread."""

    def __init__(self) -> None:
        super().__init__(lambda step: 1 / (1 + len(step)))
        self.may, self.sizes, self.begun = threading.Event(), [], 0
        self.may.set()

    def outcomes(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores | DataError]:
        self.begun += 1
        self.may.wait(20)
        self.sizes.append(len(items))
        if any("break" in text for _, text in items):
            raise RuntimeError("the PRM broke")
        found = super().outcomes(items)
        return [
            replace(scores, spreads=(0.25,)) if len(text) == 1 and isinstance(scores, StepScores) else scores
            for (_, text), scores in zip(items, found, strict=True)
        ]


@contextmanager
def running(queue: ScoringQueue, **settings: Any) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = score_app(queue, name="rule", **settings)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture
def prm() -> SlowPRM:
    return SlowPRM()


@pytest.fixture
def url(prm: SlowPRM) -> Iterator[str]:
    with ScoringQueue(prm, rows=8, most_waiting=16) as queue, running(queue) as address:
        yield address


def png(color: str, size: tuple[int, int] = (64, 32)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_scores_and_order(url: str) -> None:
    body = {"question": "?", "images": [png("red"), f"data:image/png;base64,{png('blue')}"], "responses": ["aa", "a"]}
    assert post(f"{url}/score", json=body).json() == {
        "rewards": [1 / 3, 1 / 2],
        "step_scores": [[1 / 3], [1 / 2]],
        "step_score_spreads": [None, [0.25]],
        "reasons": [None, None],
    }
    assert post(f"{url}/rerank", json=body).json()["order"] == [1, 0]
    assert get(f"{url}/health").json() == {"status": "ok", "prm": "rule", "waiting": 0}
    said = get(f"{url}/metrics").text
    assert "mpo_requests_total 2\n" in said
    assert "mpo_responses_total 4\n" in said


def test_requests_that_wait_are_scored_together_and_a_response_once(url: str, prm: SlowPRM) -> None:
    """One request is under way; five others, two of them the same, then share one call of six different responses."""
    prm.may.clear()
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(post, f"{url}/score", json={"question": "?", "responses": ["first"]})
        until(lambda: prm.begun == 1)
        bodies = [{"question": "?", "responses": [f"a{i % 4}", "shared"]} for i in range(5)]
        others = [pool.submit(post, f"{url}/score", json=body) for body in bodies]
        until(lambda: get(f"{url}/health").json()["waiting"] == 10)
        prm.may.set()
        assert first.result().status_code == 200
        found = [other.result().json()["rewards"] for other in others]
    assert found == [[1 / 3, 1 / 7]] * 5
    assert prm.sizes[0] == 1
    assert len(prm.sizes) == 3  # eight responses at most in a call, so four requests and then the fifth
    assert 6 <= sum(prm.sizes[1:]) <= 7  # of ten; which four came first decides whether the two that are the same did


def test_a_request_too_many_is_told_to_come_again(url: str, prm: SlowPRM) -> None:
    prm.may.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(post, f"{url}/score", json={"question": "?", "responses": ["x"]})
        until(lambda: prm.begun == 1)
        waiting = [pool.submit(post, f"{url}/score", json={"question": "?", "responses": ["y"] * 8}) for _ in "ab"]
        until(lambda: get(f"{url}/health").json()["waiting"] == 16)
        refused = post(f"{url}/score", json={"question": "?", "responses": ["z"]})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        prm.may.set()
        assert [one.result().status_code for one in [first, *waiting]] == [200] * 3


def test_what_nobody_waits_for_is_not_scored(url: str, prm: SlowPRM) -> None:
    prm.may.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, f"{url}/score", json={"question": "?", "responses": ["x"]})
        until(lambda: prm.begun == 1)
        with pytest.raises(httpx.ReadTimeout):
            post(f"{url}/score", json={"question": "?", "responses": ["gone"]}, timeout=0.3)
        time.sleep(0.5)  # the server looks every tenth of a second
        prm.may.set()
        assert first.result().status_code == 200
    until(lambda: "mpo_requests_given_up_total 1\n" in get(f"{url}/metrics").text)
    assert "gone" not in prm.scored


def test_one_request_that_breaks_the_prm_costs_no_other(url: str, prm: SlowPRM) -> None:
    prm.may.clear()
    with ThreadPoolExecutor(4) as pool:
        texts = ["first", "good", "break", "fine"]
        asked = [pool.submit(post, f"{url}/score", json={"question": "?", "responses": [t]}) for t in texts[:1]]
        until(lambda: prm.begun == 1)
        asked += [pool.submit(post, f"{url}/score", json={"question": "?", "responses": [t]}) for t in texts[1:]]
        until(lambda: get(f"{url}/health").json()["waiting"] == 3)
        prm.may.set()
        replies = [one.result() for one in asked]
    assert [reply.status_code for reply in replies] == [200, 200, 500, 200]
    assert replies[2].json() == {"error": "the PRM failed at this request (RuntimeError)"}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("{", 400, "Invalid JSON"),
        ("[1]", 400, "the body"),
        ('{"question": "?"}', 400, "responses: Field required"),
        ('{"question": "?", "responses": []}', 400, "responses: List should have at least 1 item"),
        ('{"question": "?", "responses": ["a", 1]}', 400, "responses.1: Input should be a valid string"),
        ('{"question": "?", "responses": ["a"], "url": "x"}', 400, "url: Extra inputs are not permitted"),
        ('{"question": "?", "responses": ["a"], "images": ["http://127.0.0.1/x.png"]}', 400, "images: expected base64"),
        ('{"question": "?", "responses": ["a"], "images": ["/etc/passwd"]}', 400, "images: "),
        ('{"question": "?", "responses": ["a"], "images": ["YWJj"]}', 400, "cannot be decoded"),
        ('{"question": "\\ud800", "responses": ["a"]}', 400, ""),
        ("[" * 100_000, 400, ""),
    ],
)
def test_a_malformed_request_is_one_line(url: str, body: str, status: int, said: str) -> None:
    reply = post(f"{url}/score", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == status
    assert said in reply.json()["error"]
    assert len(reply.json()["error"]) <= 310
    assert post(f"{url}/score", json={"question": "?", "responses": ["a"]}).status_code == 200


def test_other_requests_that_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert post(f"{url}/score", content='{"question": "?"}').status_code == 415  # a page's form cannot ask
    assert get(f"{url}/score").status_code == 405
    assert get(f"{url}/etc/passwd").status_code == 404
    monkeypatch.setattr("recipes.answering.score_app.MOST_BYTES", 1000)
    assert post(f"{url}/score", json={"question": "x" * 2000, "responses": ["a"]}).status_code == 413


def test_a_token_and_a_name_are_asked_for(prm: SlowPRM) -> None:
    with ScoringQueue(prm) as queue, running(queue, token="s3cret", hosts=("127.0.0.1",)) as url:
        body = {"question": "?", "responses": ["a"]}
        assert post(f"{url}/score", json=body).status_code == 401
        assert get(f"{url}/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
        right = {"Authorization": "Bearer s3cret"}
        assert post(f"{url}/score", json=body, headers=right).status_code == 200
        assert post(f"{url}/score", json=body, headers=right | {"Host": "evil.example"}).status_code == 400


@pytest.mark.timeout(180)
def test_a_real_prm_in_a_process_that_is_killed_and_started_again(
    policy_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Four clients, twelve requests with duplicates: the scores of this process's own PRM; after SIGKILL and a new
    start the same; SIGTERM answers what is under way and ends with exit code 0 and an account."""
    folder = tmp_path / "prm"
    model = ModelPRM.load(_as_prm(policy_folder, folder))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    problem = Problem("p", "Largest minus smallest?", (Image.new("RGB", (64, 32), "red"),))
    texts = [f"Red is {i}\n\nBlue is 9\n\nFinal answer: {9 - i}" for i in range(4)]
    expected = [aggregate(scores, how="mean") for scores in model.score(problem, texts)]

    def ask(_: int) -> list[float]:
        body = {"question": problem.question, "images": [png("red")], "responses": texts}
        rewards: list[float] = post(f"{url}/score", json=body, timeout=60).json()["rewards"]
        return rewards

    server = _started(folder, port)
    try:
        with ThreadPoolExecutor(4) as pool:
            for rewards in pool.map(ask, range(12)):
                assert rewards == pytest.approx(expected, abs=1e-5)
        server.kill()
        server.wait()
        with pytest.raises(httpx.TransportError):
            ask(0)
        server = _started(folder, port)
        with ThreadPoolExecutor(4) as pool:
            pending = [pool.submit(ask, i) for i in range(4)]
            until(lambda: get(f"{url}/health").status_code == 200)
            assert pending[0].result() == pytest.approx(expected, abs=1e-5)
            server.send_signal(signal.SIGTERM)
            answered = [one for one in pending if one.exception() is None]
        assert server.wait(timeout=60) == 0
        assert all(one.result() == pytest.approx(expected, abs=1e-5) for one in answered)
    finally:
        server.kill()
        server.wait()
    assert "serve: " in capfd.readouterr().err.splitlines()[-1]


def _as_prm(policy: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in policy.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_format(folder, find_format("step_end"))
    return folder


def _started(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "recipes.cli", "serve", "--prm", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert any(line.startswith(b"http://127.0.0.1:") for line in server.stdout)  # a library may say something first
    return server


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--host", "0.0.0.0"], "host 0.0.0.0 can be reached from other machines: put a token into"),
        (["--port", "70000"], "--port: expected a whole number of at most 65535, got '70000'"),
        (["--batch_rows", "0"], "--batch_rows: expected a whole number of at least 1"),
        (["--prm", "/nowhere"], "/nowhere does not exist"),
    ],
)
def test_wrong_settings_are_one_line(
    policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], line: str
) -> None:
    prm = _as_prm(policy_folder, tmp_path / "prm")
    assert main(["serve", "--prm", str(prm), "--port", "0", *flags]) == 2
    *_, said = capsys.readouterr().err.strip().splitlines()
    assert line in said
