"""Two processes in one folder, for every stage of the command table: one does the work, the other says so in a line."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpo.multimodal.errors import StageError
from recipes.cli import main
from recipes.commands.table import COMMANDS
from recipes.stage import folder as stage_folder
from recipes.stage.lock import LOCK
from tests.recipes.evaluating import made
from tests.recipes.stage import racing
from tests.recipes.wrong_inputs import CALLS, Good, make_good, words_of

ROOT = Path(__file__).resolve().parents[3]
# A second process: it takes the lock of each folder that it is told, and keeps it until it is told the folder again.
HOLDER = """
import sys
from pathlib import Path
from recipes.stage.lock import lock, unlock
held = set()
for line in sys.stdin:
    out = Path(line.strip())
    if out in held:
        unlock(out)
    else:
        out.mkdir(parents=True)
        lock(out, stage="held")
        held.add(out)
    print("done", flush=True)
"""


class Holder:
    """A process that works in the folders that it is told."""

    def __init__(self) -> None:
        own = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", HOLDER], env=own, **pipes)
        self.pid = self.process.pid

    def turn(self, out: Path) -> None:
        """Take the folder's lock, or give it back."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{out}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture(scope="module")
def holder() -> Iterator[Holder]:
    found = Holder()
    yield found
    found.process.kill()
    found.process.wait()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Good:
    return make_good(tmp_path_factory.mktemp("good") / "inputs", policy_folder)


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes made of every stage, in a process of their own."""
    folder = tmp_path_factory.mktemp("races")
    command = [sys.executable, "-m", "tests.recipes.stage.racing", str(folder)]
    own = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = map(json.loads, (folder / racing.RACES).read_text().splitlines())
    return {row["command"]: row for row in rows}


def words(command: str, good: Good, new: Path) -> list[str]:
    """A command that gets as far as its first folder."""
    given: dict[str, object] = {}
    if command == "evaluate":
        matrix = new.parent / "matrix"
        given["settings"] = matrix / "matrix.yaml" if matrix.exists() else made.make(matrix)
    if command == "evidence":
        given["seeds"] = 0
    return words_of(command, good, new, **given)


def first_folder(command: str, good: Good, new: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder whose lock a command takes first, found by refusing that lock."""
    asked: list[Path] = []

    def refuse(out: Path, *, stage: str) -> None:
        asked.append(Path(out))
        raise StageError("no lock today")

    if command == "evidence":  # its seeds are pipelines in processes of their own
        return first_folder("pipeline", good, new / "seed0", monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(stage_folder, "lock", refuse)
        assert main(words(command, good, new)) == 2
    assert len(asked) == 1, f"{command} took no lock: it opens no stage before it works"
    assert asked[0].is_relative_to(new)
    return asked[0]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("command", racing.stages())
def test_the_second_process_is_refused_in_one_line(
    command: str, holder: Holder, good: Good, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A real lock in another real process: the command names that process and leaves the folder as it is."""
    new = tmp_path / "new"
    place = first_folder(command, good, new, monkeypatch)
    again = tmp_path / "again" / place.relative_to(new)  # what the first try may have left is not in the way
    holder.turn(again)
    (again / "half.1f.tmp").write_text("the other process is writing this")
    before = tree(again)
    capfd.readouterr()
    assert main(words(command, good, tmp_path / "again")) == 2
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if "is being written by" in line]
    assert len(lines) == 1, said
    assert f"{again} is being written by process {holder.pid}; wait for it" in lines[0]
    assert "Traceback" not in said
    assert tree(again) == before
    holder.turn(again)
    assert (again / LOCK).read_text() == ""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", [name for name in racing.stages() if name not in racing.COMPOSED])
def test_of_two_processes_one_does_the_work(command: str, races: dict[str, dict[str, Any]]) -> None:
    """Two real processes that start together: what they leave has the bytes of a run that was alone."""
    race = races[command]
    assert race["alone"] == 0, race["said"]
    assert 0 in race["codes"]
    for code, said, other in zip(race["codes"], race["said"][1:], reversed(race["pids"]), strict=True):
        assert code in (0, 2)
        if code == 2:
            assert f"is being written by process {other}; wait for it" in said[0]
    assert race["differing"] == []
    assert race["files"] > 0
    assert race["faults"] == []
    assert race["left"] == []


def test_every_command_is_here() -> None:
    """A command is a stage, is made of stages, or writes no folder; a new one has to say which."""
    assert set(CALLS) | {"env"} == set(COMMANDS)
    assert set(racing.stages()) >= racing.COMPOSED
    assert not racing.NO_STAGE & set(racing.stages())


def test_every_stage_takes_its_lock_in_one_place() -> None:
    """Every stage is opened by `open_stage`, which takes the lock; nothing else writes a manifest or takes one."""
    names, writers = set[str](), set[str]()
    for path in sorted((ROOT / "recipes").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id == "open_stage":
                assert isinstance(node.args[0], ast.Constant), path
                names.add(node.args[0].value)
            if node.func.id == "lock" or (node.func.id == "write_atomic" and "MANIFEST" in ast.unparse(node.args[0])):
                writers.add(str(path.relative_to(ROOT)))
    assert writers == {"recipes/stage/folder.py"}
    assert len(names) > 20
