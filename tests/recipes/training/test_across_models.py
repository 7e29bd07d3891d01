"""Samples of one model train a model of another architecture; an image that a model refuses costs its own rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from math import log
from pathlib import Path

import pytest
from PIL import Image

from mpo.admission import admit
from mpo.collator import PreferenceCollator
from mpo.multimodal.loading import load_model, load_processor
from recipes.cli import main
from recipes.stage.folder import MANIFEST, manifest_of
from recipes.stage.groups import read_groups
from recipes.stage.vouching import vouched
from rewards.interchange.trl_rows import read_trl_parquet, to_trl_row, write_trl_parquet
from rewards.sampling.transformers_generator import SamplingParams, TransformersGenerator
from rewards.types import Completion, PreferencePair, Problem
from tests.recipes.tiny_checkpoints import build_qwen2_5_vl

# A rule that a random policy meets half the time, so that real samples make real pairs; nothing with a control token.
CHECKS = """
from rewards.types import Verdict

def even_words(problem, text):
    if "<" in text or not text.strip():
        return Verdict.ERROR
    return Verdict.WRONG if len(text.split()) % 2 else Verdict.CORRECT
"""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_qwen2_5_vl(tmp_path_factory.mktemp("qwen") / "policy")


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "parity_checks.py").write_text(CHECKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "parity_checks:even_words"
    sys.modules.pop("parity_checks", None)


def run(command: str, **flags: object) -> None:
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert main([command, *words]) == 0


def questions(folder: Path, **sizes: tuple[int, int]) -> Path:
    """One question a name, about an image of that size."""
    for name, size in sizes.items():
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
    rows = [{"id": name, "question": "How many digits?", "images": [f"{name}.png"], "answer": "1"} for name in sizes]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "questions.jsonl"


def test_samples_of_one_architecture_train_another(
    policy_folder: Path, qwen: Path, checks: str, tmp_path: Path
) -> None:
    """InternVL's samples → pairs.parquet → Qwen2.5-VL: all rows admitted, and 0.8·ln 2 + 0.2·2·ln 2 + L_g at step 0."""
    folders = {name: tmp_path / name for name in ("samples", "verified", "pairs", "mpo")}
    given = questions(tmp_path, **{f"p{i}": (32 + 32 * (i % 3), 64) for i in range(6)})
    run("sample", policy=policy_folder, problems=given, out=folders["samples"], num_samples=8, max_new_tokens=8)
    samples = [rollout.completion for group in read_groups(folders["samples"]) for rollout in group.rollouts]
    assert len({sample.text for sample in samples}) > 24
    # A random policy is cut at its limit; here its texts are whole answers.
    path = folders["samples"] / "groups.jsonl"
    path.write_text(path.read_text().replace('"finish_reason": "length"', '"finish_reason": "stop"'))
    manifest = folders["samples"] / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": vouched(folders["samples"])}))
    run("verify", groups=folders["samples"], out=folders["verified"], verifier=checks)
    run("pairs", groups=folders["verified"], out=folders["pairs"], rule="correctness")
    rows = len(read_trl_parquet(folders["pairs"] / "pairs.parquet"))
    assert rows >= 8
    run("train-mpo", policy=qwen, pairs=folders["pairs"], out=folders["mpo"], max_steps=3, batch_size=4)
    counts = manifest_of(folders["mpo"])["counts"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (rows, rows, {})
    first = json.loads((folders["mpo"] / "log_history.json").read_text())[0]
    assert first["loss/preference"] == pytest.approx(log(2), abs=1e-4)
    assert first["loss/quality"] == pytest.approx(2 * log(2), abs=1e-4)
    assert first["loss"] == pytest.approx(1.2 * log(2) + first["loss/generation"], abs=1e-3)
    before, after = load_model(qwen), load_model(folders["mpo"])
    assert type(after).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert any((a != b).any() for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_a_picture_that_the_processor_refuses_costs_its_own_samples(qwen: Path, tmp_path: Path) -> None:
    """Qwen's `smart_resize` takes no image over 200 times as long as wide; the neighbours' draw stays."""
    sampled = {}
    for name, sizes in (
        ("with", {"a": (64, 64), "thin": (1, 3000), "b": (64, 96)}),
        ("without", {"a": (64, 64), "b": (64, 96)}),
    ):
        (tmp_path / name).mkdir()
        given = questions(tmp_path / name, **sizes)
        out = tmp_path / name / "samples"
        run("sample", policy=qwen, problems=given, out=out, num_samples=2, max_new_tokens=4)
        sampled[name] = {group.problem.id: group.rollouts for group in read_groups(out)}
    assert sampled["with"] == sampled["without"]
    assert sampled["with"].keys() == {"a", "b"}
    counts = manifest_of(tmp_path / "with" / "samples")["counts"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (6, 4, {"refused by the processor": 2})
    (row,) = map(json.loads, (tmp_path / "with" / "samples" / "quarantine.jsonl").read_text().splitlines())
    assert (row["id"], "aspect ratio" in row["detail"]) == ("thin", True)


def test_samples_of_several_problems_are_those_of_each_alone(qwen: Path) -> None:
    """M-RoPE: each of n rows goes on at its own prompt's position; top_k = 1 makes sampling greedy."""
    pictures = [Image.effect_noise(size, 90).convert("RGB") for size in ((64, 64), (112, 56), (56, 168))]
    problems = [Problem(f"p{i}", "How many digits?", (picture,)) for i, picture in enumerate(pictures)]
    model, processor = load_model(qwen).eval(), load_processor(qwen)

    def drawn(asked: list[Problem], n: int, **settings: float) -> list[list[str]]:
        generator = TransformersGenerator(model, processor, SamplingParams(max_new_tokens=12, **settings))
        return [[completion.text for completion in row] for row in generator.generate(asked, n, seed=0)]

    alone = [drawn([problem], 1, temperature=0.0)[0] for problem in problems]
    assert len({text for (text,) in alone}) > 1
    assert drawn(problems, 2, top_k=1) == [row * 2 for row in alone]


@pytest.mark.parametrize("max_length", [None, 4096])
def test_a_picture_that_the_processor_refuses_is_not_admitted(
    qwen: Path, tmp_path: Path, max_length: int | None
) -> None:
    """It is found before step 0, with and without a limit of length."""
    pictures = [Image.new("RGB", size) for size in ((64, 64), (1, 3000), (96, 64))]
    pairs = [
        PreferencePair(Problem(f"p{i}", "How many?", (picture,)), Completion("one"), Completion("two"), "r")
        for i, picture in enumerate(pictures)
    ]
    write_trl_parquet(pairs, tmp_path / "pairs.parquet")
    collator = PreferenceCollator(load_processor(qwen))
    for rows in (read_trl_parquet(tmp_path / "pairs.parquet"), [to_trl_row(pair) for pair in pairs]):
        kept, report = admit(rows, collator, max_length=max_length, quiet=True)
        assert [row["problem_id"] for row in kept] == ["p0", "p2"]
        assert report.rejected == {"prompt that the processor refuses": 1}
