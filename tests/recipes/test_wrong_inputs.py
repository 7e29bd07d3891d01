"""Every command with every mistake of `wrong_inputs.py`: exit code 2, one line that says it, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.cli import LONGEST_MESSAGE, main
from recipes.commands.table import COMMANDS
from tests.recipes.wrong_inputs import CALLS, MISTAKES, OUT, Good, cells, make_good, numbers, words_of

ROOT = Path(__file__).resolve().parents[2]
# Found when a model or its rows are read; a bar of progress or a warning may stand above the line.
LATE = {"no template", "other columns", "no row", "numbers", "config a number", "no weights"}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Good:
    return make_good(tmp_path_factory.mktemp("good") / "inputs", policy_folder)


def refused(capsys: pytest.CaptureFixture[str], words: list[str], *, alone: bool = True) -> str:
    """The one line of a command that cannot work."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.strip().splitlines() if not line.startswith("threads: ")]
    own = [line for line in lines if line.startswith("mpo: ")]
    assert len(own) == 1, lines
    assert lines[-1] == own[0]
    assert not alone or lines == own, lines
    assert "Traceback" not in said.err + said.out
    assert len(own[0]) <= LONGEST_MESSAGE + len("mpo: ")
    assert not alone or said.out == ""
    return own[0]


def test_the_matrix_is_as_large_as_it_says() -> None:
    assert len(cells()) > 450
    assert {command for command, *_ in cells()} == {*COMMANDS} - {"env"}  # which takes no input
    assert len({kind for call in CALLS.values() for kind in call.values()} & {*MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize("command", CALLS)
def test_wrong_inputs(command: str, good: Good, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All mistakes of one command, each with a message of its own if it fails."""
    failed = []
    for number, (_, flag, mistake) in enumerate(cell for cell in cells() if cell[0] == command):
        given = MISTAKES[CALLS[command][flag]][mistake](good, tmp_path / f"given{number}")
        new = tmp_path / f"new{number}"
        before = _tree(good.folder)
        try:
            refused(capsys, words_of(command, good, new, **{flag: given}), alone=mistake not in LATE)
            assert not new.exists() or CALLS[command][flag] == OUT, [*new.rglob("*")]
            assert _tree(good.folder) == before
        except Exception as error:  # a traceback is what this looks for
            failed.append(f"{flag}, {mistake}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("command", CALLS)
def test_numbers_that_cannot_be(command: str, good: Good, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in numbers(command):
        line = refused(capsys, [*words_of(command, good, tmp_path / "new"), f"--{flag}", value])
        assert f"--{flag}: expected" in line
        assert value in line
    assert not (tmp_path / "new").exists()


SAMPLE, TRAIN = "sample --problems {problems} --out {out}", "train-mpo --policy {model} --pairs {pairs} --out {out}"
GRPO = "train-grpo --policy {model} --problems {problems} --out {out}"
TRAIN_PRM = "train-prm --groups {model} --model {model} --out {out}"
TOGETHER = {
    "counts and soft labels": TRAIN_PRM + " --loss binomial --soft_labels",
    "counts and a threshold": TRAIN_PRM + " --loss binomial --threshold 0.5",
    "counts and class weights": TRAIN_PRM + " --loss binomial --balance_classes",
    "a concentration of labels": TRAIN_PRM + " --concentration 8",
    "a concentration head of labels": TRAIN_PRM + " --concentration_head",
    "one of two thresholds": TRAIN_PRM + " --good_above 0.6",
    "thresholds in the wrong order": TRAIN_PRM + " --good_above 0.4 --bad_below 0.6",
    "two thresholds and one": TRAIN_PRM + " --good_above 0.6 --bad_below 0.4 --threshold 0.5",
    "two policies": SAMPLE + " --policy {model} --base_url http://127.0.0.1:1/v1 --model m",
    "no policy": SAMPLE,
    "a server without its model": SAMPLE + " --base_url http://127.0.0.1:1/v1",
    "workers and a server": SAMPLE + " --base_url http://127.0.0.1:1/v1 --model m --engine ray",
    "many greedy responses": "answer --policy {model} --selector majority --question x --temperature 0 --n 4",
    "epochs and steps": TRAIN + " --epochs 1 --max_steps 5",
    "a choice without a size": "label-steps --groups {model} --policy {model} --out {out} --choose middle",
    "a size without a choice": "label-steps --groups {model} --policy {model} --out {out} --choose_fraction 0.5",
    "earlier labels and a second source": TRAIN_PRM + " --earlier {model} --consensus {model}",
    "labels for a refresh that there is not": "rounds --settings {model} --policy {model} --prm {prm} --out {out} "
    "--problems {problems} --guard {problems} --prm_labels {model}",
    "spreads of a server": "answer --policy {model} --prm {model} --question x --selector lower_bound --prm_base_url "
    "http://127.0.0.1:1/v1 --prm_model m",
    "pessimism of another selector": "answer --policy {model} --prm {model} --question x --pessimism 2",
    "a choice without a PRM": "answer --policy {model} --question x",
    "a PRM for a guard that there is not": TRAIN + " --prm {prm}",
    "a served PRM without its folder": TRAIN + " --guard {problems} --prm_base_url http://127.0.0.1:1/v1 --prm_model m",
    "a served PRM without its name": GRPO + " --prm {prm} --prm_base_url http://127.0.0.1:1/v1",
    "a required flag": "train-mpo --policy {model}",
    "a wrong word": TRAIN + " --dtype float17",
}


@pytest.mark.parametrize("mistake", TOGETHER)
def test_settings_that_exclude_each_other(
    mistake: str, good: Good, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {kind: good[kind] for kind in ("problems", "model", "pairs", "prm")}
    refused(capsys, TOGETHER[mistake].format(**kinds, out=tmp_path / "new").split())
    assert not (tmp_path / "new").exists()


def test_cheap_mistakes_are_found_before_torch_is_imported(good: Good, tmp_path: Path) -> None:
    """A path that is not there, of every command; a missing flag; two that exclude each other. In one process."""
    kinds = {kind: good[kind] for kind in ("problems", "model", "pairs", "prm")}
    commands = [TOGETHER[mistake].format(**kinds, out=tmp_path / "new").split() for mistake in TOGETHER]
    commands += [
        words_of(command, good, tmp_path / "new", **{flag: tmp_path / "missing"})
        for command, flag, mistake in cells()
        if mistake == "missing"
    ]
    code = (
        "import json, sys; from recipes.cli import main; codes = [main(words) for words in json.load(sys.stdin)]; "
        "print(codes, sorted({'torch', 'transformers', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(commands), env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"{[2] * len(commands)} []", done.stderr
    assert len(done.stderr.strip().splitlines()) == len(commands)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(good: Good, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked = tmp_path / "q.jsonl"
    locked.write_bytes(good["problems"].read_bytes())
    locked.chmod(0)
    assert "Permission denied" in refused(capsys, words_of("sample", good, tmp_path / "new", problems=locked))


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [("sklearn.datasets", "world --out {out}", "digits"), ("easy_vqa", "easy-vqa --out {out}", "easy-vqa")],
)
def test_an_extra_that_is_missing(
    package: str, words: str, extra: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from recipes.worlds.digits import world

    world._scans.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(capsys, words.format(out=tmp_path / "new").split())
    assert f"pip install -e '.[{extra}]'" in line
    assert not (tmp_path / "new").exists()


def test_what_was_there_before_stays(good: Good, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only a folder that the refused command made goes again."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    model = MISTAKES["model"]["no template"](good, tmp_path / "model")
    refused(capsys, words_of("sample", good, tmp_path / "mine", policy=model), alone=False)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    refused(capsys, words_of("sample", good, tmp_path / "mine" / "new", policy=model), alone=False)
    assert not (tmp_path / "mine" / "new").exists()


def _tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*") if path.name != ".lock")
