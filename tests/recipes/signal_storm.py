"""Ctrl-C at random moments of every stage of a small pipeline: does it end at once, and end as if left alone?

    python tests/recipes/signal_storm.py --signals 100      # or: make test-storm

Runs the data stages of `kill_pipeline.py`, and then train-prm, prm-eval, best-of-n and train-mpo: once undisturbed,
then again and again with SIGINT to the stage's process alone, at most PER_STAGE times for each stage, until SIGNALS
came. Each signal must end the process within 12 seconds with exit code 130 and no traceback, and 12 seconds later none
of the processes that it had started may be left. Every stage is then run to its end, and its files must have the bytes
of the undisturbed run. Prints JSON, exits 1 on a fault.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from kill_pipeline import NOT_COMPARED as STORED
from kill_pipeline import STAGES, commands, import_what_stages_need, prepare
from killing import start

ENDED_S = 12.0
TRAINED = ("train-prm", "prm-eval", "best-of-n", "train-mpo")
# A log of training holds seconds; the checksum of a checkpoint covers its log.
NOT_COMPARED = (*STORED, ".lock", "started.json", "log_history.json", "trainer_state.json", "complete.json")


def all_commands(given: Path, run: Path, *, max_new_tokens: int, verifier: str) -> dict[str, list[str]]:
    """The commands of `kill_pipeline.py`, then training and what a PRM is measured by."""
    training: list[object] = ["--max_steps", 6, "--save_steps", 1]
    flags: dict[str, list[object]] = {
        "train-prm": ["--groups", run / "label-steps", "--model", given / "policy", "--prm_format", "step_end",
                      "--batch_groups", 1, *training],
        "prm-eval": ["--prm", run / "train-prm", "--benchmark", run / "label-steps", "--kind", "groups",
                     "--development_share", 0.5],
        "best-of-n": ["--groups", run / "score", "--ks", 4, "--skip_unverified", "true"],
        "train-mpo": ["--policy", given / "policy", "--pairs", run / "pairs", "--batch_size", 2, *training],
    }  # fmt: skip
    data = commands(given, run, max_new_tokens=max_new_tokens, verifier=verifier)
    return data | {name: [name, *map(str, flags[name]), "--out", str(run / name)] for name in TRAINED}


def signalled(command: list[str], log: Path, wait: float | None) -> dict[str, Any]:
    """One attempt at a command, with SIGINT after `wait` seconds; `came` tells whether it was still running."""
    begun, ready = os.pipe()
    log.unlink(missing_ok=True)
    child = start(command, log=log, ready=ready)
    os.setpgid(child, child)  # whoever it starts is in its group, whoever its parent is later
    os.close(ready)
    os.read(begun, 1)
    os.close(begun)
    code = None if wait is None else _code(child, wait)
    came = code is None and wait is not None
    if came:
        os.kill(child, signal.SIGINT)
    sent = time.monotonic()
    code = _code(child, ENDED_S if came else 600.0) if code is None else code
    seconds = time.monotonic() - sent
    if code is None:
        faults = ["hangs"]
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    else:
        faults = [] if code in ((0, 130) if came else (0,)) else [f"exit code {code}"]
    said = log.read_text(errors="replace")
    faults += ["a traceback"] if "Traceback" in said else []
    faults += [f"orphan {name}" for name in _orphans(child)]
    told = {"faults": faults, "said": said[-2000:]} if faults else {}
    return {"came": came, "code": code, "seconds": round(seconds, 2), **told}


def exports(run: Path, names: list[str]) -> dict[str, bytes]:
    """What the stages wrote, but for their own notes and for what only a resume reads."""
    files = (path for name in names for path in (run / name).rglob("*") if path.is_file())
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in files
        if path.name not in NOT_COMPARED and not path.parent.name.startswith("checkpoint-")
    }


def _change(before: bytes | None, after: bytes | None) -> str:
    """The lines that differ, if there are lines."""
    if before is None or after is None:
        return "in one of the runs only"
    texts = [content.decode(errors="replace").splitlines() for content in (before, after)]
    return "\n".join(difflib.unified_diff(*texts, lineterm="", n=0))[:1000]


def _code(child: int, seconds: float) -> int | None:
    """The child's exit code, if it ends within some seconds."""
    deadline = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(min(0.01, max(0.0, deadline - time.monotonic())))


def _orphans(group: int) -> list[str]:
    """Processes of a group that are left `ENDED_S` after their first one; they are ended."""
    deadline = time.monotonic() + ENDED_S
    while (left := _members(group)) and time.monotonic() < deadline:
        time.sleep(0.1)
    names = [" ".join(process.cmdline())[:200] for process in left]
    for process in left:
        process.kill()
    return names


def _members(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, default=100, help="how many have to come, over all stages")
    parser.add_argument("--per_stage", type=int, default=3, help="signals of one stage in a run, at most")
    parser.add_argument("--stages", nargs="+", help="only these, which have to be able to run; default: all")
    parser.add_argument("--seed", type=int, default=0, help="when they come")
    parser.add_argument("--given", type=Path, help="folder with what the stages start from; default: it is made")
    parser.add_argument("--max_new_tokens", type=int, default=72, help="of a sample and of a continuation")
    parser.add_argument("--verifier", default="math", help="of `mpo verify`")
    args = parser.parse_args()

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would stages
    import_what_stages_need()
    _import_training()
    came, seconds, faults, codes = Counter[str](), list[float](), list[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given = args.given or folder / "given"
        if args.given is None:
            prepare(given)
        run, rng = folder / "run", random.Random(args.seed)
        stages = all_commands(given, run, max_new_tokens=args.max_new_tokens, verifier=args.verifier)
        names = args.stages or [*STAGES, *TRAINED]
        run.mkdir()
        lasting = {}
        for name in names:
            done = signalled(stages[name], folder / "log", None)
            assert not done.get("faults"), done
            lasting[name] = done["seconds"]
        straight = run.rename(folder / "straight")
        theirs = exports(straight, names)
        print(json.dumps({"undisturbed": lasting, "files": len(theirs)}), flush=True)
        number = 0
        while sum(came.values()) < args.signals:
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir()
            for name in names:
                for _ in range(min(args.per_stage, args.signals - sum(came.values()))):
                    tried = signalled(stages[name], folder / "log", rng.random() * lasting[name])
                    faults += [f"{name}: {fault}: {tried['said']}" for fault in tried.get("faults", [])]
                    if not tried["came"]:
                        break
                    came[name] += 1
                    codes[str(tried["code"])] += 1
                    seconds.append(tried["seconds"])
                rest = signalled(stages[name], folder / "log", None)
                faults += [f"{name}, resumed: {fault}: {rest['said']}" for fault in rest.get("faults", [])]
            ours = exports(run, names)
            differing = [file for file in sorted(theirs.keys() | ours.keys()) if theirs.get(file) != ours.get(file)]
            faults += [
                f"{file}: other than undisturbed: {_change(theirs.get(file), ours.get(file))}" for file in differing
            ]
            print(json.dumps({"run": number, "signals": dict(came), "faults": faults}), flush=True)
            number += 1
    if not codes["130"]:
        faults.append("no signal ended a stage")
    slowest = max(seconds, default=0.0)
    print(json.dumps({"signals": sum(came.values()), "by stage": dict(came), "exit codes": dict(codes),
                      "slowest end, seconds": slowest, "faults": faults}))  # fmt: skip
    return 1 if faults else 0


def _import_training() -> None:
    import recipes.answering.best_of_n
    import recipes.answering.prm_eval
    import recipes.training.train_mpo
    import recipes.training.train_prm  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
