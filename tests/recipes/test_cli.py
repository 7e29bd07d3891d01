"""Wrong use gives one clear line and exit code 2; help is quick and imports nothing heavy."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

import mpo
from mpo.multimodal.jpeg import Jpeg
from recipes import config
from recipes.answering.prm_eval import READERS
from recipes.cli import _parsed, main
from recipes.commands.parse import choices, hints, is_required
from recipes.commands.shipped import find_settings
from recipes.commands.table import COMMANDS, GROUPS
from recipes.data.convert_data import PAIR_FORMATS
from recipes.data.convert_steps import READERS as STEP_READERS
from recipes.data.import_forms import FORMS
from recipes.loop.pipeline import ARMS, REINFORCED
from recipes.loop.settings import Settings
from recipes.training.grpo_run import ALGORITHMS
from recipes.training.tracking import PLACES
from rewards.choosing.selection import CHOICES
from rewards.choosing.votes import REWARD
from rewards.pairing.rules import RULES
from rewards.pairing.spans import PARTS, SOURCES
from rewards.prm.labelling.budgets import BUDGETS
from rewards.prm.labelling.choice import RULES as CHOOSING
from rewards.scoring.aggregation import AGGREGATIONS

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
SETTINGS = Path(__file__).parent / "digits_tiny.yaml"


def refusal(capsys, *arguments: str) -> str:
    """Run a command that must be refused; give its one line."""
    assert main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("threads: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_help_names_every_command_in_its_group_and_imports_no_torch():
    lines = without_torch("--help").splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [f"{name}:" for name in GROUPS]
    assert len(lines) <= 56  # one screen of a tall window
    assert max(map(len, lines)) <= 110
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)


def test_the_help_of_a_command_imports_no_torch():
    assert "--num_samples" in without_torch("sample", "--help")


def test_settings_and_version_import_no_torch():
    listed = without_torch("settings")
    for file in [*CONFIGS.glob("*.yaml"), *CONFIGS.parent.glob("accelerate/*.yaml")]:
        (line,) = [line for line in listed.splitlines() if line.startswith(f"  {file.stem} ")]
        assert 20 < len(line.split(maxsplit=1)[1]) < 120, line
    assert without_torch("settings", "own_data") == (CONFIGS / "own_data.yaml").read_text()
    assert without_torch("--version") == f"mpo-prm {mpo.__version__}\n"


@pytest.mark.parametrize("words", ["--help", "sample --help", "settings"])
def test_a_reader_that_leaves_is_no_error(words):
    """`mpo … | head`: the pipe is closed before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "recipes.cli", *words.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command(command, capsys, monkeypatch):
    """Required flags first, every flag once and explained, choices listed, and an example that parses, last."""
    monkeypatch.setenv("COLUMNS", "100")
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    config_class = getattr(config, COMMANDS[command].config)
    assert all(len(line) <= 100 for line in printed.splitlines() if not line.startswith("  mpo "))
    shown = re.findall(r"^  --(\w+)", printed, re.MULTILINE)
    assert sorted(shown) == sorted(field.name for field in fields(config_class))
    required = [field.name for field in fields(config_class) if is_required(field)]
    assert shown[: len(required)] == required
    assert printed.count("required:") == len(required)
    assert "None" not in printed
    assert all(field.metadata["help"] for field in fields(config_class))
    for kind in hints(config_class).values():
        assert not choices(kind) or f"[{', '.join(choices(kind))}]" in " ".join(printed.split())
    example = printed.strip().splitlines()[-1]
    name, *words = shlex.split(example)[1:]
    assert name == command
    if "own_data.yaml" in words:
        words[0] = "own_data"
    parsed = _parsed([name, *words[: words.index(">") if ">" in words else None]])
    assert isinstance(parsed, config_class)


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (config.Aggregation, AGGREGATIONS),
        (config.Algorithm, ALGORITHMS),
        (config.Arm, [*ARMS, *REINFORCED]),
        (config.BenchmarkKind, READERS),
        (config.Budget, BUDGETS),
        (config.Choose, {"all", *CHOOSING}),
        (config.DataFormat, {*PAIR_FORMATS, *STEP_READERS}),
        (config.Jpeg, get_args(Jpeg)),
        (config.PublishedForm, FORMS),
        (config.RejectedPart, PARTS),
        (config.Selector, CHOICES),
        (config.SpanSource, SOURCES),
        (config.Tracker, ("none", *PLACES)),
        (config.VoteBy, (REWARD, *AGGREGATIONS)),
    ],
)
def test_choices_are_those_of_the_code(kind, table):
    assert set(get_args(kind)) == set(table)


def test_pairing_rules_are_those_of_the_code():
    assert set(get_args(config.Rule)) == {*RULES, "dropout_ntp"}


