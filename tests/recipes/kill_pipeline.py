"""Kill every data stage at random moments and at every failpoint: do its exports stay those of an undisturbed run?

    python tests/recipes/kill_pipeline.py --runs 25      # or: make test-kill

Runs sample, verify, label-steps, score, pairs and convert-data once undisturbed, on a tiny policy of the digits world
that has learned to answer. Then once with a kill at every failpoint in turn, and RUNS times with kills at random
moments: each stage is started, killed and started again until KILLS kills came, then left alone. Every file of every
stage but its manifest, store and lock must have the same bytes; every store the same keys; every manifest the same
counts (but seconds), with in = out + rejected. Prints JSON, exits 1 on a difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from killing import KILLED, STORES, ended, start, stored

STAGES = ("sample", "verify", "label-steps", "score", "pairs", "convert-data")
PROBLEMS_A_CALL = 2  # of `mpo verify`, in place of 256, so that there are calls to be killed between
NOT_COMPARED = ("manifest.json", *(f"{store}{tail}" for store in STORES for tail in ("", "-wal", "-shm", ".lock")))


def commands(given: Path, run: Path, *, max_new_tokens: int, verifier: str) -> dict[str, list[str]]:
    """The stages' commands, on `given`: questions.jsonl, policy/, prm/, and made/, if it has samples made by hand."""
    drawn = given / "made" if (given / "made").exists() else run / "sample"
    drawing = ["--policy", given / "policy", "--max_new_tokens", max_new_tokens]
    flags: dict[str, list[object]] = {
        "sample": [*drawing, "--problems", given / "questions.jsonl", "--num_samples", 6, "--batch_rows", 12,
                   "--parquet", "true"],
        "verify": ["--groups", drawn, "--verifier", verifier, "--timeout_s", 60],  # a verdict "timeout" is the load's
        "label-steps": [*drawing, "--groups", run / "verify", "--num_continuations", 3, "--responses", 2,
                        "--budget", "sequential", "--batch_rows", 16],
        "score": ["--groups", run / "verify", "--prm", given / "prm", "--batch_rows", 8],
        "pairs": ["--groups", run / "score", "--mmpr", "true", "--min_step_score", 0],  # the PRM is untrained
        "convert-data": ["trl", "mmpr", "--source", run / "pairs" / "pairs.parquet"],
    }  # fmt: skip
    return {name: [name, *map(str, flags[name]), "--out", str(run / name)] for name in STAGES}


def undisturbed(stages: dict[str, list[str]], run: Path) -> dict[str, float]:
    """Run all stages; seconds of each."""
    seconds = {}
    for name, command in stages.items():
        started = time.monotonic()
        assert _attempt(command, run) == 0, (run / "log").read_text()[-2000:]
        seconds[name] = time.monotonic() - started
    return seconds


def killed_at_failpoints(stages: dict[str, list[str]], run: Path) -> Counter[str]:
    """Run all stages, each killed at one failpoint after the other, then left alone; stage/failpoint → kills."""
    from mpo.multimodal.failpoints import FAILPOINTS

    kills = Counter[str]()
    for name, command in stages.items():
        for point in FAILPOINTS:
            code = _attempt(command, run, failpoint=f"{point}:2" if point == "before_commit" else point)
            if code == 0:  # it passes no such point: it has no store, or no call is left to make
                (run / name / "manifest.json").unlink()
                continue
            assert code == KILLED, (run / "log").read_text()[-2000:]
            kills[f"{name}/{point}"] += 1
        assert _attempt(command, run) == 0, (run / "log").read_text()[-2000:]
    return kills


def killed_at_random(
    stages: dict[str, list[str]], run: Path, seconds: dict[str, float], rng: random.Random, kills: int
) -> Counter[str]:
    """Run all stages, each killed `kills` times within the time that it takes undisturbed; stage → kills."""
    came = Counter[str]()
    for name, command in stages.items():
        for _ in range(kills):
            child = start(command, log=run / "log")
            time.sleep(rng.random() * seconds[name])
            os.kill(child, signal.SIGKILL)
            code = ended(child)
            assert code in (KILLED, 0), (run / "log").read_text()[-2000:]
            if code == 0:
                break
            came[name] += 1
        assert _attempt(command, run) == 0, (run / "log").read_text()[-2000:]
    return came


def differences(straight: Path, killed: Path) -> list[str]:
    """What two runs do not share: bytes of exports, keys of stores, counts of manifests."""
    found = []
    theirs, ours = _exports(straight), _exports(killed)
    found += [f"{name}: in one run only" for name in sorted(theirs.keys() ^ ours.keys())]
    found += [f"{name}: other bytes" for name in sorted(theirs.keys() & ours.keys()) if theirs[name] != ours[name]]
    for name in STAGES:
        if stored(straight / name) != stored(killed / name):
            found.append(f"{name}: other keys in the store")
        counts = _counts(killed / name)
        if counts != _counts(straight / name):
            found.append(f"{name}: other counts: {counts}")
        if counts["in"] != counts["out"] + sum(counts["rejected"].values()):
            found.append(f"{name}: in = out + rejected does not hold: {counts}")
    return found


