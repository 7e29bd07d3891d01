"""`mpo evaluate` and `mpo label-steps` on a real vLLM: nothing is lost, and nothing is asked twice.

One request at a time: vLLM 0.32 on a CPU ends ("CPU Generator does not use offset") when it reads the prompt of a
request with a seed in parts, as it does when several long ones come together.
"""

from __future__ import annotations

import json
import random
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from recipes.cli import main
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups
from tests.recipes.run_folders import make_groups, make_problems, stating, write_stage
from tests.with_vllm.vllm_server import FLAGS, MODEL, QUIET, VLLM, Served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]  # the first waits for the server


def test_a_matrix_of_a_policy_on_vllm(served: Served, tmp_path: Path) -> None:
    make_problems(tmp_path / "sums", "test", 3, random.Random(0))
    settings: dict[str, Any] = {
        "ns": [1, 2, 4],
        "sample": {"prompt": "direct", "max_new_tokens": 12, "concurrency": 1},
        "policies": {"On vLLM": {"base_url": [served.base_url], "model": MODEL}},
        "benchmarks": {"sums": {"problems": str(tmp_path / "sums" / "test.jsonl")}},
        "critics": {"Own certainty": {"self_certainty": True}},
    }
    (tmp_path / "matrix.yaml").write_text(json.dumps(settings))
    command = ["evaluate", str(tmp_path / "matrix.yaml"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    (told,) = json.loads((tmp_path / "out" / "results" / "evaluation.json").read_text())["responses"]
    assert (told["problems"], told["responses"], told["most"]) == (3, 12, 4)
    assert 1 <= told["tokens"] <= 12
    results = [
        path for path in (tmp_path / "out" / "results").iterdir() if path.is_file() and "seconds" not in path.name
    ]
    before = {path: path.read_bytes() for path in results}
    assert main(command) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_a_vllm_of_the_stages_own(served: Served, tmp_path: Path) -> None:
    """Samples, then pairs by dropout: each stage starts vLLM with the policy and ends it."""
    rng = random.Random(0)
    problems = make_problems(tmp_path / "data", "q", 3, rng)
    quiet = [f"{name}={value}" for name, value in QUIET.items()]
    words = ["env", "-u", "VIRTUAL_ENV", *quiet, str(VLLM), "serve", "{model}", "--port", "{port}", *FLAGS]
    policy = shutil.copytree(served.folder, tmp_path / "policy", ignore=shutil.ignore_patterns("prm.json"))
    own = ["--policy", str(policy), "--serve", "true", "--serve_command", shlex.join(words), "--concurrency", "1"]
    drawing = ["--problems", str(problems), "--num_samples", "2", "--max_new_tokens", "12"]
    assert main(["sample", *drawing, *own, "--out", str(tmp_path / "samples")]) == 0
    groups = read_groups(tmp_path / "samples")
    assert [len(group.rollouts) for group in groups] == [2] * 3
    assert any(rollout.completion.text for group in groups for rollout in group.rollouts)
    sure = write_stage(tmp_path / "verified", stating(make_groups(problems, 2, 0.5, rng)), problems)
    making = ["--groups", str(sure), "--rule", "dropout_ntp", "--max_new_tokens", "12"]
    assert main(["pairs", *making, *own, "--out", str(tmp_path / "pairs")]) == 0
    assert manifest_of(tmp_path / "pairs")["counts"]["pairs"] > 0


def test_step_labels_from_vllm(served: Served, tmp_path: Path) -> None:
    """Sequential labels of six responses, twice into two folders: vLLM keeps to a request's seed, so they are the
    same."""
    rng = random.Random(0)
    problems = make_problems(tmp_path / "data", "q", 3, rng)
    groups = write_stage(tmp_path / "verified", stating(make_groups(problems, 2, 0.5, rng)), problems)
    asked = ["label-steps", "--groups", str(groups), "--base_url", served.base_url, "--model", MODEL]
    asked += [
        "--concurrency",
        "1",
        "--budget",
        "sequential",
        "--num_continuations",
        "4",
        "--max_new_tokens",
        "12",
        "--mixed_only",
        "false",
    ]
    for name in ("one", "two"):
        assert main([*asked, "--out", str(tmp_path / name)]) == 0
    assert read_groups(tmp_path / "one") == read_groups(tmp_path / "two")
    counts = manifest_of(tmp_path / "one")["counts"]
    assert counts["drawn"]["continuations"] > 0
    assert counts["drawn"]["tokens"] > 0
    assert counts["in"] == counts["out"] + sum(counts["rejected"].values())
