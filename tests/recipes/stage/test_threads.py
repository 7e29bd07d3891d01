"""Threads that wait soon sleep, unless the user says otherwise; their number depends on no load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.cli import computes
from recipes.commands.table import COMMANDS
from recipes.stage import threads
from recipes.stage.threads import POLICY, SLEEP, choose_threads, threads_used

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def before_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(threads, "_cores", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)})
    monkeypatch.setattr(threads, "QUOTA", Path("/none"))


@pytest.mark.usefixtures("before_torch")
@pytest.mark.parametrize(
    ("given", "made", "said"),
    [
        ({}, SLEEP, "threads: 8 on 8 cores; they spin a little and then sleep while they wait"),
        (
            {"OMP_NUM_THREADS": "3"},
            {"OMP_NUM_THREADS": "3", **SLEEP},
            "threads: 3 on 8 cores; they spin a little and then sleep while they wait",
        ),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}, "they wait for each other as your settings say"),
        ({"GOMP_SPINCOUNT": "9"}, {"GOMP_SPINCOUNT": "9"}, "they wait for each other as your settings say"),
    ],
)
def test_what_is_chosen(given: dict[str, str], made: dict[str, str], said: str) -> None:
    environment = dict(given)
    assert said in choose_threads(environment)
    assert environment == made


@pytest.mark.usefixtures("before_torch")
@pytest.mark.parametrize(("quota", "number"), [("150000 100000", "2"), ("max 100000", None), ("x", None)])
def test_a_container_has_its_cpus(
    quota: str, number: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    environment: dict[str, str] = {}
    choose_threads(environment)
    assert environment.get("OMP_NUM_THREADS") == number


@pytest.mark.usefixtures("before_torch")
def test_a_busy_machine_is_said_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    idle: dict[str, str] = {}
    choose_threads(idle)
    monkeypatch.setattr(os, "getloadavg", lambda: (19.5, 0.0, 0.0))
    busy: dict[str, str] = {}
    assert choose_threads(busy).endswith("; the load is 19.5, so a step takes longer than on an idle machine")
    assert busy == idle


def test_it_comes_before_torch_and_reaches_its_threads() -> None:
    """libgomp prints what it has read when torch loads it."""
    code = "from recipes.stage.threads import choose_threads, threads_used; a = threads_used(); choose_threads(); "
    code += "import torch; print(a, threads_used())"
    environment = {name: value for name, value in os.environ.items() if name not in {*SLEEP, POLICY}}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "verbose", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "1"]
    assert "GOMP_SPINCOUNT = '10000'" in done.stderr


def test_which_commands_say_it() -> None:
    quiet = {name for name in COMMANDS if not computes(name)}
    assert quiet == {
        *("split", "import", "import-responses", "overlap", "verify", "best-of-n", "rerank", "convert-data"),
        *("settings", "report", "view", "check", "env"),
    }
    assert threads_used() == 1  # of the tests
