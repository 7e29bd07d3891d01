"""`soak.py FOLDER SAMPLES PAIRS`: many samples into a store, many pairs through every file format; a line of JSON.

Memory is the process's own (RssAnon: mapped files do not count), at its highest in the first fifth of the work and
after that. A fifth is more than a row group of a Parquet file, so what every run needs is in both.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rewards.interchange.mmpr import read_mmpr, write_mmpr
from rewards.interchange.stepwise_rows import read_stepwise_parquet, write_stepwise_parquet
from rewards.interchange.trl_rows import from_trl_row, iter_trl_parquet, write_trl_parquet
from rewards.kept.store import SampleStore, StoredSample
from rewards.types import Completion, MonteCarloCount, PreferencePair, Problem, Rollout


class Watch:
    """The most memory and open files in a stage's first fifth of rows, and after that."""

    def __init__(self, rows: int) -> None:
        self.rows, self.seen = rows, 0
        self.early = self.most = self.files = self.most_files = 0

    def __call__(self) -> None:
        self.seen += 1
        if self.seen % 10:
            return
        if self.seen <= self.rows // 5:
            self.early, self.files = max(self.early, memory()), max(self.files, open_files())
        else:
            self.most, self.most_files = max(self.most, memory()), max(self.most_files, open_files())

    def growth(self) -> dict[str, int]:
        assert self.seen == self.rows, (self.seen, self.rows)
        return {"megabytes": (self.most - self.early) >> 10, "files": self.most_files - self.files}


def memory() -> int:
    """kB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def made_pairs(number: int, watch: Watch) -> Iterator[PreferencePair]:
    for index in range(number):
        watch()
        pixels = np.random.default_rng(index).integers(0, 255, (192, 192, 3), dtype=np.uint8)
        problem = Problem(f"p{index}", "?", (Image.fromarray(pixels),), "7")
        yield PreferencePair(problem, Completion(f"a\n\nb {index}"), Completion("c"), "correctness")


def main(folder: Path, samples: int, pairs: int) -> None:
    found: dict[str, Any] = {}
    watch = Watch(samples // 8)
    with SampleStore(folder / "s.sqlite", {}) as store:
        for problem in range(samples // 8):
            watch()
            store.add(StoredSample(f"{problem}-{i}", f"p{problem}", i, i, Completion("x" * 400)) for i in range(8))
    found["store"] = watch.growth()
    watch = Watch(pairs)
    write_trl_parquet(made_pairs(pairs, watch), folder / "pairs.parquet")
    found["write trl"] = watch.growth()

    def watched(items: Any) -> Iterator[Any]:
        for item in items:
            watch()
            yield item

    watch = Watch(pairs)
    write_mmpr((from_trl_row(row) for row in watched(iter_trl_parquet(folder / "pairs.parquet"))), folder / "mmpr")
    found["trl to mmpr"] = watch.growth()
    watch = Watch(pairs)
    back = watched(read_mmpr(folder / "mmpr", on_reject=print))
    counts = (MonteCarloCount(1, 2), MonteCarloCount(0, 2))
    labelled = ((pair.problem, Rollout(pair.chosen, mc=counts)) for pair in back)
    write_stepwise_parquet(labelled, folder / "stepwise.parquet")
    found["mmpr to stepwise"] = watch.growth()
    watch = Watch(pairs)
    assert not [
        row for _, row in watched(read_stepwise_parquet(folder / "stepwise.parquet")) if isinstance(row, Exception)
    ]
    found["read stepwise"] = watch.growth()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
