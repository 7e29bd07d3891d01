"""One good input of every kind, and what people give by mistake instead of it; for `test_wrong_inputs.py`."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from recipes import config as configs
from recipes.commands.parse import hints
from recipes.commands.table import COMMANDS
from recipes.stage.folder import MANIFEST
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.pairing.rules import build_pairs
from rewards.prm.formats import find_format
from rewards.prm.model_prm import CONTRACT
from tests.recipes.run_folders import make_groups, make_problems, score_all, with_counts, write_stage
from tests.rewards.conversion.chat_checkpoints import QWEN, write_chat_checkpoint

MODEL, PROBLEMS, GUARD, GROUPS, PRM, PAIRS = "model", "problems", "guard", "groups", "prm", "pairs"
SETTINGS, RUN, CHECKPOINT, IMAGE, OUT = "settings", "run", "checkpoint", "image", "out"


@dataclass(frozen=True)
class Good:
    """A folder with one good input of each kind; `out` does not exist yet."""

    folder: Path

    def __getitem__(self, kind: str) -> Path:
        names = {
            PROBLEMS: "data/questions.jsonl",
            GUARD: "data/guard.jsonl",
            PAIRS: "pairs/pairs.parquet",
            SETTINGS: "own.yaml",
            IMAGE: "one.png",
        }
        return self.folder / names.get(kind, kind)


def make_good(folder: Path, policy_folder: Path) -> Good:
    """Small and real: a tiny policy, four problems with images, labelled and scored responses, pairs, a PRM."""
    good, rng = Good(folder), random.Random(0)
    shutil.copytree(policy_folder, good[MODEL])
    shutil.copytree(policy_folder, good[PRM])
    (good[PRM] / CONTRACT).write_text(json.dumps(find_format("step_end").to_dict()))
    problems = make_problems(folder / "data", "questions", 4, rng)
    guard = make_problems(folder / "data", "guard", 2, rng)
    shutil.copyfile(folder / "data" / "images" / "questions-0.png", good[IMAGE])
    made = [*make_groups(problems, 4, 0.5, rng)[:3], *make_groups(problems, 4, 0.0, rng)[3:]]  # the last: all wrong
    groups = with_counts(score_all(made, rng), rng)
    write_stage(good[GROUPS], groups, problems)
    pairs, _ = build_pairs(groups)
    good[PAIRS].parent.mkdir()
    write_trl_parquet(pairs, good[PAIRS])
    own = {"policy": good[MODEL], "prm": good[PRM], "preference_problems": problems, "test_problems": guard}
    settings = {"own": {key: str(path) for key, path in own.items()}, "refresh_prm": {"prm_format": "step_end"}}
    good[SETTINGS].write_text(yaml.safe_dump(settings))
    write_chat_checkpoint(good[CHECKPOINT], QWEN)
    return good


# Command → flag → the kind of input that it takes, or a value.
CALLS: dict[str, dict[str, str]] = {
    "sample": {"policy": MODEL, "problems": PROBLEMS, "out": OUT},
    "split": {"problems": PROBLEMS, "out": OUT},
    "import": {"form": "=problems", "source": PROBLEMS, "out": OUT},
    "import-responses": {"responses": PROBLEMS, "out": OUT},
    "rate": {"groups": GROUPS, "by": "=self_certainty", "out": OUT},
    "overlap": {"training": PROBLEMS, "test": GUARD, "out": OUT},
    "verify": {"groups": GROUPS, "out": OUT},
    "label-steps": {"groups": GROUPS, "policy": MODEL, "out": OUT},
    "score": {"groups": GROUPS, "prm": PRM, "out": OUT},
    "continue": {"groups": GROUPS, "policy": MODEL, "out": OUT},
    "pairs": {"groups": GROUPS, "out": OUT},
    "convert-data": {"source_format": "=trl", "target_format": "=mmpr", "source": PAIRS, "out": OUT},
    "train-prm": {"groups": GROUPS, "model": MODEL, "out": OUT, "consensus": GROUPS, "prm_format": "=step_end"},
    "train-mpo": {"policy": MODEL, "pairs": PAIRS, "prm": PRM, "guard": GUARD, "out": OUT},
    "train-grpo": {"policy": MODEL, "problems": PROBLEMS, "prm": PRM, "guard": GUARD, "out": OUT},
    "doctor": {"policy": MODEL, "pairs": PAIRS, "out": OUT},
    "warm-start": {"policy": MODEL, "demonstrations": GROUPS, "out": OUT},
    "convert": {"checkpoint": CHECKPOINT, "out": OUT},
    "answer": {"policy": MODEL, "prm": PRM, "image": IMAGE, "question": "=How many?"},
    "best-of-n": {"groups": GROUPS, "out": OUT},
    "rerank": {"groups": GROUPS},
    "serve": {"prm": PRM, "port": "=0"},
    "evaluate": {"settings": SETTINGS, "out": OUT},
    "beam-search": {"policy": MODEL, "prm": PRM, "problems": PROBLEMS, "out": OUT},
    "prm-eval": {"prm": PRM, "benchmark": GROUPS, "kind": "=groups", "out": OUT},
    "pipeline": {"settings": SETTINGS, "run_dir": OUT},
    "evidence": {"settings": SETTINGS, "run_dir": OUT},
    "rounds": {
        "settings": SETTINGS,
        "policy": MODEL,
        "prm": PRM,
        "problems": PROBLEMS,
        "guard": GUARD,
        "out": OUT,
        "prm_labels": GROUPS,
        "refresh_budget": "=16",
    },
    "settings": {"name": SETTINGS},
    "report": {"run": RUN},
    "view": {"run": RUN},
    "check": {"run": RUN},
    "world": {"out": OUT},
    "easy-vqa": {"out": OUT},
    "label-exact": {"groups": GROUPS, "policy": MODEL, "out": OUT},
    "deepen": {"policy": MODEL, "out": OUT},
}

Make = Callable[[Good, Path], Path]  # (good inputs, a path to write to) → what is given instead


def _missing(good: Good, path: Path) -> Path:
    return path


def _empty_folder(good: Good, path: Path) -> Path:
    path.mkdir()
    return path


def _written(content: bytes, name: str = "") -> Make:
    def make(good: Good, path: Path) -> Path:
        target = path / name if name else path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
        return target

    return make


def _other(kind: str) -> Make:
    return lambda good, path: good[kind]


def _changed(kind: str, name: str, content: bytes | int | None) -> Make:
    """A copy of the good folder with one file replaced, cut to its first bytes, or left out."""

    def make(good: Good, path: Path) -> Path:
        shutil.copytree(good[kind], path)
        if content is None:
            (path / name).unlink()
        else:
            (path / name).write_bytes((path / name).read_bytes()[:content] if isinstance(content, int) else content)
        return path

    return make


def _hand_made(manifest: bytes | None) -> Make:
    """Groups without the manifest of a stage, or with one that somebody wrote."""

    def make(good: Good, path: Path) -> Path:
        path.mkdir()
        shutil.copyfile(good[GROUPS] / "groups.jsonl", path / "groups.jsonl")
        if manifest is not None:
            (path / MANIFEST).write_bytes(manifest)
        return path

    return make


def _parquet(**columns: list[object]) -> Make:
    def make(good: Good, path: Path) -> Path:
        target = path.with_suffix(".parquet")
        pq.write_table(pa.table(columns), target)
        return target

    return make


def _no_template(good: Good, path: Path) -> Path:
    shutil.copytree(good[MODEL], path)
    (path / "chat_template.jinja").unlink()
    return path


def _below_a_file(good: Good, path: Path) -> Path:
    path.write_text("a file")
    return path / "out"


def _without_letters(good: Good, path: Path) -> Path:
    path.write_bytes(bytes(range(128, 256)))
    return path


_ROW = b'{"id": "a", "question": "How many?", "answer": "1", "images": %s}\n'
_MODELS: dict[str, Make] = {
    "missing": _missing,
    "a file": _written(b"weights"),
    "an empty folder": _empty_folder,
    "groups": _other(GROUPS),
    "config cut": _changed(MODEL, "config.json", 100),
    "config a list": _changed(MODEL, "config.json", b"[1, 2]"),
    "config a number": _changed(MODEL, "config.json", b"7"),
    "config empty": _changed(MODEL, "config.json", b"{}"),
    "no config": _changed(MODEL, "config.json", None),
    "no tokenizer": _changed(MODEL, "tokenizer.json", None),
    "no template": _no_template,
    "weights cut": _changed(MODEL, "model.safetensors", 1000),
    "no weights": _changed(MODEL, "model.safetensors", None),
}
_PROBLEMS: dict[str, Make] = {
    "missing": _missing,
    "a folder": _empty_folder,
    "empty": _written(b""),
    "binary": _without_letters,
    "a list": _written(b"[1, 2]\n"),
    "a number": _written(b"7\n"),
    "one JSON array of rows": _written(b"[\n" + _ROW % b"[]" + b"]\n"),
    "no questions": _written(b'{"id": "a", "text": "How many?"}\n'),
    "a list in images": _written(_ROW % b'[["x.png"]]'),
    "a number in images": _written(_ROW % b"7"),
    "an image that is not there": _written(_ROW % b'["x.png"]'),
    "a model": _other(MODEL),
    "settings": _other(SETTINGS),
}
MISTAKES: dict[str, dict[str, Make]] = {
    MODEL: _MODELS,
    PRM: {
        "missing": _missing,
        "a file": _written(b"weights"),
        "a policy": _other(MODEL),
        "groups": _other(GROUPS),
        "contract cut": _changed(PRM, CONTRACT, 20),
        "contract a list": _changed(PRM, CONTRACT, b"[]"),
        "contract a number": _changed(PRM, CONTRACT, b"1"),
        "contract empty": _changed(PRM, CONTRACT, b"{}"),
        "weights cut": _changed(PRM, "model.safetensors", 1000),
        "config cut": _changed(PRM, "config.json", 100),
        "no tokenizer": _changed(PRM, "tokenizer.json", None),
    },
    PROBLEMS: _PROBLEMS,
    GUARD: _PROBLEMS,
    GROUPS: {
        "missing": _missing,
        "a file": _written(b"{}"),
        "an empty folder": _empty_folder,
        "hand-made": _hand_made(None),
        "hand-made manifest": _hand_made(b"{}"),
        "manifest a list": _hand_made(b"[]"),
        "manifest a number": _hand_made(b"3"),
        "manifest cut": _changed(GROUPS, MANIFEST, 50),
        "groups cut": _changed(GROUPS, "groups.jsonl", 200),
        "no groups": _changed(GROUPS, "groups.jsonl", None),
        "questions": _other(PROBLEMS),
        "a model": _other(MODEL),
    },
    PAIRS: {
        "missing": _missing,
        "an empty folder": _empty_folder,
        "empty": _written(b""),
        "questions": _other(PROBLEMS),
        "no Parquet": _written(b"PAR1 is how it starts", "pairs.parquet"),
        "other columns": _parquet(text=["a"]),
        "numbers": _parquet(images=[1], prompt=[2], chosen=[3], rejected=[4]),
        "no row": _parquet(images=[], prompt=[], chosen=[], rejected=[]),
        "a model": _other(MODEL),
    },
    SETTINGS: {
        "missing": _missing,
        "a folder": _empty_folder,
        "empty": _written(b""),
        "no YAML": _written(b"own: [1"),
        "a tab": _written(b"own:\n\tpolicy: x\n"),
        "a list": _written(b"- own\n"),
        "a number": _written(b"7\n"),
        "binary": _without_letters,
        "unknown section": _written(b"onw: {}\n"),
        "a list for a section": _written(b"train_mpo: [1]\n"),
        "a word for a number": _written(b"train_mpo: {max_steps: many}\n"),
    },
    RUN: {
        "missing": _missing,
        "a file": _written(b"<html>"),
        "an empty folder": _empty_folder,
        "a model": _other(MODEL),
    },
    CHECKPOINT: {
        "missing": _missing,
        "a file": _written(b"weights"),
        "an empty folder": _empty_folder,
        "groups": _other(GROUPS),
        "converted already": _other(MODEL),
        "config cut": _changed(CHECKPOINT, "config.json", 100),
        "config a list": _changed(CHECKPOINT, "config.json", b"[1]"),
        "index cut": _changed(CHECKPOINT, "model.safetensors.index.json", 30),
        "weights cut": _changed(CHECKPOINT, "model-00001-of-00003.safetensors", 100),
        "no weights": _changed(CHECKPOINT, "model-00002-of-00003.safetensors", None),
        "no tokenizer": _changed(CHECKPOINT, "tokenizer_config.json", None),
    },
    IMAGE: {
        "missing": _missing,
        "a folder": _empty_folder,
        "no image": _written(b"hello"),
        "empty": _written(b""),
        "an address": lambda good, path: Path("http://example.org/a.png"),
    },
    OUT: {"a file": _written(b"in the way"), "below a file": _below_a_file},
}
# Inputs that a command takes although they are mistakes elsewhere.
FINE = {
    *(("settings", "name", text) for text in ("empty", "no YAML", "a tab", "a list", "a number", "unknown section")),
    *(("settings", "name", text) for text in ("a list for a section", "a word for a number")),  # it prints the file
    ("deepen", "policy", "no template"),  # nothing is asked
    ("doctor", "out", "a file"),  # it writes nothing
    ("doctor", "out", "below a file"),
}


def cells() -> list[tuple[str, str, str]]:
    """(command, flag, mistake): every mistake with every input of every command."""
    return [
        (command, flag, mistake)
        for command, call in CALLS.items()
        for flag, kind in call.items()
        for mistake in MISTAKES.get(kind, ())
        if (command, flag, mistake) not in FINE
    ]


def words_of(command: str, good: Good, new: Path, **given: object) -> list[str]:
    """The command with good inputs, but for those that are given."""
    values = {
        flag: kind[1:] if kind.startswith("=") else new if kind == OUT else good[kind]
        for flag, kind in CALLS[command].items()
    }
    return [command, *(word for flag, value in {**values, **given}.items() for word in (f"--{flag}", str(value)))]


# Numbers that may be below zero: a threshold or a power.
SIGNED = {"bad_step_threshold", "min_visual_dependence", "min_step_score", "vote_power"}


def numbers(command: str) -> list[tuple[str, str]]:
    """(flag, value): what no number of a command may be."""
    found = []
    for name, kind in hints(getattr(configs, COMMANDS[command].config)).items():
        if kind in (int, float, list[int]):
            found += [(name, value) for value in ("nan", "inf", *(["-1"] if name not in SIGNED else []))]
    return found
