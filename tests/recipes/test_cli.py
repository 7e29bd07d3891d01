"""Wrong use gives one clear line and exit code 2; help is quick and imports nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

from recipes.cli import COMMANDS, main

SETTINGS = Path(__file__).parent / "digits_tiny.yaml"


def refusal(capsys, *arguments: str) -> str:
    """Run a command that must be refused; give its one line."""
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_help_names_every_command_and_imports_no_torch():
    done = without_torch("--help")
    assert all(command in done for command in COMMANDS)


def test_the_help_of_a_command_imports_no_torch():
    assert "--num_samples" in without_torch("sample", "--help")


def without_torch(*arguments: str) -> str:
    """What the command prints, in a process that must not have imported torch at its end."""
    code = (
        "import atexit, os, sys; from recipes.cli import main; "
        "atexit.register(lambda: os._exit(9) if 'torch' in sys.modules else None); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def test_unknown_command(capsys):
    assert "unknown command 'smaple'" in refusal(capsys, "smaple")


def test_unknown_yaml_key_of_a_stage(capsys, tmp_path):
    (tmp_path / "sample.yaml").write_text("policy: p\nproblems: q\nout: o\ntemprature: 0.5\n")
    assert "temprature" in refusal(capsys, "sample", "--config", str(tmp_path / "sample.yaml"))


def test_unknown_key_in_the_pipeline_settings_names_section_and_key(capsys, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("train_mpo: {learning_rte: 0.1}\n")
    line = refusal(capsys, "pipeline", "--settings", str(path), "--run_dir", str(tmp_path / "run"))
    assert "train_mpo.learning_rte" in line
    assert "learning_rate" in line  # the known keys are listed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trian_mpo: {}\n", "unknown section 'trian_mpo'"),
        ("- a\n- b\n", "expected a mapping of sections, got list"),
        ("train_mpo: {max_steps: many}\n", "train_mpo.max_steps"),
        ("train_mpo: {seed: 0\n", "not valid YAML"),
        ("train_mpo: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_wrong_settings(capsys, tmp_path, text, expected):
    (tmp_path / "settings.yaml").write_text(text)
    arguments = ["--settings", str(tmp_path / "settings.yaml"), "--run_dir", str(tmp_path / "run")]
    assert expected in refusal(capsys, "pipeline", *arguments)


def test_missing_settings_file(capsys, tmp_path):
    line = refusal(capsys, "pipeline", "--settings", str(tmp_path / "none.yaml"), "--run_dir", str(tmp_path))
    assert "none.yaml" in line


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("verify", ["--groups"]),
        ("score", ["--prm", "--groups"]),
        ("pairs", ["--groups"]),
        ("best-of-n", ["--groups"]),
        ("train-prm", ["--model", "--groups"]),
        ("sample", ["--policy", "--problems"]),
    ],
)
def test_a_stage_before_its_predecessor(capsys, tmp_path, command, flags):
    inputs = [part for flag in flags for part in (flag, str(tmp_path / "missing"))]
    line = refusal(capsys, command, *inputs, "--out", str(tmp_path / "out"))
    assert "does not exist; run the stage that writes it first" in line
    assert not (tmp_path / "out").exists()


def test_report_of_a_folder_that_is_no_run(capsys, tmp_path):
    refusal(capsys, "report", "--run", str(tmp_path))
