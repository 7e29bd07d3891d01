"""Damaged files and hostile checkpoints: one bounded line, exit code 2, nothing fetched or run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from recipes.cli import LONGEST_MESSAGE, main
from recipes.stage.folder import MANIFEST


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "How many?", "answer": "1"}\n')
    return tmp_path / "q.jsonl"


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that cannot work."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mpo: ")]
    assert len(lines) == 1
    assert len(lines[0]) <= LONGEST_MESSAGE + len("mpo: ")
    return lines[0]


def sampling(policy: Path, problems: Path, out: Path) -> list[object]:
    return ["sample", "--policy", policy, "--problems", problems, "--out", out, "--num_samples", 1,
            "--max_new_tokens", 2]  # fmt: skip


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja",
         "model.safetensors")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "binary", "empty"])
def test_a_damaged_file_of_a_model_is_one_line_that_names_it(
    name: str, damage: str, policy_folder: Path, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for an empty template, which is one."""
    if (name, damage) == ("chat_template.jinja", "empty"):
        return
    model = shutil.copytree(policy_folder, tmp_path / "model")
    whole = (model / name).read_bytes()
    half, binary = whole[: len(whole) // 2], bytes(range(128, 256))
    (model / name).write_bytes({"cut": half, "empty": b"", "binary": binary}[damage])
    line = refused(capsys, *sampling(model, problems, tmp_path / "out"))
    assert name == "chat_template.jinja" or str(model) in line
    assert not (tmp_path / "out" / MANIFEST).exists()


@pytest.mark.parametrize("where", [(), ("text_config",), ("vision_config",)])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["evil/kernel", "evil/kernel@main:forward", {"text_config": "evil/kernel"}, "other"])
def test_no_config_names_code_to_fetch(
    where: tuple[str, ...],
    key: str,
    value: object,
    policy_folder: Path,
    problems: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = shutil.copytree(policy_folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    part = config
    for name in where:
        part = part[name]
    part[key] = value
    (model / "config.json").write_text(json.dumps(config))
    assert "no code is fetched" in refused(capsys, *sampling(model, problems, tmp_path / "out"))


def test_native_attention_may_be_named(policy_folder: Path, problems: Path, tmp_path: Path) -> None:
    model = shutil.copytree(policy_folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attn_implementation": "sdpa"}))
    assert main([*map(str, sampling(model, problems, tmp_path / "out"))]) == 0


@pytest.mark.parametrize(
    "text", [b"problems: [1", b"problems: !!python/object:x {}", b"a\0b: 1", b"\xff\xfe: 1", b"[" * 5000, b"- 1"]
)
def test_settings_that_are_no_yaml(text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_bytes(text)
    refused(capsys, "sample", settings)
    refused(capsys, "pipeline", "--settings", settings, "--run_dir", tmp_path / "run")


def test_an_error_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "x" * 100_000).endswith("…")