def prepare(given: Path) -> None:
    """A world, a policy that is sometimes right, and a PRM in form: what the stages start from."""
    from recipes.config import WarmStartConfig, WorldConfig
    from recipes.training.warm_start import warm_start
    from recipes.worlds.digits.compose import compose

    sizes = {"num_warm_start": 40, "num_prm": 2, "num_preference": 16, "num_development": 2, "num_test": 2}
    world = compose(WorldConfig(given / "world", **sizes, vision_steps=60))
    warm_start(
        WarmStartConfig(world / "policy", world, given / "policy", max_steps=120, batch_size=16, learning_rate=3e-3)
    )
    make_prm(given)
    shutil.copytree(world / "images", given / "images")
    (given / "images" / "bad.png").write_text("no image")
    rows = (world / "preference.jsonl").read_text().splitlines()
    bad = {"id": "bad", "question": "?", "images": ["images/bad.png"], "answer": "1"}
    unanswered = json.loads(rows[1]) | {"id": "no reference", "answer": None}
    lines = [rows[0], json.dumps(bad), "{", json.dumps(unanswered), *rows[1:]]
    (given / "questions.jsonl").write_text("".join(f"{line}\n" for line in lines))


def make_prm(given: Path) -> None:
    """The policy itself as a PRM: of real shape and untrained."""
    from rewards.prm.formats import find_format
    from rewards.prm.model_prm import save_format

    save_format(shutil.copytree(given / "policy", given / "prm"), find_format("step_end"))


def compared(straight: Path, run: Path, kill: Callable[[], Counter[str]]) -> dict[str, Any]:
    """One disturbed run in a fresh folder: its kills, what differs, its seconds."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    started = time.monotonic()
    kills = kill()
    differing = differences(straight, run)
    return {"kills": dict(kills), "differing": differing, "seconds": round(time.monotonic() - started, 1)}


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=25, help="runs with kills at random moments")
    parser.add_argument("--kills", type=int, default=2, help="kills of a stage in such a run, at most")
    parser.add_argument("--seed", type=int, default=0, help="when they come")
    parser.add_argument("--given", type=Path, help="folder with what the stages start from; default: it is made")
    parser.add_argument("--max_new_tokens", type=int, default=72, help="of a sample and of a continuation")
    parser.add_argument("--verifier", default="math", help="of `mpo verify`")
    args = parser.parse_args()

    import_what_stages_need()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given = args.given or folder / "given"
        if args.given is None:
            prepare(given)
        run, rng = folder / "run", random.Random(args.seed)  # every run in one place: content keys cover paths
        run.mkdir()
        stages = commands(given, run, max_new_tokens=args.max_new_tokens, verifier=args.verifier)
        seconds = undisturbed(stages, run)
        straight = run.rename(folder / "straight")
        print(json.dumps({"undisturbed": {name: round(value, 2) for name, value in seconds.items()},
                          "files": len(_exports(straight)),
                          "counts": {name: _counts(straight / name) for name in STAGES}}), flush=True)  # fmt: skip
        reports = [compared(straight, run, lambda: killed_at_failpoints(stages, run))]
        print(json.dumps({"failpoints": reports[0]}), flush=True)
        for number in range(args.runs):
            reports.append(compared(straight, run, lambda: killed_at_random(stages, run, seconds, rng, args.kills)))
            print(json.dumps({"run": number, **reports[-1]}), flush=True)
    total = sum((Counter(report["kills"]) for report in reports[1:]), Counter[str]())
    differing = [report["differing"] for report in reports if report["differing"]]
    at_failpoints = sum(reports[0]["kills"].values())
    print(json.dumps({"runs": args.runs, "random kills": dict(total), "failpoint kills": at_failpoints,
                      "differing": differing}))  # fmt: skip
    return 1 if differing else 0


def _attempt(command: list[str], run: Path, *, failpoint: str = "") -> int:
    return ended(start(command, failpoint=failpoint, log=run / "log"))


def _exports(run: Path) -> dict[str, bytes]:
    files = (path for name in STAGES for path in (run / name).rglob("*") if path.is_file())
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.name not in NOT_COMPARED}


def _counts(folder: Path) -> dict[str, Any]:
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    for part in ("estimate", "drawn"):
        counts.get(part, {}).pop("seconds", None)
    return counts


def import_what_stages_need() -> None:
    """So that a forked stage starts at once."""
    import torch

    import recipes.data.convert_data
    import recipes.data.label_steps
    import recipes.data.pairs
    import recipes.data.sample
    import recipes.data.score
    import recipes.data.verify
    import rewards.sampling.transformers_generator  # noqa: F401

    torch.set_num_threads(1)
    recipes.data.verify.GROUPS_AT_A_TIME = PROBLEMS_A_CALL


if __name__ == "__main__":
    sys.exit(main())
