"""The store of samples: real files, real processes, killed for real."""

from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.multimodal.errors import FingerprintError
from rewards.errors import StoreError
from rewards.kept.keys import derived_seed, problem_key, unit_key
from rewards.kept.store import SampleStore, StoredSample
from rewards.types import Completion, FinishReason, Problem

WRITER = Path(__file__).with_name("write_store.py")
ROOT = Path(__file__).parents[3]
SETTINGS = {"temperature": 1.0}


def row(key: str, text: str = "4", index: int = 0) -> StoredSample:
    return StoredSample(key, "p", index, 2**62, Completion(text))


def writer(path: Path, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(WRITER), str(path), str(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_what_was_added_comes_back(tmp_path: Path) -> None:
    completions = {
        "a": Completion("plain", FinishReason.STOP, 3),
        "b": Completion("", FinishReason.LENGTH, 512, (-0.1, -1e-30, 0.0)),
        "c": Completion("zero \0 byte,\r\n<|im_end|> \N{PILE OF POO}", FinishReason.STOP, 1, ()),
    }
    with SampleStore(tmp_path / "new" / "s.sqlite", SETTINGS) as store:
        store.add(StoredSample(key, "p", 0, 1, completion) for key, completion in completions.items())
    with SampleStore(tmp_path / "new" / "s.sqlite", SETTINGS) as store:
        assert store.keys() == set(completions)
        assert store.completions(["a", "b", "c", "none"]) == completions


@pytest.mark.timeout(300)
def test_which_units_are_stored(tmp_path: Path) -> None:
    with SampleStore(tmp_path / "s.sqlite", {"a": 1}) as store:
        assert not store.holds_any()
        store.add([StoredSample(key, "p", 0, 7, Completion("4")) for key in ("k", "l")])
        assert store.holds_any()
        assert store.has(["l", "m", "k"]) == [True, False, True]
    with SampleStore(tmp_path / "s.sqlite", {"a": 2}, on_change="segment") as other:
        assert not other.holds_any()
        assert other.has(["l"]) == [False]


def test_a_killed_writer_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """Twenty SIGKILLs at random moments: every commit that the writer told of is there, whole, and it can go on."""
    rng, path, told = random.Random(0), tmp_path / "s.sqlite", set[int]()
    for _ in range(20):
        child = writer(path, 100_000)
        assert child.stdout is not None
        first = child.stdout.readline()  # it has begun
        time.sleep(rng.random() * 0.1)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
        assert child.wait() == -signal.SIGKILL
        told |= {int(word) for word in (first + rest.rpartition("\n")[0]).split()}
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            (count,) = connection.execute("SELECT count(*) FROM samples").fetchone()
        assert count % 3 == 0, "a part of a commit"
    with SampleStore(path, SETTINGS) as store:  # the lock died with its holder
        keys = store.keys()
        assert {f"key-{index}" for index in told} <= keys
        found = store.completions(keys)
    assert all(found[key].text == f"answer {key[4:]} " * 200 for key in keys)
    number = len(keys) + 30
    assert writer(path, number).wait() == 0
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT key) FROM samples").fetchone() == (number, number)


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    child = writer(path, 100_000)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        with pytest.raises(StoreError, match=f"being written by process {child.pid} on {socket.gethostname()}"):
            SampleStore(path, SETTINGS)
    finally:
        child.kill()
        child.wait()
    with SampleStore(path, SETTINGS) as store:
        assert store.keys()
        with pytest.raises(StoreError, match=f"process {os.getpid()} on "):  # in this process too
            SampleStore(path, SETTINGS)
    SampleStore(path, SETTINGS).close()


def test_another_fingerprint_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with SampleStore(path, {"temperature": 1.0, "model": "a", "seed": 0}) as store:
        store.add([row("a")])
    said = r"other model \('a' then, 'b' now\), temperature \(1.0 then, 0.5 now\);"
    with pytest.raises(FingerprintError, match=said) as caught:
        SampleStore(path, {"temperature": 0.5, "model": "b", "seed": 0})
    assert "seed" not in str(caught.value)
    with SampleStore(path, {"seed": 0, "model": "a", "temperature": 1.0}) as store:  # the order of keys is no change
        assert store.keys() == {"a"}


def test_segments_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with SampleStore(path, SETTINGS) as store:
        store.add([row("a")])
        assert store.note("rows", 4) == 4
    with SampleStore(path, {"temperature": 0.5}, on_change="segment") as other:
        assert other.keys() == set()
        assert other.note("rows", 8) == 8
        other.add([row("b")])
        assert other.segment != store.segment
    with SampleStore(path, SETTINGS) as store:  # both are known now
        assert store.keys() == {"a"}
        assert store.note("rows", 9) == 4


def test_nothing_is_stored_twice_nor_in_part(tmp_path: Path) -> None:
    with SampleStore(tmp_path / "s.sqlite", SETTINGS) as store:
        store.add([row("a", "first")])
        with pytest.raises(StoreError, match="could not keep 2 samples"):
            store.add([row("b"), row("a", "second")])
        assert store.keys() == {"a"}
        assert store.completions(["a"])["a"].text == "first"


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    with SampleStore(tmp_path / "s.sqlite", SETTINGS) as store:
        store.add([row("a")])
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StoreError, match=r"database or disk is full.*run the same command again"):
            store.add([row("b", "x" * 100_000)])
        store._connection.execute("PRAGMA max_page_count = 100000")
        assert store.keys() == {"a"}
        store.add([row("b", "x" * 100_000)])
        assert store.keys() == {"a", "b"}


@pytest.mark.parametrize("content", [b"not a database, but long enough to look like a page" * 100, None])
def test_a_file_that_is_no_store_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(content) if content else path.mkdir()
    with pytest.raises(StoreError, match=r"s\.sqlite cannot be used as a store"):
        SampleStore(path, SETTINGS)
    with pytest.raises(StoreError, match="cannot be used"):  # and the lock was let go
        SampleStore(path, SETTINGS)


@given(st.text(max_size=5), st.text(max_size=5), st.integers(0, 3), st.text(max_size=3))
def test_keys_and_seeds_depend_on_content_alone(problem_id: str, question: str, index: int, prefix: str) -> None:
    problem = Problem(problem_id, question)
    seed = derived_seed(7, problem, index, prefix)
    assert 0 <= seed < 2**63
    assert seed == derived_seed(7, Problem(problem_id, question, answer="5", meta={"a": 1}), index, prefix)
    others = [(8, problem, index, prefix), (7, problem, index + 1, prefix), (7, problem, index, prefix + "x")]
    others += [(7, Problem(problem_id + "x", question), index, prefix)]
    assert seed not in {derived_seed(*other) for other in others}
    key = problem_key(problem, ["sha"])
    assert len({key, problem_key(problem, []), problem_key(Problem(problem_id, question + "x"), ["sha"])}) == 3
    units = [
        unit_key("s", key, index, prefix),
        unit_key("t", key, index, prefix),
        unit_key("s", key, index + 1, prefix),
    ]
    assert len(set(units)) == 3
