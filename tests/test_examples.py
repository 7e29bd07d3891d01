"""The scripts of examples/, run as they stand, on the tiny policy."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mpo import MPOConfig, MPOTrainer
from mpo.multimodal.errors import ImageError
from mpo.multimodal.loading import load_model

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ANSWERS = ["Red is 3\n\nFinal answer: 3", "Red is 4\n\nBlue is 1\n\nFinal answer: 5"]
QUESTION = [{"role": "user", "content": "How many?"}]
LABELS = [[True, True], [True, False, False]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        Image.new("RGB", (32, 32), (90 * number, 0, 0)).save(tmp_path / "pictures" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, *, image: str = "pictures/{}.png", **columns: Any) -> Path:
    """Two rows with an image each."""
    rows = [{"id": i, "question": "How many?", "images": [image.format(i)], **columns} for i in range(2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_prm_is_trained_and_reranks(
    folder: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = [{"steps": text.split("\n\n"), "right": right} for text, right in zip(ANSWERS, LABELS, strict=True)]
    rows = write(folder / "steps.jsonl", answers=labelled)
    run("train_my_prm.py", policy_folder, rows, folder / "prm", 2, monkeypatch=monkeypatch)
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(scores) == len(LABELS[0])
    assert all(0 <= score <= 1 for score in scores)

    rows = write(folder / "answers.jsonl", responses=[*ANSWERS, "", "<|im_end|>"])
    run("rerank_my_answers.py", folder / "prm", rows, monkeypatch=monkeypatch)
    ranked = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in ranked] == ["0", "0", "1", "1"]
    for pair in (ranked[:2], ranked[2:]):
        assert pair[0]["reward"] >= pair[1]["reward"]
        assert sorted(line["response"] for line in pair) == sorted(ANSWERS)  # two texts are out

    (folder.parent / "outside.png").write_bytes((folder / "pictures" / "0.png").read_bytes())
    rows = write(folder / "answers.jsonl", image="../outside.png", responses=ANSWERS)
    with pytest.raises(ImageError):
        run("rerank_my_answers.py", folder / "prm", rows, monkeypatch=monkeypatch)


def test_pairs_are_trained_on(
    folder: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(folder / "pairs.jsonl", chosen=ANSWERS[0], rejected=ANSWERS[1])
    scope = run("train_on_my_pairs.py", policy_folder, rows, folder / "mpo", 2, monkeypatch=monkeypatch)
    assert scope["trainer"].state.global_step == 2
    assert scope["trainer"].admission["train"].kept == 2
    assert "kept" in capsys.readouterr().out
    before, after = (dict(load_model(path).named_parameters()) for path in (policy_folder, folder / "mpo"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_mpo_as_a_plain_loop(
    folder: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Policy and reference are equal at step 0: the preference and quality parts are 0.8·ln 2 + 0.2·2·ln 2 exactly."""
    rows = write(folder / "pairs.jsonl", prompt=QUESTION, chosen=ANSWERS[0], rejected=ANSWERS[1])
    scope = run("mpo_loop.py", policy_folder, rows, folder / "out", 3, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out.splitlines()
    total, *parts = (float(number) for number in re.findall(r"\bL\w* ([\d.]+)", printed[0]))
    assert parts[:2] == [0.6931, 1.3863]
    assert total - parts[2] == pytest.approx(0.8318, abs=1.1e-4)  # of four printed places
    assert len(printed) == 3
    assert scope["shift"].value != 0
    before, after = (dict(load_model(path).named_parameters()) for path in (policy_folder, folder / "out"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_whole_loop(
    folder: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a policy that answers 3 or 5 to a policy trained on its own pairs; every response is accounted for."""
    taught = [*ANSWERS, "Red is 3\n\nBlue is 2\n\nFinal answer: 5", "Red is 2\n\nFinal answer: 3"]
    args = MPOConfig(
        "taught", max_steps=60, learning_rate=1e-2, per_device_train_batch_size=8, report_to="none",
        preference_weight=0.0, quality_weight=0.0,
    )  # fmt: skip
    rows = [
        {"images": [Image.open(f"pictures/{i % 2}.png")], "prompt": QUESTION, "chosen": text, "rejected": "none"}
        for i, text in enumerate(taught * 2)
    ]
    trainer = MPOTrainer(policy_folder, args=args, train_dataset=rows)
    trainer.train()
    trainer.save_model("taught")
    labelled = [{"steps": text.split("\n\n"), "right": right} for text, right in zip(ANSWERS, LABELS, strict=True)]
    run("train_my_prm.py", policy_folder, write(folder / "steps.jsonl", answers=labelled), folder / "prm", 2,
        monkeypatch=monkeypatch)  # fmt: skip
    problems = [
        {"id": str(i), "question": "How many?", "images": [f"pictures/{i % 2}.png"], "answer": "3"} for i in range(8)
    ]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    capsys.readouterr()

    run("loop.py", "taught", folder / "prm", "problems.jsonl", "out", 2, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert re.search(r"^6 problems x 8 responses: \{.*'correct': [1-9]", printed, re.MULTILINE), printed
    assert re.search(r"^[1-9]\d* pairs; problems without one: ", printed, re.MULTILINE), printed
    for name in ("before", "after"):
        accuracy = [float(value) for value in re.findall(rf"^{name}: \S+ ([\d.]+)% \[", printed, re.MULTILINE)]
        assert len(accuracy) == 4
        assert accuracy[3] >= max(accuracy)  # the oracle's
    assert re.search(r"^How many\? \S+ \(right: 3\), the best of 8$", printed, re.MULTILINE), printed


@pytest.mark.parametrize(("name", "most"), [("mpo_loop.py", 45), ("loop.py", 120)])
def test_the_heart_fits_on_a_screen(name: str, most: int) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= most
