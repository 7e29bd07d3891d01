"""`kill_stage.py KILLS COMMAND FLAGS…`: run a command of `mpo`, killed at random moments, until it is done.

A kill comes a random while after the attempt's first new row in the stage's store, or its first new checkpoint.
Prints one line of JSON for the tests that call it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from killing import killed_until_done, stored


def newest_checkpoint(out: Path) -> int:
    """Step of the newest whole checkpoint."""
    from mpo.multimodal.checkpoint_files import MANIFEST

    return max((int(path.parent.name.split("-")[1]) for path in out.glob(f"checkpoint-*/{MANIFEST}")), default=0)


def run(kills: int, arguments: list[str]) -> dict[str, object]:
    """Kill, resume, finish; says how much each kill left behind, and the last attempt's exit status."""
    import torch

    torch.set_num_threads(1)
    out = Path(arguments[arguments.index("--out") + 1])
    if arguments[0] == "train-mpo":
        import recipes.training.train_mpo  # noqa: F401

        return killed_until_done(arguments, kills, lambda: newest_checkpoint(out), delay=0.1)
    import rewards.sampling.transformers_generator  # noqa: F401

    return killed_until_done(arguments, kills, lambda: len(stored(out)), delay=0.2, pause=0.3)


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), sys.argv[2:])))
