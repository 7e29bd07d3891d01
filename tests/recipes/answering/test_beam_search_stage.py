"""`mpo beam-search`, then `mpo verify`, on real models in folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpo.multimodal.loading import load_model, load_processor
from recipes.answering.beam_search import SEARCHES
from recipes.cli import main
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups
from recipes.worlds.digits.world import scenes, to_problem
from rewards.prm.formats import STEP_END, VISUALPRM
from rewards.prm.model_prm import save_format
from tests.model_server import ModelServer
from tests.served_model import ServedModel


@pytest.fixture
def inputs(policy_folder: Path, policy: Any, processor: Any, tmp_path: Path) -> list[str]:
    policy.save_pretrained(tmp_path / "prm")
    processor.save_pretrained(tmp_path / "prm")
    save_format(tmp_path / "prm", STEP_END)
    rows = [{"id": "lost", "question": "The sum?", "images": ["none.png"], "answer": "1"}]
    for index, scene in enumerate(scenes("test", 3, 3)):
        problem = to_problem(scene, f"p{index}")
        problem.images[0].save(tmp_path / f"{index}.png")
        rows.append({"id": problem.id, "question": problem.question, "images": [f"{index}.png"], "answer": "7"})
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"problems": tmp_path / "questions.jsonl", "prm": tmp_path / "prm", "policy": policy_folder}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def test_search_then_verify(inputs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "searched"
    small = ["--width", "2", "--expand", "2", "--max_rounds", "3", "--max_new_tokens", "6", "--problems_a_call", "2"]
    assert main(["beam-search", *inputs, "--out", str(out), *small]) == 0
    groups, counts = read_groups(out), manifest_of(out)["counts"]
    assert [group.problem.id for group in groups] == ["p0", "p1", "p2"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (4, 3, {"unreadable image": 1})
    rows = [json.loads(line) for line in (out / SEARCHES).read_text().splitlines()]
    assert sum(row["tokens"] for row in rows) == counts["tokens"] > 0
    for group, row in zip(groups, rows, strict=True):
        (rollout,) = group.rollouts
        assert rollout.step_scores is not None
        assert not row["finished"] or row["finished"][0] == {"text": rollout.completion.text, "reward": rollout.reward}
    assert main(["verify", "--groups", str(out), "--out", str(tmp_path / "verified"), "--verifier", "exact"]) == 0
    assert sum(manifest_of(tmp_path / "verified")["counts"]["verdicts"].values()) == 3
    written = (out / SEARCHES).stat().st_mtime_ns
    assert main(["beam-search", *inputs, "--out", str(out), *small]) == 0  # complete: nothing is searched again
    assert (out / SEARCHES).stat().st_mtime_ns == written


def test_refusals(inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["beam-search", *inputs, *out, "--temperature", "0"]) == 2
    assert "temperature > 0" in capsys.readouterr().err
    assert main(["beam-search", *inputs, *out, "--aggregation", "median"]) == 2
    assert "'median'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_prm_on_a_server_finds_the_same_responses(inputs: list[str], tmp_path: Path) -> None:
    small = ["--width", "2", "--expand", "2", "--max_rounds", "2", "--max_new_tokens", "6"]
    save_format(tmp_path / "prm", VISUALPRM)  # whose turns a server can be read in
    assert main(["beam-search", *inputs, "--out", str(tmp_path / "here"), *small]) == 0
    served = ServedModel(load_model(tmp_path / "prm").eval(), load_processor(tmp_path / "prm"))
    with ModelServer(reply=served, tokenize=served.tokenize, models=("prm",)) as server:
        there = ["--prm_base_url", server.base_url, "--prm_model", "prm", "--out", str(tmp_path / "there")]
        assert main(["beam-search", *inputs, *there, *small]) == 0
        assert server.requests
    here, other = (read_groups(tmp_path / name) for name in ("here", "there"))
    assert [g.rollouts[0].completion.text for g in here] == [g.rollouts[0].completion.text for g in other]
    for one, same in zip(here, other, strict=True):
        assert one.rollouts[0].reward == pytest.approx(same.rollouts[0].reward, abs=1e-4)
