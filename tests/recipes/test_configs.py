"""The shipped settings for real models: each parses, and `mpo doctor` goes through it on a tiny model of its family."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mpo.multimodal.loading import load_model
from recipes.cli import _parsed, main
from recipes.config import TrainMPOConfig
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.types import Completion, PreferencePair, Problem
from tests.recipes.tiny_checkpoints import BUILDERS

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "configs"
# settings → family
FAMILY = {
    "paper_mpo": "internvl",
    "internvl3_8b_mpo": "internvl",
    "internvl3_1b_mpo": "internvl",
    "qwen2_5_vl_7b_lora_mpo": "qwen2_5_vl",
    "qwen3_vl_8b_mpo": "qwen3_vl",
    "gemma3_4b_mpo": "gemma3",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: build(folder / name) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    problems = [Problem(f"p{i}", "How many digits?", (Image.new("RGB", (64, 64), (60 * i, 0, 0)),)) for i in range(4)]
    write_trl_parquet(
        [PreferencePair(problem, Completion("one two"), Completion("three"), "correctness") for problem in problems],
        path,
    )
    return path


def test_these_are_all() -> None:
    assert {path.stem for path in FOLDER.glob("*_mpo.yaml")} == FAMILY.keys()
    assert set(FAMILY.values()) == BUILDERS.keys()


@pytest.mark.parametrize("name", FAMILY)
def test_only_what_differs_and_why(name: str) -> None:
    """Every key is a field whose default it changes, and every value has a word of explanation."""
    text = (FOLDER / f"{name}.yaml").read_text()
    values = yaml.safe_load(text)
    given = ["--policy", "p", "--pairs", "q", "--out", "o"]
    config = _parsed(["train-mpo", str(FOLDER / f"{name}.yaml"), *given])
    default = TrainMPOConfig(policy=Path("p"), pairs=Path("q"), out=Path("o"))
    for key, value in values.items():
        stated = key == "learning_rate"  # is always stated, even where it is the default
        assert getattr(config, key) == value, key
        assert stated or value != getattr(default, key), key
        assert re.search(rf"^{key}: \S+  # \S", text, re.MULTILINE), f"{key} is not explained"


@pytest.mark.parametrize("name", FAMILY)
def test_doctor(
    name: str, checkpoints: dict[str, Path], pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--policy", checkpoints[FAMILY[name]], "--pairs", pairs, "--out", tmp_path / "out", "--min_steps", 0]
    assert main(["doctor", str(FOLDER / f"{name}.yaml"), *map(str, given)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for expected in (
        "train: 4 rows in = 4 kept + 0 rejected",
        "as it must be",
        "layout: shared",
        "peak with checkpointing ← this run",
        "256 pairs per step = 1 per device x 256 micro-batches x 1 ranks",
        "1.00 epochs",
    ):
        assert expected in printed, printed
    assert re.search(r"│ image tokens │ [1-9]", printed)
    assert "│ number type │" not in printed  # bfloat16, as in the paper
    adapters = "lora" in name
    assert ("the policy without its adapters" in printed) == adapters
    assert ("│ trained weights │" in printed) == adapters


@pytest.mark.parametrize("name", ["internvl3_8b_mpo", "qwen2_5_vl_7b_lora_mpo", "qwen3_vl_8b_mpo", "gemma3_4b_mpo"])
def test_training(name: str, checkpoints: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    """Three steps, flags over the file (the first step's rate is 0): what comes out has moved, in bfloat16."""
    policy = checkpoints[FAMILY[name]]
    given = ["--policy", policy, "--pairs", pairs, "--out", tmp_path / "out", "--min_steps", 0]
    given += ["--batch_size", 4, "--epochs", 3, "--learning_rate", 0.1]
    assert main(["train-mpo", str(FOLDER / f"{name}.yaml"), *map(str, given)]) == 0
    before, after = (load_model(folder).state_dict() for folder in (policy, tmp_path / "out"))
    assert before.keys() == after.keys()
    moved = {key for key in before if not before[key].bfloat16().equal(after[key].bfloat16())}
    assert any("language_model" in key for key in moved)
    if "lora" in name:  # and only the language model
        assert all("language_model" in key for key in moved)
