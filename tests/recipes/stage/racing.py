"""`racing.py FOLDER`: every stage's command once alone, then by two processes that start together in one folder.

A JSON line per command in FOLDER/races.jsonl (libraries print to stdout as they like): exit codes, what the losing
process said, and what differs from the run that was alone. The parent imports what the commands need and forks the
processes, so that a race costs no start. The inputs are those of `wrong_inputs.py`, so a new command races as soon as
it has a row there, which a test of that matrix asks for.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from recipes.stage.groups import read_groups, read_problems, write_problems
from tests.recipes.killing import STORES, ended, start
from tests.recipes.run_folders import make_groups, make_problems, stating, write_stage
from tests.recipes.wrong_inputs import CALLS, OUT, Good, make_good, words_of

RACES = "races.jsonl"
# Made of other stages, each with its own folder; `test_two_processes.py` tries their first one.
COMPOSED = {"pipeline", "evidence", "rounds", "evaluate"}
NO_STAGE = {"doctor"}  # it prints, and writes nothing
# Notes of the stage itself, and what holds seconds: a trainer's log, and the checksum of that log.
NOTES = ("manifest.json", ".lock", "log_history.json", "trainer_state.json", "complete.json")
NOT_COMPARED = (*NOTES, *(f"{store}{tail}" for store in STORES for tail in ("", "-wal", "-shm")))
WORLD = {f"num_{part}": 2 for part in ("warm_start", "prm", "preference", "development", "test")}
# Flags that make a stage small; a stage without a row runs with its defaults.
SMALL: dict[str, dict[str, object]] = {
    "sample": {"num_samples": 2, "max_new_tokens": 8},
    "label-steps": {"num_continuations": 2, "responses": 2, "max_new_tokens": 8, "mixed_only": False},
    "continue": {"max_new_tokens": 8},
    "beam-search": {"max_new_tokens": 8, "width": 1, "expand": 2},
    "best-of-n": {"ks": 4},
    "train-prm": {"max_steps": 2, "batch_groups": 1},
    "train-mpo": {"max_steps": 2, "batch_size": 2},
    "warm-start": {"max_steps": 2, "batch_size": 2},
    "world": {**WORLD, "vision_steps": 2},
    "easy-vqa": WORLD,
}


def stages() -> list[str]:
    """Every command that is a stage: it writes a folder."""
    return [name for name, call in CALLS.items() if OUT in call.values() and name not in NO_STAGE]


def make_inputs(folder: Path) -> tuple[Good, dict[str, dict[str, object]]]:
    """The good inputs of every command, and flags of those commands that they are not good enough for."""
    good = make_good(folder / "good", _policy(folder))
    rows = [json.loads(line) for line in good["problems"].read_text().splitlines()]
    with (folder / "responses.jsonl").open("w") as file:
        file.writelines(json.dumps({**row, "images": [], "responses": ["1", "2"]}) + "\n" for row in rows)
    with (folder / "scores.jsonl").open("w") as file:
        ids = [(row["id"], index) for row in rows for index in range(4)]
        scored = [{"problem_id": id, "index": index, "score": index / 4} for id, index in ids]
        file.writelines(json.dumps(row) + "\n" for row in scored)
    made = read_groups(good["groups"])
    write_stage(folder / "stated", stating(made), good["problems"])
    asked = make_problems(folder / "digits", "digits", 2, random.Random(0))
    meta = {"kind": "sum", "digits": {"Red": 3, "Blue": 9}}
    problems = [replace(problem, meta=meta) for problem in read_problems(asked).values()]
    write_problems(asked, problems)
    write_stage(folder / "exact", make_groups(asked, 4, 0.5, random.Random(1)), asked)
    return good, {
        "import-responses": {"responses": folder / "responses.jsonl"},
        "rate": {"by": "scores", "scores": folder / "scores.jsonl"},
        "label-steps": {"groups": folder / "stated"},
        "label-exact": {"groups": folder / "exact", "mixed_only": False},
    }


def raced(command: str, good: Good, folder: Path, **given: object) -> dict[str, Any]:
    """Alone; then two at once in a folder of the same name."""
    out, log = folder / command, [folder / f"{command}.{number}.log" for number in range(3)]
    words = words_of(command, good, out, **SMALL.get(command, {}), **given)
    if alone := ended(start(words, log=log[0])):
        return {"command": command, "alone": alone, "said": log[0].read_text(errors="replace")[-2000:]}
    straight = out.rename(folder / f"{command} alone")
    children = [start(words, log=log[1]), start(words, log=log[2])]
    codes = [ended(child) for child in children]
    said = [path.read_text(errors="replace").splitlines()[-1:] for path in log]
    theirs, ours = files(straight), files(out)
    differing = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    return {"command": command, "alone": alone, "codes": codes, "pids": children, "said": said,
            "files": len(ours), "differing": differing, "faults": _faults(out),
            "left": [path.name for path in out.rglob("*.tmp")]}  # fmt: skip


def files(out: Path) -> dict[str, bytes]:
    """The bytes of what a stage wrote, but for its own notes."""
    found = (path for path in out.rglob("*") if path.is_file() and path.name not in NOT_COMPARED)
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def _faults(out: Path) -> list[str]:
    from mpo.multimodal.errors import StageError
    from recipes.stage.folder import faults_of

    try:
        return faults_of(out)
    except StageError as error:  # neither has finished it
        return [str(error)]


def _policy(folder: Path) -> Path:
    from recipes.worlds.digits.policy import PolicySize, build_policy

    size = PolicySize(vision_hidden=32, vision_layers=1, text_hidden=32, text_layers=2, heads=2)
    return build_policy(folder / "policy", seed=0, size=size)


def main(folder: Path, commands: list[str]) -> None:
    """Race every command; those that are named, if any."""
    import torch

    for module in ("recipes.training.train_mpo", "rewards.prm.trainer", "rewards.sampling.transformers_generator"):
        import_module(module)
    torch.set_num_threads(1)
    good, better = make_inputs(folder)
    with (folder / RACES).open("w") as file:
        for name in commands or stages():
            if name not in COMPOSED:
                print(json.dumps(raced(name, good, folder / "runs", **better.get(name, {}))), file=file, flush=True)


if __name__ == "__main__":
    work = Path(sys.argv[1])
    shutil.rmtree(work / "runs", ignore_errors=True)
    (work / "runs").mkdir(parents=True)
    os.environ["MPO_FAILPOINT"] = ""
    main(work, sys.argv[2:])