def without_torch(*arguments: str) -> str:
    """What the command prints, in a process that must not have imported torch at its end."""
    code = (
        "import atexit, os, sys; from recipes.cli import main; "
        "atexit.register(lambda: os._exit(9) if 'torch' in sys.modules else None); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("smaple", "unknown command 'smaple'; did you mean 'sample'?"),
        ("sample --polcy p --problems q --out o", "--polcy: no such flag; did you mean '--policy'?"),
        ("sample --problems q --out o --num_samples many", "--num_samples: expected a whole number, got 'many'"),
        ("sample --problems q --out o --temperature hot", "--temperature: expected a number, got 'hot'"),
        ("sample --problems q --out o --logprobs perhaps", "--logprobs: expected true or false, got 'perhaps'"),
        ("sample --problems q", "sample: expected --out as well"),
        ("sample --problems q --out", "--out: expected one argument"),
        ("verify --groups a --out b c", "'c' belongs to no flag"),
        ("score --groups a --prm b --out c --read topp", "got 'topp'; did you mean 'top'?"),
        ("best-of-n --groups a --out b --ks 1 two", "--ks: expected a whole number, or several, got 'two'"),
        ("pipeline digits --run_dir r --arms mpo dop", "got 'dop'; did you mean 'dpo'?"),
        ("train-mpo paper_mpi --policy a --pairs b --out c", "did you mean 'paper_mpo'?"),
        ("train-mpo paper_mpo --policy a --pairs b --out c --learning_rate -1", "expected a number above 0, got '-1'"),
        ("settings own_dta", "did you mean 'own_data'?"),
    ],
)
def test_wrong_words(capsys, words, expected):
    assert expected in refusal(capsys, *words.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("temprature: 0.5\n", "sample.yaml: temprature is unknown; did you mean 'temperature'?"),
        ("num_samples: many\n", "sample.yaml: num_samples: expected a whole number, got 'many'"),
        ("policy: [a\n", "not valid YAML"),
        ("- policy\n", "expected a mapping"),
        ("1: policy\n", "expected a mapping"),
    ],
)
def test_wrong_yaml_of_a_stage(capsys, tmp_path, text, expected):
    (tmp_path / "sample.yaml").write_text(text)
    flags = ["--problems", "q", "--out", "o"]
    assert expected in refusal(capsys, "sample", "--config", str(tmp_path / "sample.yaml"), *flags)


def test_the_forms_that_a_flag_may_have(tmp_path, monkeypatch):
    """With `_` or `-`, with `=` or a space, a switch alone or with a value; flags win over the file."""
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("problems: q\nout: o\nnum_samples: 3\ntop_k: 5\nbase_url: http://a/v1\nlogprobs: yes\n")
    parsed = _parsed(["sample", "my.yaml", "--num-samples", "4", "--temperature=0.1", "--parquet", "--no_logprobs"])
    assert (parsed.num_samples, parsed.top_k, parsed.temperature) == (4, 5, 0.1)
    assert (parsed.parquet, parsed.logprobs, parsed.base_url) == (True, False, ["http://a/v1"])
    assert parsed.problems == Path("q")
    parsed = _parsed(["pairs", "--groups", "g", "--out", "o", "--format_negatives", "false", "--mmpr", "true"])
    assert (parsed.format_negatives, parsed.mmpr, parsed.policy) == (False, True, None)


def test_a_file_of_the_users_wins_over_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_settings("own_data") == find_settings("own_data.yaml") == CONFIGS / "own_data.yaml"
    assert Settings(Path("digits")).path == CONFIGS / "digits.yaml"
    Path("own_data.yaml").write_text("own: {}\n")
    assert find_settings("own_data") == Path("own_data.yaml")


@pytest.mark.parametrize("package", ["mpo", "rewards"])
def test_a_file_of_the_users_that_hides_a_package(tmp_path, package):
    (tmp_path / f"{package}.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parents[1])}
    command = [sys.executable, "-m", "recipes.cli", "env"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"mpo: {tmp_path}/{package}.py hides the package {package!r} of mpo-prm; rename it\n"


def test_unknown_key_in_the_pipeline_settings_names_section_and_key(capsys, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("train_mpo: {learning_rte: 0.1}\n")
    line = refusal(capsys, "pipeline", "--settings", str(path), "--run_dir", str(tmp_path / "run"))
    assert "train_mpo.learning_rte" in line
    assert "did you mean 'learning_rate'?" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trian_mpo: {}\n", "unknown section 'trian_mpo'"),
        ("- a\n- b\n", "expected a mapping of keys and values, got list"),
        ("train_mpo: {max_steps: many}\n", "train_mpo.max_steps: expected a whole number, got 'many'"),
        ("train_mpo: [1]\n", "train_mpo: expected a mapping"),
        ("own: {policy: p}\n", "own.preference_problems"),
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
