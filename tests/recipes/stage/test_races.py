"""Two processes in one folder; a signal to the parent alone; a parent that is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mpo.multimodal.errors import StageError
from recipes.stage.folder import MANIFEST, faults_of, open_stage
from recipes.stage.lock import LOCK, lock, unlock
from recipes.stage.processes import INTERRUPTED
from recipes.stage.unused import forget_folders, make_folder, remove_unused
from tests.recipes.stage.test_run import Config, finished

ROOT = Path(__file__).resolve().parents[3]
ENDED_S = 12.0

WORKING = """
import sys, time
from pathlib import Path
from recipes.stage.folder import open_stage
from tests.recipes.stage.test_run import Config
stage = open_stage("made", Config(Path(sys.argv[1]), seed=int(sys.argv[2])), inputs=[])
(stage.out / "half.1f.tmp").write_text("")
print("started", flush=True)
time.sleep(600)
"""
RACING = """
import sys
from pathlib import Path
from mpo.multimodal.errors import MPOError
from mpo.multimodal.files import write_atomic
from recipes.stage.folder import open_stage
from recipes.stage.unused import forget_folders, remove_unused
from tests.recipes.stage.test_run import Config
print("ready", flush=True)
sys.stdin.readline()
wins = 0
for number in range(40):
    out = Path(sys.argv[1]) / str(number)
    forget_folders()
    try:
        stage = open_stage("made", Config(out, seed=int(sys.argv[2])), inputs=[])
        if not stage.complete:
            write_atomic(out / "rows", sys.argv[2] * 100_000)
            stage.finish({"seed": sys.argv[2]})
            wins += 1
    except MPOError:
        remove_unused()  # as the command line does
print(wins, flush=True)
"""
# As `mpo evidence` does it, with pages that are served for ever in place of seeds.
TOGETHER = """
import sys
from recipes.stage.processes import ends_promptly, run_together
with ends_promptly():
    run_together([[sys.executable, "-m", "recipes.cli", "view", sys.argv[1]]] * 2, jobs=2, environment={})
"""
DEAF = """
import sys, time
from recipes.stage.processes import ends_promptly
with ends_promptly():
    while True:
        try:
            print("started", flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            pass
"""
# Ctrl-C before any setting is read, when no handler of ours is there yet.
EARLY = """
import os, signal, sys
from recipes import cli
cli.find_spec = lambda name: os.kill(os.getpid(), signal.SIGINT)
sys.exit(cli.main(["verify"]))
"""


def python(script: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_process_is_refused_by_name_and_a_dead_one_locks_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with python(WORKING, out, 0) as working:
        assert said(working) == "started"
        with pytest.raises(StageError, match=f"stage made: .*out is being written by process {working.pid}; wait"):
            open_stage("made", Config(out), inputs=[])
        working.kill()
        working.wait()
        assert (out / LOCK).exists()
        stage = open_stage("made", Config(out, seed=1), inputs=[])
        assert not list(out.glob("*.tmp"))  # what the dead one left
        stage.finish({})
    assert open_stage("made", Config(out, seed=1), inputs=[]).complete


def test_a_complete_stage_is_read_while_nobody_may_write(tmp_path: Path) -> None:
    """A finished run on a disk that is read-only needs no lock."""
    out = finished(tmp_path / "out")
    (out / LOCK).unlink()
    assert open_stage("made", Config(out), inputs=[]).complete
    assert not (out / LOCK).exists()


def test_a_refused_command_leaves_the_folder_of_the_one_that_works(tmp_path: Path) -> None:
    """Both found no folder; this one made it, and the other was first to lock it."""
    out = tmp_path / "run" / "out"
    forget_folders()
    make_folder(out)
    with python(WORKING, out, 0) as working:
        try:
            assert said(working) == "started"
            with pytest.raises(StageError, match="is being written by"):
                open_stage("made", Config(out), inputs=[])
            remove_unused()
            assert (out / "half.1f.tmp").exists()
        finally:
            working.kill()
    make_folder(out)
    lock(out, stage="made")
    make_folder(tmp_path / "run" / "other")
    lock(tmp_path / "run" / "other", stage="made")
    remove_unused()
    assert out.exists()  # it was there before
    assert not (tmp_path / "run" / "other").exists()
    unlock(out)


def test_of_two_that_start_together_one_does_the_work(tmp_path: Path) -> None:
    """40 races with two settings: every folder holds the rows of the one whose manifest it has."""
    both = [python(RACING, tmp_path, seed) for seed in (1, 2)]
    for process in both:
        assert said(process) == "ready"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    wins = [int(process.communicate(timeout=120)[0]) for process in both]
    assert sum(wins) == 40
    for number in range(40):
        manifest = json.loads((tmp_path / str(number) / MANIFEST).read_text())
        seed = str(manifest["fingerprint"]["settings"]["seed"])
        assert manifest["counts"] == {"seed": seed}
        assert (tmp_path / str(number) / "rows").read_text() == seed * 100_000
        assert faults_of(tmp_path / str(number)) == []
        assert not list((tmp_path / str(number)).glob("*.tmp"))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_children_end_with_their_parent(sign: signal.Signals, tmp_path: Path) -> None:
    """The signal goes to the parent alone."""
    (tmp_path / "report.html").write_text("<p>page</p>")
    with python(TOGETHER, tmp_path) as parent:
        lines = [said(parent), said(parent)]  # of the children: both are serving; two may share a line
        if "".join(lines).count("http://127.0.0.1:") != 2:
            parent.kill()
            pytest.fail(f"the children said {lines}")
        children = psutil.Process(parent.pid).children()
        assert len(children) == 2
        parent.send_signal(sign)
        _, alive = psutil.wait_procs([*children, psutil.Process(parent.pid)], timeout=ENDED_S)
        parent.wait(5)
        assert [process for process in alive if process.is_running() and process.pid != parent.pid] == []


def test_a_process_that_swallows_the_interrupt_ends_all_the_same() -> None:
    for signals in (1, 2):
        with python(DEAF) as process:
            assert said(process) == "started"
            started = time.monotonic()
            for _ in range(signals):
                process.send_signal(signal.SIGINT)
                time.sleep(0.2)
            _, told = process.communicate(timeout=ENDED_S)
            assert process.returncode == 130
            assert "interrupted; finished stages" in told
            assert signals == 1 or time.monotonic() - started < 3


def test_an_interrupt_before_the_settings_are_read_is_one_too() -> None:
    with python(EARLY) as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == f"{INTERRUPTED}\n"
