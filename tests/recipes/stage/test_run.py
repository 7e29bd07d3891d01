"""A stage's folder: what is skipped, what is refused by name, what a kill leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mpo.multimodal.errors import ConfigError, StageError
from mpo.multimodal.files import write_atomic
from recipes.stage.folder import MANIFEST, manifest_of, open_stage

COUNTS = {"in": 3, "out": 2, "rejected": {"empty": 1}}


@dataclass
class Config:
    out: Path
    seed: int = 0
    rate: float = 1e-3
    ks: tuple[int, ...] = (1, 2)
    optional: Path | None = None
    workers: int = 1
    lists: list[int] = field(default_factory=lambda: [1])


def finished(folder: Path, *, says: str = "", **settings: object) -> Path:
    stage = open_stage("made", Config(folder, **settings), inputs=[])
    (folder / "groups.jsonl").write_text(says)
    return stage.finish(COUNTS)


def test_a_complete_stage_is_skipped(tmp_path: Path) -> None:
    """A tuple is a list once it was written to JSON; that is no change."""
    config = Config(tmp_path / "out")
    stage = open_stage("made", config, inputs=[])
    assert not stage.complete
    assert stage.out.is_dir()
    assert stage.finish(COUNTS) == tmp_path / "out"
    assert open_stage("made", config, inputs=[]).complete
    manifest = manifest_of(tmp_path / "out")
    assert (manifest["stage"], manifest["counts"]) == ("made", COUNTS)
    assert manifest["seconds"] >= 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, r"seed \(0 then, 1 now\)"),
        ({"rate": 2e-3}, r"rate \(0\.001 then, 0\.002 now\)"),
        ({"ks": (1,)}, r"ks \(\[1, 2\] then, \[1\] now\)"),
        ({"seed": 1, "lists": []}, r"lists \(\[1\] then, \[\] now\), seed \("),
    ],
)
def test_changed_settings_are_refused_by_name(tmp_path: Path, change: dict[str, object], said: str) -> None:
    finished(tmp_path / "out")
    with pytest.raises(ConfigError, match=f"stage made: .*out was made with other {said}.*choose another folder"):
        open_stage("made", replace(Config(tmp_path / "out"), **change), inputs=[])


def test_how_fast_is_not_what(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    assert open_stage("made", Config(tmp_path / "out", workers=8), inputs=[]).complete


def test_inputs_must_be_there_and_finished(tmp_path: Path) -> None:
    config = Config(tmp_path / "out")
    with pytest.raises(StageError, match=r"stage made: input .*gone does not exist; run the stage that writes it"):
        open_stage("made", config, inputs=[tmp_path / "gone"])
    (tmp_path / "half").mkdir()
    with pytest.raises(StageError, match=rf"stage made: input .*half is not finished \(no {MANIFEST}\)"):
        open_stage("made", config, inputs=[tmp_path / "half"])
    assert not (tmp_path / "out").exists()  # a refusal leaves nothing behind


@pytest.mark.parametrize("kind", ["stage", "file", "model"])
def test_changed_inputs_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "input"
    if kind == "stage":
        finished(path)
    elif kind == "file":
        path.write_text("a")
    else:
        path.mkdir()
        (path / "config.json").write_text("{}")
    config = Config(tmp_path / "out")
    open_stage("made", config, inputs=[path]).finish(COUNTS)
    assert open_stage("made", config, inputs=[path]).complete

    if kind == "stage":
        (path / MANIFEST).unlink()
        finished(path, says="other")
    else:
        (path / "config.json" if kind == "model" else path).write_text('{"a": 1}')
    with pytest.raises(ConfigError, match=r"was made with other .*input"):
        open_stage("made", config, inputs=[path])


def test_a_change_far_upstream_is_seen(tmp_path: Path) -> None:
    """a → b → c: b made anew from another a is another b, and so an input of c has changed."""
    a, b = tmp_path / "a", tmp_path / "b"

    def copied() -> None:
        stage = open_stage("b", Config(b), inputs=[a])
        (b / "groups.jsonl").write_text((a / "groups.jsonl").read_text())
        stage.finish(COUNTS)

    finished(a)
    copied()
    open_stage("c", Config(tmp_path / "c"), inputs=[b]).finish(COUNTS)
    (a / MANIFEST).unlink()
    finished(a, says="other")
    (b / MANIFEST).unlink()
    copied()
    with pytest.raises(ConfigError, match=r"was made with other b \("):
        open_stage("c", Config(tmp_path / "c"), inputs=[b])


KILLED = """
import os
from pathlib import Path
from recipes.stage.folder import open_stage
from test_run import Config
stage = open_stage("made", Config(Path({out!r})), inputs=[])
(stage.out / "groups.jsonl").write_text("half a li")
(stage.out / "manifest.json.1f.tmp").write_text("{{")
os._exit(9)
"""


def test_a_stage_killed_before_its_manifest_is_run_anew(tmp_path: Path) -> None:
    out, here = tmp_path / "out", Path(__file__)
    paths = f"{here.parents[2]}:{here.parent}"
    script = KILLED.format(out=str(out))
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert (out / "groups.jsonl").exists()

    with pytest.raises(StageError, match="is not finished"):
        open_stage("next", Config(tmp_path / "next"), inputs=[out])
    with pytest.raises(StageError, match="holds no finished stage"):
        manifest_of(out)
    stage = open_stage("made", Config(out, seed=1), inputs=[])  # other settings too: nothing was finished
    assert not stage.complete
    stage.finish(COUNTS)
    assert manifest_of(out)["counts"] == COUNTS
    assert not list(out.glob("*.tmp"))


def test_an_account_that_does_not_balance_is_our_defect(tmp_path: Path) -> None:
    stage = open_stage("made", Config(tmp_path / "out"), inputs=[])
    with pytest.raises(AssertionError, match="made"):
        stage.finish({"in": 3, "out": 1, "rejected": {"empty": 1}})
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_out_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        open_stage("made", Config(tmp_path / "out"), inputs=[])


def test_write_atomic_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, "long old text")
    write_atomic(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_manifest_is_plain_json(tmp_path: Path) -> None:
    settings = json.loads((finished(tmp_path / "out") / MANIFEST).read_text())["fingerprint"]["settings"]
    assert settings == {"seed": 0, "rate": 1e-3, "ks": [1, 2], "lists": [1]}
