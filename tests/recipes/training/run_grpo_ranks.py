"""Short runs of `mpo train-grpo`, alone or by torchrun: `run_grpo_ranks.py OUT POLICY PROBLEMS PRM`.

For each row of `CASES` the trainer of the stage takes given responses, since TRL draws with another seed in every
process; rank 0 writes OUT/CASE/result.pt. On two ranks there follow a run that the guard stops, and the whole stage
with sampled responses, once more from its first checkpoint.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mpo.multimodal.loading import load_processor
from recipes.config import TrainGRPOConfig
from recipes.stage.groups import read_problems
from recipes.stage.prms import prm_of
from recipes.training import train_grpo as stage
from recipes.training.grpo_run import build_trainer, rewards_of
from recipes.training.guarding import add_guard
from recipes.training.train_grpo import train_grpo
from rewards.verifying.answer_checker import AnswerChecker
from tests.ranks import FirstGradients

STEPS, BATCH = 3, 8
RANK = int(os.environ.get("RANK", "0"))
# Four responses to a problem: on two ranks the rewards of a group are compared across both.
CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "gspo": {"algorithm": "gspo"},
    "dr_grpo": {"algorithm": "dr_grpo"},
    "lora": {"lora_rank": 2, "beta": 0.1},
}
NOT_LOGGED = {"step_time", "entropy", "kl"}  # TRL takes the last two as means of micro-batches, here of other sizes
TEXTS = ["Final answer: {}", "{} and {}", "So it is {} {} {}\n\nFinal answer: {}", "one two three {}"]


def settings(policy: Path, problems: Path, out: Path, **changes: Any) -> TrainGRPOConfig:
    tiny = {"max_steps": STEPS, "batch_size": BATCH, "num_generations": 4, "max_new_tokens": 16, "learning_rate": 0.05}
    quiet = {"prompt": "direct", "save_steps": 0, "guard_every": 0, "warmup": 0.0, "timeout_s": 60.0}
    return TrainGRPOConfig(policy=policy, problems=problems, out=out, **(tiny | quiet | {"length_weight": 1} | changes))


def given(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
    """Responses by their place in the whole step, whatever process asks."""
    tokenizer = trainer.processing_class.tokenizer
    first = RANK * len(prompts) + BATCH * trainer.state.global_step
    places = range(first, first + len(prompts))
    texts = [TEXTS[(place + place // 3) % len(TEXTS)].replace("{}", str(place % 7)) for place in places]
    asked = trainer.processing_class.apply_chat_template(
        list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return {
        "prompt_ids": list(asked["input_ids"]),
        "completion_ids": [[*tokenizer(text)["input_ids"][:15], tokenizer.eos_token_id] for text in texts],
        "logprobs": None,
    }


def train_on_given(
    out: Path, case: str, policy: Path, problems: Path, checker: AnswerChecker, *, world_size: int
) -> None:
    """Run a case and write what it came to: one rank in one micro-batch, each of two ranks in two."""
    config = settings(policy, problems, out / case, per_device_batch=BATCH if world_size == 1 else 2, **CASES[case])
    by_id = read_problems(problems)
    rewards = rewards_of(config, by_id, checker, None, load_processor(policy))
    trainer = build_trainer(config, config.out, list(by_id.values()), rewards)
    trainer.rollout_func = given
    trainer.args.optim = "sgd"  # Adam would turn rounding noise of a zero gradient into a full step
    first = FirstGradients()
    trainer.add_callback(first)
    trainer.train()
    counts = trainer.total_counts()
    if trainer.is_world_process_zero():
        weights = {name: p.detach() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}
        log = [{name: line[name] for name in line.keys() - NOT_LOGGED} for line in trainer.state.log_history]
        ranks, wrapped = trainer.accelerator.num_processes, type(trainer.model_wrapped).__name__
        torch.save(
            {"weights": weights, "gradients": first.gradients, "log": log, "counts": counts,
             "ranks": ranks, "wrapped": wrapped},
            out / case / "result.pt",
        )  # fmt: skip


def run_stage(out: Path, policy: Path, problems: Path) -> None:
    """The whole stage; every rank keeps its weights in OUT/NAME-RANK."""
    trainers: list[Any] = []

    def kept(*arguments: Any) -> Any:
        trainers.append(build_trainer(*arguments))
        return trainers[-1]

    stage.build_trainer = kept
    config = settings(policy, problems, out / "sampled", max_steps=4, save_steps=2, learning_rate=1e-3)
    train_grpo(config)
    keep_weights(out / "sampled-", trainers[-1])
    again = settings(policy, problems, out / "resumed", max_steps=4, save_steps=2, learning_rate=1e-3)
    if RANK == 0:
        shutil.copytree(config.out, again.out, ignore=shutil.ignore_patterns("manifest.json", "checkpoint-4"))
    trainers[-1].accelerator.wait_for_everyone()
    train_grpo(again)
    keep_weights(out / "resumed-", trainers[-1])


def stop_by_guard(out: Path, policy: Path, problems: Path, prm: Path, checker: AnswerChecker) -> None:
    """A guard whose limit any reward passes; every rank keeps what it knows of the stop."""
    guarded = {"guard_every": 1, "guard_problems": 2, "guard_remaining": 0.0}
    config = settings(policy, problems, out / "stopped", **guarded)
    by_id = read_problems(problems)
    rewards = rewards_of(config, by_id, checker, None, load_processor(policy))
    trainer = build_trainer(config, config.out, list(by_id.values()), rewards)
    guard = add_guard(config, trainer, list(by_id.values()), checker, prm_of(prm), max_new_tokens=16)
    trainer.train()
    assert guard is not None
    keep_weights(out / "stopped-", trainer, stopped=guard.stopped.reason if guard.stopped else None)


def keep_weights(path: Path, trainer: Any, **more: Any) -> None:
    state = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    torch.save({"weights": state, "steps": trainer.state.global_step, **more}, f"{path}{RANK}.pt")


def main(out: Path, policy: Path, problems: Path, prm: Path) -> None:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    with AnswerChecker(read_problems(problems), timeout_s=60.0) as checker:
        for case in CASES:
            train_on_given(out, case, policy, problems, checker, world_size=world_size)
        if world_size > 1:
            stop_by_guard(out, policy, problems, prm, checker)
    if world_size > 1:
        run_stage(out, policy, problems)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
