"""A full disk, a read-only disk, odd paths, a signal: one line that says it, nothing half written, and it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.cli import main
from recipes.stage.folder import MANIFEST
from recipes.stage.groups import read_groups, write_problems
from recipes.stage.kept_calls import CALLS
from rewards.types import Completion, Problem, Rollout, RolloutGroup
from tests.model_server import ModelServer
from tests.recipes.run_folders import write_stage

ROOT = Path(__file__).resolve().parents[3]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "recipes.cli", *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def samples(folder: Path, text: str = "Final answer: 7") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    problem = Problem("p", "?", answer="7")
    write_problems(folder / "p.jsonl", [problem])
    return write_stage(folder / "samples", [RolloutGroup(problem, (Rollout(Completion(text)),))], folder / "p.jsonl")


def mounted(folder: Path, options: str, line: str) -> subprocess.CompletedProcess[str]:
    """Run a shell line where `folder` is a file system of its own, in a mount namespace that ends with it."""
    folder.mkdir()
    inside = f"mount -t tmpfs -o {options} none {folder} && {line}"
    try:
        subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine allows no mounts: {error}")
    shell = ["unshare", "-rm", "sh", "-c", inside]
    return subprocess.run(shell, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=300)


def test_a_full_disk(tmp_path: Path) -> None:
    """1 MB of disk for 3 MB of groups: refused in one line, no part of a file; the same command goes on with space."""
    given = samples(tmp_path / "given", text="x" * 3_000_000)
    disk = tmp_path / "disk"
    verify = f"{sys.executable} -m recipes.cli verify --groups {given} --out {disk}/out --verifier exact"
    listing = f"echo files; ls {disk}/out; mount -o remount,size=9m {disk}; {verify} && echo again $?; ls {disk}/out"
    done = mounted(disk, "size=1m", f"{verify}; echo code $?; {listing}")
    assert "code 2" in done.stdout, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("mpo: ")]
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    before, after = done.stdout.partition("files")[2].split("again 0")
    store = {f"{CALLS}{tail}" for tail in ("", "-wal", "-shm", ".lock")}
    assert set(before.split()) <= store
    assert set(after.split()) - store == {"groups.jsonl", MANIFEST}


def test_a_full_disk_while_weights_are_saved(policy_folder: Path, tmp_path: Path) -> None:
    """300 kB for 600 kB of weights, whose writer raises an error of its own kind; with space it goes on."""
    disk = tmp_path / "disk"
    deepen = f"{sys.executable} -m recipes.cli deepen --policy {policy_folder} --out {disk}/out --extra_layers 1"
    done = mounted(
        disk, "size=300k", f"{deepen}; echo code $?; mount -o remount,size=9m {disk}; {deepen} && echo again"
    )
    assert "code 2" in done.stdout, done.stderr[-2000:]
    assert "again" in done.stdout, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mpo: ")]
    assert "No space left on device" in line
    assert "Traceback" not in done.stderr


def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    given = samples(tmp_path / "given")
    verify = f"{sys.executable} -m recipes.cli verify --groups {given} --out {tmp_path}/disk/out"
    done = mounted(tmp_path / "disk", "ro", verify)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mpo: ")]
    assert "Read-only file system" in line


def test_out_that_cannot_be_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file, a folder below a file, a loop of links."""
    given = samples(tmp_path / "given")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    capsys.readouterr()  # the closing line of the samples
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "loop", tmp_path / "loop" / "below"):
        assert main(["verify", "--groups", str(given), "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("mpo: ")
    assert (tmp_path / "file").read_text() == "kept"


def test_groups_behind_a_loop_of_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert main(["verify", "--groups", str(tmp_path / "loop"), "--out", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_paths_with_spaces_quotes_and_letters_of_any_script(tmp_path: Path) -> None:
    folder = tmp_path / "a b'c\"d $HOME; 図 ﷽ é"
    given = samples(folder)
    assert main(["verify", "--groups", str(given), "--out", str(folder / "out")]) == 0
    assert [group.problem.id for group in read_groups(folder / "out")] == ["p"]


def test_the_terminal_is_told_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("\x1b]0;title\x07", "\x1b[2J", "a\rb", "\u202egnp"):
        assert main([word]) == 2
        assert main(["verify", "--groups", str(tmp_path / word), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err.replace("\n", "")
    assert printed.isprintable()


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(delay_s=0.2) as running:
        yield running


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_sampling_and_nothing_is_lost(
    server: ModelServer, tmp_path: Path, sign: signal.Signals, code: int
) -> None:
    """Ctrl-C says how to go on; after either, no answered request is sent again and the result is the straight one."""
    number = 40
    write_problems(tmp_path / "q.jsonl", [Problem(f"p{i}", f"What is {i}?") for i in range(number)])
    asked = ["sample", "--problems", tmp_path / "q.jsonl", "--base_url", server.base_url, "--model", "tiny"]
    settings = [*asked, "--num_samples", "2", "--concurrency", "1"]
    words = command(*settings, "--out", tmp_path / "out")
    running = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True, preexec_fn=_interruptible)
    deadline = time.monotonic() + 200
    while len(server.requests) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(sign)
    _, said = running.communicate(timeout=120)
    assert running.returncode == code
    assert sign != signal.SIGINT or "interrupted; finished stages and stored work are kept" in said
    before = len(server.requests)
    assert before < number
    server.delay_s = 0
    assert main([*map(str, settings), "--out", str(tmp_path / "out")]) == 0
    assert number <= len(server.requests) <= number + 1  # only the request in flight is sent again
    assert main([*map(str, settings), "--out", str(tmp_path / "straight")]) == 0
    files = [(tmp_path / name / "groups.jsonl").read_bytes() for name in ("out", "straight")]
    assert files[0] == files[1]


def _interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
