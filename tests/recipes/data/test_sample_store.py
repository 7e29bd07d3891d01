"""`mpo sample` on its store: killed, resumed, raised, changed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError, DataError, FingerprintError
from mpo.multimodal.images import load_image
from recipes.cli import main
from recipes.config import SampleConfig
from recipes.data.sample import PARQUET, STORE, sample
from recipes.stage.folder import MANIFEST, manifest_of
from recipes.stage.groups import read_groups
from recipes.worlds.digits.world import scenes, to_problem
from rewards.types import Completion

KILLER = Path(__file__).parents[1] / "kill_stage.py"
ROOT = Path(__file__).parents[3]
N, PROBLEMS = 4, 10


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit problems with images of different widths, one of them unreadable."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for index, scene in enumerate(scenes("test", PROBLEMS, 1)):
        problem = to_problem(scene, f"p{index}")
        (picture,) = problem.images
        assert isinstance(picture, Image.Image)
        picture.save(folder / f"{index}.png")
        rows.append({"id": problem.id, "question": problem.question, "images": [f"{index}.png"], "answer": "1"})
    (folder / "bad.png").write_text("no image")
    rows.insert(3, {"id": "bad", "question": "?", "images": ["bad.png"]})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "questions.jsonl"


@pytest.fixture(scope="module")
def config(questions: Path, policy_folder: Path) -> SampleConfig:
    """Two problems per call, five calls."""
    return SampleConfig(
        problems=questions, out=Path(), policy=policy_folder, num_samples=N, batch_rows=2 * N, max_new_tokens=24,
        parquet=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def straight(config: SampleConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample(replace(config, out=tmp_path_factory.mktemp("straight") / "samples"))


def rows_of(folder: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / STORE)) as connection:
        return connection.execute("SELECT * FROM samples ORDER BY key").fetchall()


def flags_of(config: SampleConfig) -> list[str]:
    names = ("problems", "out", "policy", "num_samples", "batch_rows", "max_new_tokens", "parquet")
    return [word for name in names for word in (f"--{name}", str(getattr(config, name)))]


@pytest.mark.timeout(600)
def test_a_killed_run_is_the_straight_run_byte_for_byte(config: SampleConfig, straight: Path, tmp_path: Path) -> None:
    """Four kills inside five calls, then the last attempt; store, both exports and the account are the same."""
    out = tmp_path / "samples"
    command = [sys.executable, str(KILLER), "4", "sample", *flags_of(replace(config, out=out))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["status"] == 0, done.stderr[-2000:]
    assert sorted(set(report["left"])) == report["left"], "every attempt goes on from the one before"
    assert 0 < report["left"][0] < N * PROBLEMS
    assert rows_of(out) == rows_of(straight)
    for name in ("groups.jsonl", PARQUET):
        assert (out / name).read_bytes() == (straight / name).read_bytes(), name
    assert manifest_of(out)["counts"]["in"] == manifest_of(straight)["counts"]["in"] == N * (PROBLEMS + 1)
    assert not list(out.glob("*.partial")) + list(out.glob("*.tmp"))


def test_samples_that_were_lost_one_by_one_are_drawn_again_the_same(
    config: SampleConfig, straight: Path, tmp_path: Path
) -> None:
    """As if the store had been cut anywhere, inside a call too: single rows are missing, and only they are added."""
    out = sample(replace(config, out=tmp_path / "samples"))
    before = rows_of(out)
    with closing(sqlite3.connect(out / STORE)) as connection, connection:
        connection.execute("DELETE FROM samples WHERE sample_index = 1 OR problem_id IN ('p2', 'p9')")
        kept = dict(connection.execute("SELECT key, rowid FROM samples"))
    (out / MANIFEST).unlink()
    (out / "groups.jsonl").write_text("damaged")
    sample(replace(config, out=out))
    assert rows_of(out) == before == rows_of(straight)
    with closing(sqlite3.connect(out / STORE)) as connection:
        now = dict(connection.execute("SELECT key, rowid FROM samples"))
    assert kept.items() <= now.items(), "a sample that was there was written again"
    assert (out / "groups.jsonl").read_bytes() == (straight / "groups.jsonl").read_bytes()


def test_raising_the_number_only_adds(config: SampleConfig, straight: Path, tmp_path: Path) -> None:
    out = sample(replace(config, out=tmp_path / "samples", num_samples=2))
    first = rows_of(out)
    assert main(["sample", *flags_of(replace(config, out=out, num_samples=5))]) == 0
    assert set(first) < set(rows_of(out))
    groups = read_groups(out)
    assert [len(group.rollouts) for group in groups] == [5] * PROBLEMS
    assert manifest_of(out)["counts"]["out"] == 5 * PROBLEMS
    # The random numbers of a sample do not depend on N, so neither do the first four texts.
    texts = [[rollout.completion.text for rollout in group.rollouts[:N]] for group in groups]
    assert texts == [[rollout.completion.text for rollout in group.rollouts] for group in read_groups(straight)]
    with pytest.raises(FingerprintError, match=r"num_samples \(5 then, 2 now\)"):
        sample(replace(config, out=out, num_samples=2))


def test_other_settings_are_refused_with_exit_code_4(
    config: SampleConfig, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = sample(replace(config, out=tmp_path / "samples"))
    (unfinished / MANIFEST).unlink()
    for folder in (straight, unfinished):
        before = rows_of(folder)
        capsys.readouterr()
        assert main(["sample", *flags_of(replace(config, out=folder)), "--temperature", "0.5", "--top_k", "3"]) == 4
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "temperature (1.0 then, 0.5 now), top_k (0 then, 3 now)" in line
        assert "seed" not in line
        assert rows_of(folder) == before


def test_another_template_is_another_fingerprint(config: SampleConfig, policy_folder: Path, tmp_path: Path) -> None:
    policy = shutil.copytree(policy_folder, tmp_path / "policy")
    out = sample(replace(config, policy=policy, out=tmp_path / "samples", num_samples=1))
    (out / MANIFEST).unlink()
    template = policy / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "assistant \n"))
    with pytest.raises(FingerprintError, match=r"other policy \("):
        sample(replace(config, policy=policy, out=out, num_samples=1))


def test_other_settings_in_a_segment_of_their_own(config: SampleConfig, tmp_path: Path) -> None:
    small = replace(config, out=tmp_path / "samples", num_samples=1, max_new_tokens=4, parquet=False)
    first = rows_of(sample(small))
    sample(replace(small, seed=1, on_change="segment"))
    assert len(rows_of(small.out)) == 2 * len(first)
    assert set(first) < set(rows_of(small.out))
    drawn = {rollout.completion.text for group in read_groups(small.out) for rollout in group.rollouts}
    assert len(read_groups(small.out)) == PROBLEMS
    assert drawn != {text for _, _, _, _, _, text, *_ in first}
    sample(replace(small, on_change="segment"))  # and back, with nothing drawn
    assert len(rows_of(small.out)) == 2 * len(first)


def test_the_parquet_export_shows_what_the_model_saw(straight: Path, questions: Path) -> None:
    rows = pq.read_table(straight / PARQUET).to_pylist()
    assert [row["problem_id"] for row in rows] == [f"p{index}" for index in range(PROBLEMS)]
    for row, group in zip(rows, read_groups(straight), strict=True):
        (picture,) = row["images"]
        assert picture["path"] is None
        assert load_image(picture["bytes"]) == load_image(group.problem.images[0])
        assert [completion["text"] for completion in row["completions"]] == [
            rollout.completion.text for rollout in group.rollouts
        ]


def test_the_parquet_file_can_be_asked_for_later(config: SampleConfig, tmp_path: Path) -> None:
    small = replace(config, out=tmp_path / "samples", num_samples=1, max_new_tokens=4, parquet=False)
    sample(small)
    assert not (small.out / PARQUET).exists()
    sample(replace(small, parquet=True))
    assert pq.read_metadata(small.out / PARQUET).num_rows == PROBLEMS


def test_logprobs_reach_the_groups(config: SampleConfig, tmp_path: Path) -> None:
    out = sample(replace(config, out=tmp_path / "samples", num_samples=2, max_new_tokens=4, logprobs=True))
    completions: list[Completion] = [r.completion for group in read_groups(out) for r in group.rollouts]
    assert all(c.token_logprobs and len(c.token_logprobs) == c.num_tokens for c in completions)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_url": "http://127.0.0.1:1/v1", "model": "m"}, "expected either policy"),
        ({"policy": None}, "expected either policy"),
        ({"policy": None, "base_url": "http://127.0.0.1:1/v1"}, "base_url and model"),
        ({"on_change": "mix"}, "refuse or segment, got 'mix'"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"top_p": 0.0}, "0 < top_p <= 1"),
        ({"temperature": 0.0}, "cannot draw 4 completions at temperature"),
    ],
)
def test_what_cannot_work_is_refused_first(
    config: SampleConfig, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        sample(replace(config, out=tmp_path / "samples", **changes))
    assert not (tmp_path / "samples").exists()


def test_no_picture_at_all_is_an_error(config: SampleConfig, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "?", "images": ["bad.png"]}\n')
    with pytest.raises(DataError, match=r"no problem of .* could be sampled.*bad\.png"):
        sample(replace(config, problems=tmp_path / "q.jsonl", out=tmp_path / "samples"))
