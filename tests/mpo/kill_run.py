"""`kill_run.py FOLDER`: train 40 steps, killed with SIGKILL at 20 moments, resumed after each.

The parent has imported everything and forks a child an attempt, so that a kill costs a second and not ten. The child
saves at every step. A kill comes a random while after a random step of the attempt; every fourth one as soon as a save
has begun: the folder is there and its manifest is not. Prints one line of JSON for test_checkpoint.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny import preference_rows, tiny_config, tiny_internvl

from mpo.multimodal.checkpoint_files import MANIFEST, faults_of
from mpo.trainer import REWARD_SHIFT_FILE, MPOTrainer

STEPS, KILLS = 40, 20


def main(folder: Path) -> None:
    """Kill, resume, finish; then report."""
    torch.set_num_threads(1)
    rng = random.Random(0)
    kills = inside = 0
    while kills < KILLS:
        aimed_inside = kills % 4 == 3
        child = _start(folder)
        caught = _wait_for_a_save(folder) if aimed_inside else _wait_for_steps(folder, rng.randint(0, 2))
        if not aimed_inside:
            time.sleep(rng.random() * 0.15)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the run ended before it was killed"
        kills += 1
        inside += aimed_inside and caught
    _, status = os.waitpid(_start(folder), 0)
    incomplete = [path.name for path in folder.glob("checkpoint-*") if faults_of(path)]
    print(json.dumps({"kills": kills, "inside": inside, "status": status, "incomplete": incomplete}))


def train(folder: Path) -> None:
    """One attempt: from the newest complete checkpoint, if there is one."""
    config = tiny_config(
        folder, max_steps=STEPS, save_strategy="steps", save_steps=1, save_total_limit=2, optim="adamw_torch",
        learning_rate=1e-3, lr_scheduler_type="cosine", report_to="none",
    )  # fmt: skip
    trainer = MPOTrainer(tiny_internvl(), args=config, train_dataset=preference_rows(12))
    trainer.train(resume_from_checkpoint=any(not faults_of(path) for path in folder.glob("checkpoint-*")))
    assert (folder / f"checkpoint-{STEPS}" / REWARD_SHIFT_FILE).exists()


def _start(folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        train(folder)
    except BaseException as error:  # the child must never return into the parent's loop
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def _wait_for_a_save(folder: Path) -> bool:
    """Until a checkpoint of this attempt lacks its manifest."""
    old = set(folder.glob("checkpoint-*"))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(not (path / MANIFEST).exists() for path in set(folder.glob("checkpoint-*")) - old):
            return True
        time.sleep(0.0005)
    return False


def _wait_for_steps(folder: Path, steps: int) -> bool:
    """Until the attempt has completed so many checkpoints more."""
    old = set(folder.glob(f"checkpoint-*/{MANIFEST}"))
    seen: set[Path] = set()
    deadline = time.monotonic() + 60
    while len(seen) < steps and time.monotonic() < deadline:
        seen |= set(folder.glob(f"checkpoint-*/{MANIFEST}")) - old
        time.sleep(0.001)
    return len(seen) >= steps


if __name__ == "__main__":
    main(Path(sys.argv[1]))
