"""`mpo sample` from several servers in processes of their own, some of which are killed."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from recipes.cli import main
from recipes.data.sample import STORE
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups
from rewards.sampling import replicas
from tests.server_process import ServerProcess, free_port, until

PICTURES, SAMPLES = 30, 2


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[ServerProcess]]:
    running = [ServerProcess(tmp_path / f"log{number}") for number in range(2)]
    yield running
    for server in running:
        server.kill()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Two questions about each image."""
    for number in range(PICTURES):
        Image.new("RGB", (4, 4), (8 * number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [
        {"id": f"p{i}", "question": f"What is {i}?", "images": [f"{i % PICTURES}.png"]} for i in range(2 * PICTURES)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "questions.jsonl"


def sample(servers: list[ServerProcess], questions: Path, out: Path) -> int:
    asked = ["--problems", str(questions), "--out", str(out), "--model", "tiny", "--concurrency", "2"]
    urls = [server.base_url for server in servers]
    return main(["sample", *asked, "--num_samples", str(SAMPLES), "--samples_a_request", "1", "--base_url", *urls])


def keys_of(out: Path) -> list[str]:
    with closing(sqlite3.connect(out / STORE)) as connection:
        return [key for (key,) in connection.execute("SELECT key FROM samples ORDER BY key")]


def check_against_one_server(out: Path, servers: list[ServerProcess], questions: Path) -> None:
    """Complete, each unit once, in the order of the problems: byte for byte what one server alone gives."""
    straight = out.parent / "straight"
    assert sample(servers[:1], questions, straight) == 0
    assert len(keys_of(out)) == len(set(keys_of(out))) == 2 * PICTURES * SAMPLES
    assert keys_of(out) == keys_of(straight)
    assert (out / "groups.jsonl").read_bytes() == (straight / "groups.jsonl").read_bytes()
    assert [group.problem.id for group in read_groups(out)] == [f"p{i}" for i in range(2 * PICTURES)]
    counts = manifest_of(out)["counts"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (2 * PICTURES * SAMPLES, 2 * PICTURES * SAMPLES, {})


def test_one_of_two_servers_is_killed_and_comes_back(
    servers: list[ServerProcess], questions: Path, tmp_path: Path
) -> None:
    """Its images go to the other meanwhile and to it afterwards; the other's images never move."""
    lost, kept = servers
    before: list[set[str]] = []

    def kill_and_restart() -> None:
        until(lambda: len(lost.asked()) >= 4 and len(kept.asked()) >= 4)
        lost.kill()
        before.extend([set(lost.asked()), set(kept.asked())])
        until(lambda: bool(set(kept.asked()) & before[0]))  # a request of the lost one has moved
        Path(f"{kept.log}.hold").touch()
        looks = lost.lines().count("models")  # of its first life: the next look may come as soon as it is up
        try:
            lost.start()
            until(lambda: lost.lines().count("models") > looks)
        finally:
            Path(f"{kept.log}.hold").unlink()

    killer = threading.Thread(target=kill_and_restart, daemon=True)
    killer.start()
    assert sample(servers, questions, tmp_path / "out") == 0
    killer.join(timeout=60)
    assert not killer.is_alive()
    assert not before[0] & before[1], "while both lived each image had one server"
    assert len(before[0] | before[1]) < PICTURES, "killed in the middle"
    last_life = lost.lines()[::-1][: lost.lines()[::-1].index("up")]
    assert set(last_life) - {"models"}, "asked again when it was back"
    assert not set(lost.asked()) & before[1], "the other's images stayed where they were"
    asked = len(lost.asked()) + len(kept.asked())
    assert 2 * PICTURES * SAMPLES <= asked <= 2 * PICTURES * SAMPLES + 2, "only what was under way is asked twice"
    check_against_one_server(tmp_path / "out", servers, questions)


def test_all_killed_is_an_error_that_names_them_and_the_run_goes_on(
    servers: list[ServerProcess],
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "ALL_DOWN_S", 1.5)

    def kill() -> None:
        until(lambda: sum(len(server.asked()) for server in servers) >= 20)
        for server in servers:
            server.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert sample(servers, questions, tmp_path / "out") == 2
    killer.join(timeout=60)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("mpo: no server could be reached for 1.5 s: ")
    assert all(server.base_url in line for server in servers)
    drawn = len(keys_of(tmp_path / "out"))
    assert 10 < drawn < 2 * PICTURES * SAMPLES
    assert not (tmp_path / "out" / "groups.jsonl").exists()
    for server in servers:
        server.port = free_port()
        server.start()
    asked = sum(len(server.asked()) for server in servers)
    assert sample(servers, questions, tmp_path / "out") == 0
    assert sum(len(server.asked()) for server in servers) - asked == 2 * PICTURES * SAMPLES - drawn
    check_against_one_server(tmp_path / "out", servers, questions)
