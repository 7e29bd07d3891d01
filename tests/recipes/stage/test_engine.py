"""Calls on several workers of Ray: the bytes of one process, whoever is killed; and one process that knows no Ray."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from mpo.multimodal.errors import ConfigError, DataError
from recipes.config import EngineConfig
from recipes.stage.engine import _gpus_each, engine
from recipes.stage.folder import MANIFEST, manifest_of
from recipes.stage.groups import GROUPS, read_groups
from rewards.prm.formats import find_format
from rewards.prm.model_prm import save_format
from tests.recipes.killing import stored
from tests.recipes.run_folders import make_groups, make_problems, stating, write_stage
from tests.recipes.stage.engine_work import squares

ROOT = Path(__file__).parents[3]
WORKER = "ray::Worker"  # the name that Ray gives to the process of an actor
SECONDS = 400.0


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Path:
    """Eight problems, a policy and a PRM with random weights, and verified samples."""
    folder = tmp_path_factory.mktemp("given")
    rng = random.Random(0)
    problems = make_problems(folder, "questions", 8, rng)
    shutil.copytree(policy_folder, folder / "policy")
    save_format(shutil.copytree(policy_folder, folder / "prm"), find_format("step_end"))
    write_stage(folder / "verified", stating(make_groups(problems, 6, 0.5, rng)), problems, name="verify")
    return folder


# Calls take a while, so that the test can kill in the middle; Ray's workers import this module's function by its name.
SLOWLY = """
import sys, time
from recipes.cli import main
import rewards.kept.store
keep = rewards.kept.store.Store._keep
def slowly(store, statement, rows):
    keep(store, statement, rows)
    time.sleep(0.2)
