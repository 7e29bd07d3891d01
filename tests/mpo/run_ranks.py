"""A short run, alone or by torchrun: `run_ranks.py MODEL OUT BATCH ACCUMULATE [cached]`; rank 0 writes result.pt."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from tiny import preference_rows, tiny_config

from mpo.trainer import MPOTrainer


def main(model: str, out: str, batch: int, accumulate: int, *, cached: bool = False) -> None:
    rows = preference_rows(8)
    for row in rows[::4]:
        row["images"] = []  # so that a rank's vision tower sometimes gets no gradient
    args = tiny_config(
        out,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        generation_average="token",
        precompute_ref_log_probs=cached,
    )
    trainer = MPOTrainer(model, args=args, train_dataset=rows)
    trainer.monitor.token_rate.clock = itertools.count().__next__  # a second a look: `tokens/s` is the tokens of a step
    trainer.train()
    if trainer.is_world_process_zero():
        weights = torch.cat(
            [p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()]
        )
        torch.save({"weights": weights, "log": trainer.state.log_history[:-1], "delta": trainer.reward_shift.value,
                    "ranks": trainer.accelerator.num_processes}, Path(out) / "result.pt")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), cached="cached" in sys.argv)
