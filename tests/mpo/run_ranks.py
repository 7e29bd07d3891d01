"""Short runs, alone or by torchrun or `accelerate launch`: `run_ranks.py OUT RESUME_FROM CASE…`.

Every run takes steps of four pairs: one rank in one micro-batch, each of two ranks in two of one pair. Rank 0 writes
OUT/CASE/result.pt.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tiny import preference_rows, tiny_config, tiny_internvl

from mpo.collator import PreferenceCollator
from mpo.multimodal.loading import load_processor
from mpo.trainer import MPOTrainer
from tests.ranks import FirstGradients

STEPS, SAVED = 5, 3  # two steps per epoch: a resume starts inside the second one
LORA = LoraConfig(target_modules="all-linear", exclude_modules="lm_head", r=2)
SAVING = {"save_strategy": "steps", "save_steps": SAVED, "max_steps": STEPS, "optim": "adamw_torch",
          "learning_rate": 1e-3, "lr_scheduler_type": "cosine"}  # fmt: skip

BALANCED = {"train_sampling_strategy": "batch_rebalance"}

# case → changes of the settings; `peft_config` and `data_collator` go to the trainer, `rows` is the number of pairs
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full paired": {"layout": "paired"},
    "full checkpointing": {"gradient_checkpointing": True},
    "full cached": {"precompute_ref_log_probs": True},
    "half cached": {"precompute_ref_log_probs": True},  # rank 1's half of the values that "full cached" left is lost
    "lora": {"peft_config": LORA},
    "lora paired": {"peft_config": LORA, "layout": "paired"},
    "lora checkpointing": {"peft_config": LORA, "gradient_checkpointing": True},
    "one rank packs": {},
    "spans": {"spans": True},  # three of four rejected sides count in part
    "saved full": SAVING,
    "saved lora": {"peft_config": LORA, **SAVING},
    "uneven": {"rows": 7},  # the last micro-batch of rank 1 is a repeated pair
    "uneven two": {
        "rows": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
    },  # a whole micro-batch
    "uneven lora": {"rows": 5, "peft_config": LORA, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
    "saved uneven": {"rows": 7, **SAVING, "adam_epsilon": 1e-4},  # Adam would blow up rounding noise of small gradients
    "balanced": {"rows": 11, **BALANCED},
    "saved balanced": {"rows": 11, **BALANCED, **SAVING, "adam_epsilon": 1e-4},
}
RESUMED = {"saved full", "saved lora", "saved uneven", "saved balanced"}


class SomePaired(PreferenceCollator):
    """Leaves odd pairs paired, as if their prompts ended in an image: then one rank packs and one does not."""

    def __call__(self, rows: Any) -> dict[str, Any]:
        self.shared_prefix = len(rows) > 1 or int(rows[0]["problem_id"].removeprefix("pair-")) % 2 == 0
        return super().__call__(rows)


def train(out: Path, case: str, *, world_size: int, resume: Path | None = None) -> MPOTrainer:
    """Run a case and write what it came to."""
    settings = dict(CASES[case])
    own: dict[str, Any] = {"peft_config": settings.pop("peft_config", None)}
    if case == "one rank packs":
        own["data_collator"] = SomePaired(load_processor(tiny_internvl()))
    rows = preference_rows(settings.pop("rows", 8))
    for index, row in enumerate(rows if settings.pop("spans", False) else []):
        row["rejected_span"] = [0, 1 + index % 4] if index % 4 else None
    for row in rows[::4]:
        row["images"] = []  # so that a rank's vision tower sometimes gets no gradient
    if "cached" in case:
        cache = settings["reference_cache_dir"] = out / "cache"
        if case == "half cached" and os.environ.get("RANK") == "1":
            (cache / "logps-1.sqlite").unlink()
    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4 // world_size,
           "per_device_eval_batch_size": 1}  # fmt: skip
    if world_size == 1:  # whatever the case says
        settings |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
        settings |= {"per_device_eval_batch_size": 5}
    args = tiny_config(out / case, **({"generation_average": "token"} | cut | settings))
    first = FirstGradients()
    trainer = MPOTrainer(tiny_internvl(), args=args, train_dataset=rows, eval_dataset=rows, callbacks=[first], **own)
    trainer.monitor.token_rate.clock = itertools.count().__next__  # a second a look: `tokens/s` is the tokens of a step
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.state.log_history.append(trainer.evaluate())
    if trainer.is_world_process_zero():
        weights = {name: p.detach() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}
        torch.save(
            {
                **{"weights": weights, "gradients": first.gradients, "log": trainer.state.log_history},
                **{"delta": trainer.reward_shift.value, "ranks": trainer.accelerator.num_processes},
                **{"shared": trainer.sharing.on, "wrapped": type(trainer.model_wrapped).__name__},
            },
            out / case / "result.pt",
        )
    return trainer


def main(out: Path, cases: Iterable[str], resume_from: Path | None = None) -> None:
    """Cases from the start; then the saved ones again, from the checkpoints of another run of this program."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    tiny_internvl()  # each rank its own; once the ranks know each other, transformers lets only the first one write
    for case in cases:
        train(out, case, world_size=world_size)
    if resume_from is not None:
        for case in sorted(RESUMED & set(cases)):  # a set has another order in every process
            resume = resume_from / case / f"checkpoint-{SAVED}"
            train(out / "resumed", case, world_size=world_size, resume=resume)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3:], resume_from=Path(sys.argv[2]))
