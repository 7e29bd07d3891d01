"""Small stages again and again in one process, with random faults: does anything grow, and is anything left behind?

    python tests/recipes/soak_faults.py --minutes 60        # or: make soak MINUTES=60

A round samples from a server on loopback that fails at random and is killed now and then, verifies, makes pairs,
converts them and checks the run. Before a stage runs here it is sometimes started in a process of its own, which gets
SIGKILL or SIGINT at a random moment; after it, one of its files is sometimes cut, changed or deleted, which the next
stage must refuse in one line. Every round must end with the pairs of the first one, byte for byte.

Prints a line per minute with the memory of this process (RssAnon, MB), its open descriptors and threads, and the
processes in its group besides the server. Exits 1 if one of them grows, or if a round goes wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from PIL import Image

from recipes.cli import main as mpo
from recipes.stage.folder import MANIFEST
from tests.model_server import ModelServer
from tests.recipes.killing import KILLED, ended, start

PROBLEMS, SAMPLES = 4, 4
STAGES = ("sample", "verify", "pairs", "convert-data")
SERVER_FAULTS = ("500", "reset", "garbage", "html", "too_few")  # not "null", which is an empty answer and is kept
SHARE_OF_FAULTS = 0.1  # of requests, of stages that are killed, and of stages whose files are damaged after it
ENDED_S = 12.0
LIMITS = {"memory": 16.0, "descriptors": 3, "threads": 2, "processes": 0}  # MB, and numbers of each


class Seen(NamedTuple):
    """What this process holds at one moment."""

    memory: float
    descriptors: int
    threads: int
    processes: int


class Faults(list[str]):
    """Never empty; one fault in ten requests, in place of a list of them."""

    def __init__(self) -> None:
        super().__init__(["ok"])
        self.rng = random.Random(0)

    def pop(self, _: Any = 0) -> str:
        """The next fault, or ok."""
        return self.rng.choice(SERVER_FAULTS) if self.rng.random() < SHARE_OF_FAULTS else "ok"


def reply(body: dict[str, Any]) -> dict[str, Any]:
    """Right and wrong answers to "What is N?", by turns."""
    asked = json.dumps(body["messages"]).partition("What is ")[2].partition("?")[0]
    texts = [f"We read {asked}.\n\nFinal answer: {int(asked) + (i + body['seed']) % 2}" for i in range(body["n"])]
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for i, text in enumerate(texts)
    ]
    return {"id": "x", "object": "chat.completion", "choices": choices, "usage": {"completion_tokens": 8 * len(texts)}}


def serve() -> None:
    """A server that prints its address and answers until it is killed, or its parent is gone."""
    parent = os.getppid()
    with ModelServer(reply=reply) as server:
        server.faults = Faults()
        print(server.base_url, flush=True)
        while os.getppid() == parent:
            time.sleep(1)
            for kept in (server.requests, server.headers, server.paths):
                kept.clear()


class Server:
    """That server in a process of its own, in no group of ours, with another address after each kill."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.recipes.soak_faults", "--serve"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self.process.stdout is not None
        self.base_url = self.process.stdout.readline().strip()

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Soak:
    """Rounds of small work.

    Attributes:
        folder: of the run in hand.
        happened: kind of fault → how often it came.
        wrong: what should not have been.
    """

    def __init__(self, folder: Path, *, seed: int = 0, share: float = 3 * SHARE_OF_FAULTS) -> None:
        self.folder, self.rng, self.share = folder, random.Random(seed), share
        self.happened, self.wrong = Counter[str](), list[str]()
        self.server = Server()
        self.first: dict[str, bytes] | None = None
        self.log = folder / "log"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / "red.png")
        rows = [
            {"id": f"p{i}", "question": f"What is {i + 5}?", "images": ["red.png"], "answer": str(i + 5)}
            for i in range(PROBLEMS)
        ]
        (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def round(self) -> None:
        """All stages once, with their faults, then the run is checked and removed."""
        run = self.folder / "run"
        if self.rng.random() < self.share:
            self.server.close()  # whoever asks it now is told so; the next has a new one
            self._run("sample", run, refusable=True)
            self.happened["server killed"] += 1
            self.server = Server()
        for name in STAGES:
            if self.rng.random() < self.share:
                self._disturbed(name, run)
            self._until_done(name, run)
            if self.rng.random() < self.share:
                self._damaged(name, run)
        self._expect(self._mpo(["check", "--run", str(run)]), (0,), "check")
        made = {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.parquet"))}
        self.first = self.first or made
        if made != self.first or not made:
            differing = [name for name in made.keys() | self.first.keys() if made.get(name) != self.first.get(name)]
            counts = {name: json.loads((run / name / MANIFEST).read_bytes())["counts"] for name in STAGES}
            self.wrong.append(f"{sorted(differing)} are not those of the first round; {counts}")
        shutil.rmtree(run)
        self.happened["rounds"] += 1

    def close(self) -> None:
        """Put the server away."""
        self.server.close()

    def _words(self, name: str, run: Path) -> list[str]:
        flags: dict[str, list[object]] = {
            "sample": ["--problems", self.folder / "questions.jsonl", "--base_url", self.server.base_url, "--model",
                       "tiny", "--num_samples", SAMPLES, "--concurrency", 2],
            "verify": ["--groups", run / "sample", "--verifier", "number"],
            "pairs": ["--groups", run / "verify", "--rule", "correctness"],
            "convert-data": ["trl", "mmpr", "--source", run / "pairs" / "pairs.parquet"],
        }  # fmt: skip
        return [name, *map(str, flags[name]), "--out", str(run / name)]

    def _mpo(self, words: list[str]) -> int:
        """A command in this process; its exit code."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = mpo(words)
        if "Traceback" in said.getvalue():
            self.wrong.append(f"{words[0]}: {said.getvalue()[-1000:]}")
        self.log.write_text(said.getvalue())
        return code

    def _run(self, name: str, run: Path, *, refusable: bool = False) -> int:
        return self._expect(self._mpo(self._words(name, run)), (0, 2) if refusable else (0,), name)

    def _until_done(self, name: str, run: Path) -> None:
        """A server that fails costs a run of `sample` now and then; the same command continues."""
        for _ in range(20):
            if self._run(name, run, refusable=name == "sample") == 0:
                return
            self.happened["server failed"] += 1
        self.wrong.append(f"{name}: not done after 20 runs: {self.log.read_text()[-500:]}")

    def _disturbed(self, name: str, run: Path) -> None:
        sign = self.rng.choice((signal.SIGKILL, signal.SIGINT))
        begun, ready = os.pipe()
        child = start(self._words(name, run), log=self.log, ready=ready)
        os.close(ready)
        os.read(begun, 1)
        os.close(begun)
        time.sleep(self.rng.random() * 0.3)
        os.kill(child, sign)
        self._expect(ended(child), (0, 2, KILLED if sign == signal.SIGKILL else 130), f"{name} after {sign.name}")
        self.happened[sign.name] += 1

    def _damaged(self, name: str, run: Path) -> None:
        """One file that the stage vouches for is cut, changed or deleted: refused, and made again as it was."""
        out = run / name
        file = out / self.rng.choice(sorted(json.loads((out / MANIFEST).read_bytes())["files"]))
        before = file.read_bytes()
        how = self.rng.choice(("cut", "changed", "deleted"))
        if how == "deleted":
            file.unlink()
        else:
            spot = self.rng.randrange(len(before))
            file.write_bytes(before[:spot] if how == "cut" else before[:spot] + b"\x00" + before[spot + 1 :])
        self.happened[f"file {how}"] += 1
        if file.exists() and file.read_bytes() == before:
            return
        self._expect(self._mpo(["check", "--run", str(run)]), (2,), f"check of a {how} {file.name}")
        if self._run(name, run, refusable=True):
            shutil.rmtree(out)
            self._until_done(name, run)
        if not file.exists() or file.read_bytes() != before:
            self.wrong.append(f"{name}: {file.name} was {how} and is not as it was")

    def _expect(self, code: int, codes: Sequence[int], what: str) -> int:
        if code not in codes:
            self.wrong.append(f"{what}: exit code {code}, expected one of {codes}: {self.log.read_text()[-1000:]}")
        return code


def seen(group: int) -> Seen:
    """What this process holds; processes of its group get some seconds to end."""
    own = psutil.Process()
    deadline = time.monotonic() + ENDED_S
    while (others := list(_others(group))) and time.monotonic() < deadline:
        time.sleep(0.1)
    gc.collect()  # clients of a server hold native memory, and Python looks at few of its own objects to find them
    anonymous = Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]
    return Seen(int(anonymous) / 1024, own.num_fds(), own.num_threads(), len(others))


def grown(samples: Sequence[Seen]) -> dict[str, float]:
    """By how much each number has grown: the median of the last third against that of the third before it.

    The first third is not looked at: what every run needs once is loaded then.
    """
    third = max(1, len(samples) // 3)
    middle, last = samples[-2 * third : -third] or samples, samples[-third:]
    return {
        name: statistics.median(getattr(one, name) for one in last)
        - statistics.median(getattr(one, name) for one in middle)
        for name in LIMITS
    }


def too_much(growth: dict[str, float], samples: Sequence[Seen]) -> list[str]:
    """What grew beyond its limit; a process that was left over at any moment is too many."""
    found = [f"{name} grew by {growth[name]:.1f}, limit {limit}" for name, limit in LIMITS.items()
             if growth[name] > limit]  # fmt: skip
    left = max(one.processes for one in samples)
    return found + ([f"{left} processes were left over"] if left else [])


def _others(group: int) -> Iterator[int]:
    for process in psutil.process_iter(["status"]):
        try:
            mine = os.getpgid(process.pid) == group and process.pid != os.getpid()
        except ProcessLookupError:
            continue
        if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
            yield process.pid


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="when the faults come")
    parser.add_argument("--serve", action="store_true", help="be the server, which is how this script starts it")
    args = parser.parse_args()
    if args.serve:
        serve()
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would stages
    samples, begun, minute = list[Seen](), time.monotonic(), 0
    print("| minute | rounds | faults | memory, MB | descriptors | threads | other processes |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(Path(temporary), seed=args.seed)
        while time.monotonic() < begun + 60 * args.minutes and not soak.wrong:
            soak.round()
            samples.append(seen(os.getpgrp()))
            if time.monotonic() >= begun + 60 * (minute + 1):
                minute = int((time.monotonic() - begun) / 60)
                rounds = soak.happened["rounds"]
                one, faults = samples[-1], sum(soak.happened.values()) - rounds
                print(f"| {minute} | {rounds} | {faults} | {one.memory:.1f} | {one.descriptors} | {one.threads} | "
                      f"{one.processes} |", flush=True)  # fmt: skip
        soak.close()
    growth = grown(samples)
    wrong = soak.wrong + too_much(growth, samples)
    rounded = {name: round(value, 2) for name, value in growth.items()}
    print(json.dumps({"happened": dict(soak.happened), "growth": rounded, "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
