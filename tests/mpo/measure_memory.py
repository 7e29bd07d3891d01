"""Estimated and measured peak of a run of its own process: `measure_memory.py TINY MODEL OUT SETTINGS_JSON`; prints
JSON.

Measured is the peak of the resident set over two optimizer steps, less what was resident before the model
was loaded: after a run of the tiny model TINY, so that the libraries that training loads on its way are not counted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from tiny import preference_row, tiny_config

from mpo.doctor.preflight import preflight
from mpo.multimodal.loading import load_model, load_processor
from mpo.trainer import MPOTrainer


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def rows_of(words: int) -> list[dict[str, Any]]:
    picture = Image.new("RGB", (192, 32))
    return [
        preference_row(i, chosen="one two " * words + str(i), rejected="three " * words, images=[picture])
        for i in range(8)
    ]


def main(tiny: str, model: str, out: str, words: int, **settings: Any) -> None:
    args = tiny_config(out, max_steps=2, learning_rate=1e-4, **settings)
    processor, rows = load_processor(model), rows_of(words)
    MPOTrainer(load_model(tiny), args=args, train_dataset=rows_of(1), processing_class=processor).train()
    before = resident("VmRSS")
    trainer = MPOTrainer(load_model(model), args=args, train_dataset=rows, processing_class=processor)
    memory = preflight(trainer, batches=1).memory
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    trainer.train()
    print(json.dumps({"estimated": memory.peak, "measured": resident("VmHWM") - before, "weights": memory.weights}))


if __name__ == "__main__":
    main(*sys.argv[1:4], **json.loads(sys.argv[4]))