rewards.kept.store.Store._keep = slowly
sys.exit(main(sys.argv[1:]))
"""


def start(arguments: Sequence[str], log: Path, *, slowly: bool = False) -> subprocess.Popen[bytes]:
    program = ["-c", SLOWLY] if slowly else ["-m", "recipes.cli"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, *program, *arguments], env=environment, stdout=file, stderr=file)


def flags(**settings: object) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {SECONDS:.0f} s for {what}"
        time.sleep(0.02)
    return found


def workers_of(driver: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.name().startswith(WORKER) or " ".join(process.cmdline()).startswith(WORKER):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def killed_and_resumed(command: str, settings: dict[str, object], log: Path) -> None:
    """An actor is killed after some calls, then the driver, whose actors die with it; then the same to the end."""
    out = Path(str(settings["out"]))
    words = [command, *flags(**settings, engine="ray", actors=2)]
    driver = start(words, log, slowly=True)
    begun = wait_for(lambda: len(stored(out)), "the first call")
    victim = wait_for(lambda: workers_of(driver.pid), "an actor")[0]
    victim.kill()
    wait_for(lambda: len(stored(out)) >= begun + 2, "calls after an actor's death")
    family = workers_of(driver.pid)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert not (out / MANIFEST).exists()
    _, alive = psutil.wait_procs(family, timeout=SECONDS)
    assert not alive, f"{alive} outlived the driver"
    left = set(stored(out))
    last = start(words, log)
    assert last.wait() == 0, log.read_text()[-3000:]
    assert left < set(stored(out))  # what there was was kept, and some was missing


@pytest.mark.timeout(900)
def test_scores_of_two_actors_are_those_of_one_process(given: Path, tmp_path: Path) -> None:
    """Same bytes, same calls in the store; an actor and then the driver killed: resumed, identical."""
    settings: dict[str, object] = {"groups": given / "verified", "prm": given / "prm", "batch_rows": 4}
    settings |= {"visual_dependence": True}
    local, spread = tmp_path / "local", tmp_path / "ray"
    assert start(["score", *flags(**settings, out=local)], tmp_path / "log").wait() == 0
    killed_and_resumed("score", {**settings, "out": spread}, tmp_path / "log")
    assert (spread / GROUPS).read_bytes() == (local / GROUPS).read_bytes()
    assert stored(spread) == stored(local)
    counts = [manifest_of(folder)["counts"] for folder in (local, spread)]
    assert counts[0] == counts[1]
    assert any(rollout.blank for group in read_groups(spread) for rollout in group.rollouts)


@pytest.mark.timeout(900)
def test_labels_of_two_actors_are_those_of_one_process(given: Path, tmp_path: Path) -> None:
    settings: dict[str, object] = {"groups": given / "verified", "policy": given / "policy", "batch_rows": 4}
    settings |= {"num_continuations": 2, "max_new_tokens": 4, "keep_continuations": True, "responses": 4}
    local, spread = tmp_path / "local", tmp_path / "ray"
    assert start(["label-steps", *flags(**settings, out=local)], tmp_path / "log").wait() == 0
    words = ["label-steps", *flags(**settings, out=spread, engine="ray", actors=2)]
    assert start(words, tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()[-3000:]
    for name in (GROUPS, "visualprm400k.jsonl"):
        assert (spread / name).read_bytes() == (local / name).read_bytes()
    assert stored(spread) == stored(local)


@pytest.mark.timeout(900)
def test_samples_of_two_actors_are_those_of_one_process(given: Path, tmp_path: Path) -> None:
    """Also where N grows: what is added is drawn by the other engine, into the same store."""
    settings: dict[str, object] = {"problems": given / "questions.jsonl", "policy": given / "policy"}
    settings |= {"max_new_tokens": 6, "batch_rows": 6, "logprobs": True}
    local, spread = tmp_path / "local", tmp_path / "ray"
    assert start(["sample", *flags(**settings, num_samples=3, out=spread)], tmp_path / "log").wait() == 0
    words = ["sample", *flags(**settings, num_samples=5, out=spread, engine="ray", actors=2)]
    assert start(words, tmp_path / "log").wait() == 0, (tmp_path / "log").read_text()[-3000:]
    for number in (3, 5):
        words = ["sample", *flags(**settings, num_samples=number, out=local)]
        assert start(words, tmp_path / "log").wait() == 0
    assert (spread / GROUPS).read_bytes() == (local / GROUPS).read_bytes()
    assert stored(spread) == stored(local)


# --- the engine alone ----------------------------------------------------------------------------------------------


def test_one_process_knows_no_ray() -> None:
    """`--engine local` works where Ray is not installed: it is not even imported, by no stage that could."""
    program = (
        "import sys, contextlib\n"
        "import recipes.data.score, recipes.data.label_steps, recipes.data.sample, recipes.data.verify\n"
        "from recipes.stage.engine import engine\n"
        "from recipes.config import EngineConfig\n"
        "with engine(EngineConfig(), lambda: contextlib.nullcontext(abs)) as run:\n"
        "    assert list(run([-1, 2])) == [(0, 1), (1, 2)]\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'ray']\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_nothing_is_loaded_where_nothing_is_to_do(tmp_path: Path) -> None:
    for name in ("local", "ray"):
        with engine(EngineConfig(engine=name), partial(squares, tmp_path)) as run:
            assert list(run([])) == []
    assert not (tmp_path / "loaded").exists()


def test_what_cannot_work_is_refused() -> None:
    for config, message in (
        (EngineConfig(engine="dask"), "unknown engine 'dask': expected one of local, ray"),
        (EngineConfig(engine="ray", actors=0), "expected at least 1 actor, got actors=0"),
    ):
        with pytest.raises(ConfigError, match=message), engine(config, partial(squares, Path())):
            pass
    with pytest.raises(ConfigError, match="actors=4: this Ray cluster has 2 CPUs"):
        _gpus_each(4, {"CPU": 2})


def test_every_actor_finds_a_place_on_the_gpus() -> None:
    """Three actors on two GPUs: two share one, so each takes a half."""
    shares = [_gpus_each(actors, {"CPU": 8, "GPU": 2}) for actors in (1, 2, 3, 5)]
    assert shares == [1, 1, 1 / 2, 1 / 3]
    assert _gpus_each(3, {"CPU": 8}) == 0


@pytest.mark.timeout(900)
def test_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One load an actor; a call whose worker dies is made again; errors come through; no port but the loopback's."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the workers import `squares` by its name
    with engine(EngineConfig(engine="ray"), partial(squares, tmp_path)) as run:
        assert dict(run(range(12))) == {place: place * place for place in range(12)}
        loaded = (tmp_path / "loaded").read_text().split()
        assert len(loaded) == len(set(loaded)) == 2
        listening = {
            connection.laddr.ip
            for process in psutil.Process().children(recursive=True)
            for connection in process.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
        assert dict(run([13, 1, 2])) == {0: 169, 1: 1, 2: 4}
        assert len((tmp_path / "loaded").read_text().split()) == 3
        with pytest.raises(DataError, match="not this one") as refused:
            list(run([-2]))
        assert refused.value.reason == "refused"
        assert dict(run([3])) == {0: 9}
    assert len(list(tmp_path.glob("closed-*"))) == 2
