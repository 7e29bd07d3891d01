"""Short PRM runs, alone or by torchrun: `run_prm_ranks.py OUT RESUME_FROM CASE…`.

Every step takes four groups: one rank in one micro-batch, each of two ranks in two of one group. An epoch has seven, so
its last micro-batch is a repeated group on rank 1. Rank 0 writes OUT/CASE/result.pt and OUT/sharded.pt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainingArguments

from mpo.multimodal.loading import load_model
from recipes.worlds.digits.policy import build_processor
from recipes.worlds.digits.world import scenes, to_problem
from rewards.prm.formats import STEP_END
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution
from rewards.prm.trainer import PRMTrainer
from rewards.steps import split_on_blank_lines
from rewards.types import Problem
from tests.mpo.tiny import tiny_internvl
from tests.ranks import FirstGradients, shard, total_of, whole

STEPS, SAVED = 5, 3  # two steps per epoch: a resume starts inside the second one
# Adam would blow up rounding noise of small gradients.
SAVING = {"save_strategy": "steps", "save_steps": SAVED, "max_steps": STEPS, "optim": "adamw_torch",
          "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "adam_epsilon": 1e-4}  # fmt: skip
LORA = LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj|up_proj)", r=2)
CASES: dict[str, dict[str, Any]] = {"full": {}, "lora": {}, "saved full": SAVING, "saved lora": SAVING}
RESUMED = {"saved full", "saved lora"}


def labelled_groups() -> list[LabelledGroup]:
    """One to three solutions each, so other numbers of labelled steps on each rank, and one group without any.

    No two texts are the same: scores that tie up to rounding would rank otherwise on two ranks, and move the AUC.
    """
    groups = []
    for i, scene in enumerate(scenes("test", 6, 6)):
        answers = {
            f"Red is {i}\n\nBlue is {9 - i}\n\n{i} + {9 - i} = 9\n\nFinal answer: 9{i}": (1.0, 0.0, None, None),
            f"Red is {i + 3}\n\nFinal answer: {2 * i}": (0.0, 0.25),
            f"Final answer: {5 + i}": (1.0,),
        }
        solutions = [LabelledSolution(split_on_blank_lines(text), labels) for text, labels in answers.items()]
        groups.append(LabelledGroup(to_problem(scene, f"p{i}"), tuple(solutions[: 1 + i % 3])))
    unlabelled = LabelledSolution(split_on_blank_lines("Final answer: 12"), (None,))
    return [*groups, LabelledGroup(Problem("text", "What is 5 + 7?"), (unlabelled,))]


def build_trainer(
    out: Path, *, world_size: int, groups: list[LabelledGroup], lora: bool, **settings: Any
) -> PRMTrainer:
    """The trainer of a case."""
    defaults = {"optim": "sgd", "learning_rate": 0.2, "lr_scheduler_type": "constant", "max_steps": 2,
                "save_strategy": "no", "max_grad_norm": 0.0}  # fmt: skip
    arguments = TrainingArguments(
        str(out),
        per_device_train_batch_size=1 if world_size > 1 else 4,
        gradient_accumulation_steps=4 // world_size if world_size > 1 else 1,
        per_device_eval_batch_size=1 if world_size > 1 else 5,
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        logging_steps=1,
        dataloader_pin_memory=False,
        **(defaults | settings),
    )
    return PRMTrainer(
        load_model(tiny_internvl()),
        build_processor(),
        STEP_END,
        arguments,
        groups,
        text_weight=1.0,
        class_weights=(0.5, 4.0),
        peft_config=LORA if lora else None,
        eval_dataset=groups,
    )


def train(out: Path, case: str, *, world_size: int, resume: Path | None = None) -> None:
    """Run a case and write what it came to."""
    settings = {"world_size": world_size, "groups": labelled_groups(), "lora": "lora" in case}
    trainer = build_trainer(out / case, **settings, **CASES[case])
    trainer.add_callback(first := FirstGradients())
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.state.log_history.append(trainer.evaluate())
    if trainer.is_world_process_zero():
        weights = {name: p.detach() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}
        found = {"weights": weights, "gradients": first.gradients, "log": trainer.state.log_history}
        how = {"ranks": trainer.accelerator.num_processes, "wrapped": type(trainer.model_wrapped).__name__}
        torch.save(found | how, out / case / "result.pt")


def sharded_steps(out: Path, *, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """Two steps of four groups with plain SGD: losses, metrics and weights."""
    groups = labelled_groups()[:4]
    trainer = build_trainer(out / "shards", world_size=world_size, groups=groups, lora=False)
    model = trainer.model.train()
    if world_size > 1:
        shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    share = len(groups) // world_size
    log = []
    for _ in range(2):
        batch = trainer.data_collator(groups[rank * share : (rank + 1) * share])
        counts = trainer._over_ranks(trainer._counts_of_batches([batch]), torch.device("cpu"))
        loss = trainer.compute_loss(model, batch, num_items_in_batch=counts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        trainer.log({"loss": float(total_of(loss.detach())) / world_size})
        log.append(trainer.state.log_history[-1])
    return {"log": log, "weights": {name: whole(p.detach()) for name, p in model.named_parameters()}, "gradients": {}}


def main(out: Path, cases: Iterable[str], resume_from: Path | None = None) -> None:
    """Cases from the start; then the saved ones again, from the checkpoints of another run; then shards."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    tiny_internvl()  # each rank its own; once the ranks know each other, transformers lets only the first one write
    for case in cases:
        train(out, case, world_size=world_size)
    for case in sorted(RESUMED) if resume_from is not None else []:  # a set has another order in every process
        train(out / "resumed", case, world_size=world_size, resume=resume_from / case / f"checkpoint-{SAVED}")
    rank = int(os.environ.get("RANK", "0"))
    found = sharded_steps(out, rank=rank, world_size=world_size)
    if rank == 0:
        torch.save(found, out / "sharded.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3:], resume_from=Path(sys.argv[2]))
