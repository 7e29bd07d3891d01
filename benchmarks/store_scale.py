"""Many samples through the stages that read groups: seconds, rows per second, memory, file sizes.

The policy is replaced by a generator that returns short texts at once, so that what is measured is the rest: the real
store, the real export to JSON lines and Parquet, the real verifier, the real pairing. So is the PRM of `mpo score`: it
gives scores at once, through the real calls and their store. Every stage runs in a process of
its own; CPU seconds count its worker processes, and other jobs disturb them less. Memory is the stage's resident set
(Linux), read every 20 ms; the table has the peak of each quarter of the part's time. What is held from the start
(problems, unit keys) grows with the problems, not with the work done.

    python benchmarks/store_scale.py
    python benchmarks/store_scale.py --problems 5000
    python benchmarks/store_scale.py --problems 125000 --no-parquet
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets  # noqa: F401  imported here, so that libraries count as held from the start
import pyarrow.parquet  # noqa: F401
from PIL import Image

import recipes.data.sample
import recipes.data.score
from mpo.multimodal.errors import DataError
from recipes.answering.best_of_n import best_of_n
from recipes.config import BestOfNConfig, PairsConfig, SampleConfig, ScoreConfig, VerifyConfig
from recipes.data.pairs import pairs
from recipes.data.sample import sample
from recipes.data.score import score
from recipes.data.verify import verify
from recipes.stage.folder import MANIFEST
from recipes.stage.groups import write_problems
from rewards.prm.formats import find_format
from rewards.sampling.generator import Generator, Sample
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.steps import split_on_blank_lines
from rewards.types import Completion, Problem, StepScores

PICTURES = 500  # different ones; problems share them
ROWS_A_CALL = 64  # samples that the generator gives at a time: one transaction of the store
WORDS = ("we", "read", "each", "digit", "from", "left", "to", "right", "and", "add", "it", "to", "the", "sum")
STEPS = [" ".join(random.Random(i).choices(WORDS, k=8)) + "." for i in range(997)]


class InstantGenerator(Generator):
    """Short texts at once; about half of them right. `draw` notes when it was first asked and when it had given all."""

    def __init__(self) -> None:
        self.began = self.ended = (0.0, 0.0)

    def draw(
        self,
        problems: Sequence[Problem],
        n: int,
        *,
        prefixes: Sequence[str] | None = None,
        seed: int,
        done: Container[tuple[int, int]] = frozenset(),
    ) -> Iterator[list[Sample]]:
        self.began = clocks()
        ready: list[Sample] = []
        for place, problem in enumerate(problems):
            for index in range(n):
                if (place, index) not in done:
                    ready.append(Sample(place, index, seed, completion(problem, index)))
            if len(ready) >= ROWS_A_CALL:
                yield ready
                ready = []
        yield ready
        self.ended = clocks()


class InstantPRM(ProcessRewardModel):
    """Scores at once, made of a step's text."""

    def outcomes(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores | DataError]:
        return [
            StepScores(tuple(zlib.crc32(step.text.encode()) % 1000 / 1000 for step in split_on_blank_lines(text)))
            for _, text in items
        ]


def completion(problem: Problem, index: int) -> Completion:
    """Three steps of eight words and a final answer; cheap, since its time counts as the store's."""
    draw = zlib.crc32(f"{problem.id}:{index}".encode())
    steps = [STEPS[(draw >> shift) % len(STEPS)] for shift in (0, 7, 14)]
    answer = problem.answer if draw % 2 else str(draw % 97)
    return Completion("\n\n".join([*steps, f"Final answer: {answer}"]), num_tokens=32)


def compose(folder: Path, number: int) -> Path:
    """The problems and their images, small and noisy."""
    (folder / "images").mkdir()
    rng = random.Random(0)
    for i in range(PICTURES):
        Image.frombytes("RGB", (32, 32), rng.randbytes(32 * 32 * 3)).save(folder / "images" / f"{i}.png")
    problems = (
        Problem(f"p{i:06d}", f"What is the sum of image {i}?", (folder / "images" / f"{i % PICTURES}.png",),
                str(rng.randrange(100)))
        for i in range(number)
    )  # fmt: skip
    write_problems(folder / "questions.jsonl", problems)
    return folder / "questions.jsonl"


def clocks() -> tuple[float, float]:
    """Seconds on the wall, and of CPUs: of this process and of its children that have ended."""
    return time.perf_counter(), sum(os.times()[:4])


