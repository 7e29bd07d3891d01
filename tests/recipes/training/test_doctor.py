"""`mpo doctor` on the settings of `mpo train-mpo`: what it prints, and when it says no."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from recipes.cli import main
from recipes.config import TrainMPOConfig
from recipes.stage.folder import manifest_of
from recipes.training.train_mpo import train_mpo
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.types import Completion, PreferencePair, Problem


def pair(number: int, *, chosen: str | None = None) -> PreferencePair:
    """Two images of every second problem are twice as wide."""
    problem = Problem(f"p{number}", "How many digits?", (Image.new("RGB", (32 * (1 + number % 2), 32)),))
    text = "one two " * (1 + number % 3) + str(number) if chosen is None else chosen
    return PreferencePair(problem, Completion(text), Completion(f"three {number}"), "correctness")


BAD = pair(9, chosen="a<IMG_CONTEXT>b")


@pytest.fixture
def settings(tmp_path: Path, policy_folder: Path) -> Callable[..., Path]:
    """Write pairs and a YAML file of `mpo train-mpo` for them."""

    def write(pairs: list[PreferencePair], *, policy: Path = policy_folder, **more: object) -> Path:
        write_trl_parquet(pairs, tmp_path / "pairs.parquet")
        values = {
            "policy": str(policy),
            "pairs": str(tmp_path / "pairs.parquet"),
            "out": str(tmp_path / "out"),
            "max_steps": 2,
            "batch_size": 2,
            **more,
        }
        (tmp_path / "mpo.yaml").write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
        return tmp_path / "mpo.yaml"

    return write


@pytest.mark.parametrize("spelling", [[], ["--config"]])
def test_a_healthy_run(
    settings: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], spelling: list[str]
) -> None:
    path = settings([*(pair(i) for i in range(6)), BAD])
    assert main(["doctor", *spelling, str(path), "--learning_rate", "5e-6"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for expected in (
        "train: 7 rows in = 6 kept + 1 rejected",
        "1 control token in a response (p9)",
        "<|im_end|>\\n<|im_start|>assistant\\n'",
        "the template writes before the response: nothing",
        "the response begins: 'one two 0'",
        "y ends with: <|im_end|>",
        "│ image tokens │ 6 │",
        "6 pairs: L = ",
        " = 0.8318 + w_g·L_g, L_g = ",
        "largest implicit reward 0.0e+00: as it must be",
        "layout: shared, since the model can read a shared prompt",
        "δ of L_q: cumulative",
        "reference: runs beside the policy",
        "peak without checkpointing ← this run",
        "2 pairs per step = 2 per device x 1 micro-batches x 1 ranks; 2 steps over 6 rows: 0.67 epochs",
        "│ pairs per step │ 2 │ 256 │",
    ):
        assert expected in printed, printed
    assert "learning_rate │" not in printed  # the flag set it to the paper's
    assert not (tmp_path / "out").exists()


def test_it_rejects_what_training_rejects(settings: Callable[..., Path], tmp_path: Path) -> None:
    """The wide images have more tokens; `train-mpo` with the same settings keeps the same account."""
    from recipes.training.doctor import doctor

    settings([*(pair(i) for i in range(6)), BAD])
    config = _config(tmp_path, max_length=40)
    found = doctor(config)
    assert found.rows.rejected["longer than max_length=40"] > 0
    assert found.rows.rejected["control token in a response"] == 1
    assert max(pair.longer for pair in found.lengths) <= 40
    counts = manifest_of(train_mpo(config))["counts"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (7, found.rows.kept, found.rows.rejected)
    log = json.loads((tmp_path / "out" / "log_history.json").read_text())
    assert log[0]["loss"] == pytest.approx(0.8318 + log[0]["loss/generation"], abs=1e-3)


def _config(folder: Path, **changes: int) -> TrainMPOConfig:
    lines = dict(line.split(": ") for line in (folder / "mpo.yaml").read_text().splitlines())
    paths = {name: Path(lines[name]) for name in ("policy", "pairs", "out")}
    return TrainMPOConfig(**paths, max_steps=2, batch_size=2, **changes)


def test_a_reference_that_will_be_computed_before_costs_nothing(
    settings: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(settings([pair(i) for i in range(4)], max_steps=50))]) == 0
    printed = capsys.readouterr().out
    assert "reference: computed once before step 0 and let go" in printed
    assert re.search(r"│ reference +│ 0\.0", printed)


def test_nothing_to_train_on(settings: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(settings([BAD]))]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mpo: ")]
    assert "no row is left to use: train: 1 rows in = 0 kept + 1 rejected; 1 control token in a response (p9)" in line
    assert main(["doctor", str(settings([]))]) == 2
    assert "holds no pair; build pairs first" in capsys.readouterr().err


def test_a_policy_that_is_not_its_own_reference(
    settings: Callable[..., Path], tmp_path: Path, policy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attention dropout is a number in a model's config, which `disable_dropout` does not reach."""
    noisy = tmp_path / "noisy"
    shutil.copytree(policy_folder, noisy)
    config = json.loads((noisy / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.3
    (noisy / "config.json").write_text(json.dumps(config))
    assert main(["doctor", str(settings([pair(i) for i in range(4)], policy=noisy))]) == 2
    printed = capsys.readouterr()
    assert "POLICY AND REFERENCE DIFFER" in printed.out
    assert "where policy = reference: the two differ" in printed.err


def test_wrong_use(settings: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = settings([pair(0)])
    assert main(["doctor", str(path), "--bta", "0.2"]) == 2
    assert main(["doctor", str(path), "--pairs", str(tmp_path / "none")]) == 2
    assert "run `mpo pairs` first" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "none.yaml")]) == 2
