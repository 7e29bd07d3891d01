"""README's own commands and its Python lines, as they stand there, on the digits world."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from recipes.cli import main
from recipes.config import WarmStartConfig, WorldConfig
from recipes.stage.folder import manifest_of
from recipes.stage.groups import problems_of

README = (Path(__file__).parents[2] / "README.md").read_text()
# README's defaults are for real models; these flags only make the commands short.
SHORT = {
    "sample": "--max_new_tokens 72",
    "label-steps": "--max_new_tokens 72 --num_continuations 2",
    "train-prm": "--max_steps 2",
    "train-mpo": "--max_steps 2",
    "answer": "--max_new_tokens 72",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as README's reader has it: questions with images, and a model that is sometimes right."""
    from recipes.training.warm_start import warm_start
    from recipes.worlds.digits.compose import compose

    folder = tmp_path_factory.mktemp("readme")
    sizes = {"num_warm_start": 40, "num_prm": 16, "num_preference": 2, "num_test": 2, "vision_steps": 60}
    world = compose(WorldConfig(out=folder / "world", **sizes))
    settings = WarmStartConfig(
        policy=world / "policy",
        demonstrations=world,
        out=folder / "model",
        max_steps=120,
        batch_size=16,
        learning_rate=3e-3,
    )
    warm_start(settings)
    (folder / "data").mkdir()
    shutil.copy(world / "prm.jsonl", folder / "data" / "questions.jsonl")
    shutil.copytree(world / "images", folder / "data" / "images")
    return folder


def block(language: str, containing: str) -> str:
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.S) if containing in text]
    assert len(found) == 1
    return found[0]


def test_the_commands_and_then_the_python_lines(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    first = json.loads(Path("data/questions.jsonl").read_text().splitlines()[0])
    assert {"id", "question", "images", "answer"} <= set(first)
    (image,) = first["images"]
    for line in block("bash", "mpo sample").splitlines():
        line = line.replace("MODEL", "model").replace("data/images/1.png", f"data/{image}")
        _, command, *flags = shlex.split(line, comments=True)
        assert main([command, *flags, *SHORT.get(command, "").split()]) == 0, line
    pairs = manifest_of(Path("run/pairs"))["counts"]["pairs"]
    assert pairs > 0
    assert problems_of(Path("run/pairs")).name == "questions.jsonl"

    scope: dict[str, object] = {}
    exec(block("python", "MPOTrainer(").replace("path/to/model", "model"), scope)  # noqa: S102  # our own README, not data
    trainer = scope["trainer"]
    history = trainer.state.log_history  # type: ignore[attr-defined]
    assert trainer.state.global_step == 3 * -(-pairs // 16)  # type: ignore[attr-defined]
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in history if "loss" in entry)
    assert os.path.isdir("out")
