"""The cards of `mpo train-mpo` and `mpo train-prm`: true, loadable as they say, nothing of this machine in them."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from recipes.config import TrainMPOConfig, TrainPRMConfig
from recipes.stage.cards import fenced
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_problems
from recipes.training.train_mpo import train_mpo
from recipes.training.train_prm import train_prm
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.types import Completion, MonteCarloCount, PreferencePair, Problem, Rollout, RolloutGroup
from tests.recipes.run_folders import make_problems, write_stage

HOSTILE = "base`<img src=x onerror=alert(1)>|**[x](javascript:1)"
FORMAT = """name: mine
layout: end
system: "```\\n<script>alert(1)</script> # not a heading"
"""


@pytest.fixture(scope="module")
def base(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy in a folder whose name would be Markdown and HTML."""
    return Path(shutil.copytree(policy_folder, tmp_path_factory.mktemp("models") / HOSTILE))


@pytest.fixture(scope="module")
def policy_card(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mpo")
    picture = Image.new("RGB", (32, 32))
    problem = Problem("p", "How many digits?", (picture,))
    pairs = [PreferencePair(problem, Completion(f"one {i}"), Completion(f"two {i}"), "correctness") for i in range(4)]
    pairs.append(PreferencePair(problem, Completion("one"), Completion("a <|im_end|> b"), "correctness"))
    write_trl_parquet(pairs, folder / "pairs.parquet")
    config = TrainMPOConfig(base, folder / "pairs.parquet", folder / "out", max_steps=2, batch_size=2, lora_rank=2)
    return train_mpo(config) / "README.md"


@pytest.fixture(scope="module")
def prm_card(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prm")
    (folder / "mine.yaml").write_text(FORMAT)
    problems = make_problems(folder, "labelled", 4, random.Random(0))
    counts = tuple(MonteCarloCount(*pair) for pair in ((4, 4), (0, 4)))
    rollout = Rollout(Completion("Red is 3\n\nFinal answer: 4"), mc=counts, label_source="mc:full:4")
    groups = [RolloutGroup(problem, (rollout,)) for problem in read_problems(problems).values()]
    config = TrainPRMConfig(
        groups=write_stage(folder / "groups", groups, problems),
        model=base,
        out=folder / "out",
        prm_format=str(folder / "mine.yaml"),
        max_steps=2,
        batch_groups=2,
    )
    return train_prm(config) / "README.md"


def python_of(card: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the card's own Python lines in its folder."""
    monkeypatch.chdir(card.parent)
    Image.new("RGB", (32, 32)).save("image.png")
    (text,) = re.findall(r"```python\n(.*?)\n```", card.read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(text.replace("path/to/this/folder", "."), scope)  # noqa: S102  # our own template, not data
    return scope


def test_the_metadata_is_the_hubs(policy_card: Path, prm_card: Path) -> None:
    for card, tag in ((policy_card, "mpo"), (prm_card, "process-reward-model")):
        data = ModelCard.load(card).data
        assert data.base_model == HOSTILE
        assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")
        assert data.datasets == ["local"]
        assert tag in data.tags


def test_settings_counts_and_log_are_those_of_the_run(policy_card: Path, prm_card: Path) -> None:
    text = policy_card.read_text()
    assert "| weights w_p, w_q, w_g | 0.8, 0.2, 1.0 |" in text
    assert "| β | 0.1 |" in text
    assert "| δ | cumulative, " in text
    counts = manifest_of(policy_card.parent)["counts"]
    assert (counts["in"], counts["out"]) == (5, 4)
    assert "| pairs given | 5 |" in text
    assert "| trained on | 4 |" in text
    ((reason, number),) = counts["rejected"].items()
    assert f"| left out: `{reason}` | {number} |" in text
    assert "| `loss/quality` |" in text
    assert "step" in prm_card.read_text()
    assert '"layout": "end"' in prm_card.read_text()


def test_nothing_escapes_and_no_path_is_told(policy_card: Path, prm_card: Path) -> None:
    for card in (policy_card, prm_card):
        body = card.read_text().split("---\n", maxsplit=2)[2]
        assert str(card.parent.parent) not in card.read_text()
        assert "/tmp" not in card.read_text()
        outside = re.sub(r"^(`{3,})\w*\n.*?^\1$|`[^`\n]+`", "", body, flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"<img|<script|javascript:", outside)
    assert not (policy_card.parent / "adapter" / "README.md").exists()  # PEFT's own names the base model's path


def test_the_lines_for_loading_run(policy_card: Path, prm_card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert python_of(policy_card, monkeypatch)["model"].config.model_type == "internvl"
    assert len(python_of(prm_card, monkeypatch)["prm"].score(Problem("1", "?"), ["a\n\nb"])[0].values) == 2


def test_a_fence_is_longer_than_those_inside() -> None:
    assert fenced("a ```` b", "json") == "`````json\na ```` b\n`````"
