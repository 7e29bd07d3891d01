"""The shipped settings for PRMs and Best-of-N: each parses, names only what differs, and runs on tiny models."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mpo.multimodal.loading import load_model, stored_dtype
from recipes.cli import _parsed, main
from recipes.loop.settings import SECTIONS, Settings
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups, read_problems
from rewards.interchange.visualprm import write_visualprm400k
from rewards.types import Completion, MonteCarloCount, Rollout, RolloutGroup
from tests.recipes.run_folders import make_problems
from tests.rewards.conversion.chat_checkpoints import INTERNLM2, QWEN, write_chat_checkpoint

FOLDER = Path(__file__).resolve().parents[3] / "recipes" / "configs"
# settings → command, and the paths that are given beside them
COMMAND = {
    "visualprm_8b_prm": ("train-prm", ("groups", "model", "out")),
    "visualprm_bo8_sample": ("sample", ("problems", "policy", "out")),
    "visualprm_bo8_score": ("score", ("groups", "prm", "out")),
}
EXPLAINED = r"^ *{key}: \S+  # \S"


def test_these_are_all() -> None:
    assert {path.stem for path in FOLDER.glob("*visualprm*.yaml")} == COMMAND.keys()


@pytest.mark.parametrize("name", COMMAND)
def test_only_what_differs_and_why(name: str) -> None:
    """Every key is a field whose default it changes, and every value has a word of explanation."""
    text = (FOLDER / f"{name}.yaml").read_text()
    command, paths = COMMAND[name]
    given = [word for path in paths for word in (f"--{path}", path)]
    config = _parsed([command, str(FOLDER / f"{name}.yaml"), *given])
    default = _parsed([command, *given])
    for key, value in yaml.safe_load(text).items():
        stated = key == "learning_rate"  # is always stated, even where it is the default
        assert getattr(config, key) == value, key
        assert stated or value != getattr(default, key), key
        assert re.search(EXPLAINED.format(key=key), text, re.MULTILINE), f"{key} is not explained"


def test_own_data_names_only_what_differs_and_why() -> None:
    path = FOLDER / "own_data.yaml"
    settings, text = Settings(path), path.read_text()
    lines = [line for line in text.splitlines() if re.match(r"  \w", line)]
    assert all(re.match(EXPLAINED.format(key=r"\w+"), line) for line in lines)
    for section, values in yaml.safe_load(text).items():
        defaults = {key: field.default for key, field in SECTIONS[section].__dataclass_fields__.items()}
        assert all(value != defaults[key] for key, value in values.items() if key != "learning_rate"), section
    assert settings.world == "own"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """InternVL2.5 with InternLM2, InternVL3 with Qwen2, and VisualPRM v1.1, tiny, in the hub's layout; converted."""
    folder = tmp_path_factory.mktemp("chat")
    long = {"language": {"max_position_embeddings": 4096}}
    write_chat_checkpoint(folder / "InternVL2_5-8B", INTERNLM2, **long)
    write_chat_checkpoint(folder / "InternVL3-8B", QWEN, **long)
    write_chat_checkpoint(folder / "VisualPRM-8B-v1_1", QWEN, architectures=["InternVLRewardModel"], **long)
    out = {}
    for source in sorted(folder.iterdir()):
        out[source.name] = source.with_name(f"{source.name}-native")
        more = ["--prm", "true"] if "PRM" in source.name else []
        assert main(["convert", "--checkpoint", str(source), "--out", str(out[source.name]), *more]) == 0
    return out


def run(*words: Any) -> None:
    assert main([str(word) for word in words]) == 0


def test_a_visualprm_from_visualprm400k(chat: dict[str, Path], tmp_path: Path) -> None:
    """As its header says: rows of VisualPRM400K → groups → three steps of training; flags stand above the file."""
    problems = read_problems(make_problems(tmp_path, "p", 6, random.Random(0))).values()
    counts = [(MonteCarloCount(3, 16), MonteCarloCount(0, 16)), (MonteCarloCount(16, 16), MonteCarloCount(5, 16))]
    texts = ("One is 3.\n\nFinal answer: 4", "Two is 5.\n\nFinal answer: 7")
    rollouts = tuple(Rollout(Completion(text), mc=mc) for text, mc in zip(texts, counts, strict=True))
    rows = tmp_path / "annotations.jsonl"
    assert write_visualprm400k(rows, [RolloutGroup(p, rollouts) for p in problems], image_root=tmp_path) == 12
    run("convert-data", "visualprm", "groups", "--source", rows, "--image_root", tmp_path, "--out", tmp_path / "groups")
    model, out = chat["InternVL2_5-8B"], tmp_path / "prm"
    given = ("--groups", tmp_path / "groups", "--model", model, "--out", out)
    run(
        "train-prm",
        FOLDER / "visualprm_8b_prm.yaml",
        *given,
        "--batch_groups",
        2,
        "--learning_rate",
        0.01,
        "--min_steps",
        0,
    )
    assert manifest_of(out)["counts"]["out"] == 12
    assert json.loads((out / "log_history.json").read_text())[-1]["step"] == 3
    assert stored_dtype(out) == torch.bfloat16
    before, after = (load_model(folder).state_dict() for folder in (model, out))
    assert before.keys() == after.keys()
    moved = {name for name in before if not before[name].bfloat16().equal(after[name].bfloat16())}
    assert moved
    assert not any("vision" in name or "projector" in name for name in moved)
    assert json.loads((out / "prm.json").read_text())["name"] == "visualprm"


def test_best_of_8(chat: dict[str, Path], tmp_path: Path) -> None:
    """The five commands of the header, on a tiny InternVL3 and a tiny VisualPRM in the hub's layout."""
    problems = make_problems(tmp_path, "p", 2, random.Random(0))
    samples, verified, scored = (tmp_path / name for name in ("samples", "verified", "scored"))
    given = ("--policy", chat["InternVL3-8B"], "--problems", problems, "--out", samples)
    run("sample", FOLDER / "visualprm_bo8_sample.yaml", *given, "--max_new_tokens", 8)
    settings = manifest_of(samples)["fingerprint"]["settings"]
    assert (settings["num_samples"], settings["temperature"], settings["top_k"]) == (8, 0.7, 0)
    run("verify", "--groups", samples, "--out", verified)
    prm = ("--prm", chat["VisualPRM-8B-v1_1"], "--out", scored)
    run("score", FOLDER / "visualprm_bo8_score.yaml", "--groups", verified, *prm)
    run("best-of-n", "--groups", scored, "--out", tmp_path / "best")
    assert [len(group.rollouts) for group in read_groups(scored)] == [8, 8]
    assert any(rollout.reward is not None for group in read_groups(scored) for rollout in group.rollouts)
    results = json.loads((tmp_path / "best" / "results.json").read_text())
    assert results["ks"] == [1, 2, 4, 8]