class Memory:
    """The resident set of this process over time, read by a thread."""

    def __enter__(self) -> Memory:
        self.readings: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        with open("/proc/self/statm", encoding="ascii") as statm:
            while not self._over.wait(0.02):
                statm.seek(0)
                self.readings.append((time.perf_counter(), int(statm.read().split()[1]) * page))

    def quarters(self, began: float, ended: float) -> list[int]:
        """Peak of each quarter of a span, in bytes."""
        peaks = [0] * 4
        for when, size in self.readings:
            if began <= when < ended:
                quarter = int(4 * (when - began) / (ended - began))
                peaks[quarter] = max(peaks[quarter], size)
        return peaks


Part = tuple[str, float, float, list[int]]  # name, seconds, CPU seconds, peak of each quarter


def sample_parts(config: SampleConfig) -> list[Part]:
    """Drawing into the store and writing the exports, apart; before that, problems and images are read."""
    generator = InstantGenerator()
    start = clocks()
    with Memory() as memory, patch.object(recipes.data.sample, "generator_of", lambda *_: generator):
        sample(config)
        end = clocks()
    spans = {
        "sample: read problems": (start, generator.began),
        "sample: store": (generator.began, generator.ended),
        "sample: export": (generator.ended, end),
    }
    return [part(name, *span, memory) for name, span in spans.items()]


def score_parts(config: ScoreConfig) -> list[Part]:
    with patch.object(recipes.data.score, "prm_of", lambda *_, **__: InstantPRM()):
        return stage_parts("score", score, config)


def stage_parts(name: str, stage: Callable[[object], Path], config: object) -> list[Part]:
    """One stage as a whole."""
    start = clocks()
    with Memory() as memory:
        stage(config)
        end = clocks()
    return [part(name, start, end, memory)]


def part(name: str, began: tuple[float, float], ended: tuple[float, float], memory: Memory) -> Part:
    return name, ended[0] - began[0], ended[1] - began[1], memory.quarters(began[0], ended[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--num-samples", type=int, default=8, help="N")
    parser.add_argument("--folder", type=Path, help="keep the output here, instead of a folder that is deleted")
    parser.add_argument("--parquet", action=argparse.BooleanOptionalAction, default=True, help="of samples")
    parser.add_argument("--parts", nargs="+", help="stages to run; what they read is in --folder already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        problems = folder / "questions.jsonl" if args.parts else compose(folder, args.problems)
        samples, verified, made = folder / "samples", folder / "verified", folder / "pairs"
        drawing = SampleConfig(
            problems, samples, base_url="http://none", model="instant", num_samples=args.num_samples,
            parquet=args.parquet,
        )  # fmt: skip
        prm, scored = folder / "prm", folder / "scored"
        prm.mkdir(exist_ok=True)
        (prm / "config.json").write_text(json.dumps({"model_type": "none"}))
        (prm / "prm.json").write_text(json.dumps(asdict(find_format("step_end"))))
        ks = [k for k in (1, 4, 8) if k <= args.num_samples]
        runs: list[tuple[Callable[..., list[Part]], tuple[Any, ...]]] = [
            (sample_parts, (drawing,)),
            (stage_parts, ("verify", verify, VerifyConfig(samples, verified))),
            (score_parts, (ScoreConfig(verified, prm, scored),)),
            (stage_parts, ("pairs", pairs, PairsConfig(scored, made, rule="correctness"))),
            (stage_parts, ("best-of-n", best_of_n, BestOfNConfig(scored, folder / "best", ks=ks))),
        ]
        names = ["sample", "verify", "score", "pairs", "best-of-n"]
        runs = [run for name, run in zip(names, runs, strict=True) if name in (args.parts or names)]
        rows = args.problems * args.num_samples
        print(
            f"{args.problems:,} problems x {args.num_samples} samples = {rows:,} rows; {os.cpu_count()} cores, "
            f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
        )
        print(
            "| part | seconds | CPU s | rows/CPU s | peak MiB at 25 % | 50 % | 75 % | 100 % | grows by |\n|"
            + " --- |" * 9
        )
        for run, arguments in runs:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                for name, seconds, cpu, peaks in process.submit(run, *arguments).result():
                    sizes = [peak / 2**20 for peak in peaks]
                    cells = [f"{seconds:.1f}", f"{cpu:.1f}", f"{rows / cpu:,.0f}", *(f"{size:.0f}" for size in sizes)]
                    print(f"| {name} | {' | '.join(cells)} | {sizes[-1] - sizes[0]:+.0f} MiB |", flush=True)
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".png" and p.name != MANIFEST):
            if path.stat().st_size > 1 << 20:
                print(f"{path.relative_to(folder)}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
