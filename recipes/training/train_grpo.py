"""`mpo train-grpo`: online reinforcement learning on TRL's GRPOTrainer, rewarded by the verifier and the PRM.

The second stage of InternVL3.5's cascade (arXiv 2508.18265): MPO first, as a cheap and stable start, then GSPO. The
verifier and the PRM are the ones that build pairs and choose among N responses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import DataError
from mpo.multimodal.files import write_atomic
from mpo.multimodal.loading import load_processor
from recipes.config import TrainGRPOConfig
from recipes.stage.exclusive import refuse_exclusive
from recipes.stage.folder import is_first_process, open_stage
from recipes.stage.held_out import check_held_out
from recipes.stage.prms import prm_in_training
from recipes.stage.problem_source import SOURCE, problem_files
from recipes.stage.quarantine import Quarantine
from recipes.training.arguments import has_checkpoint, micro_batches
from recipes.training.grpo_run import build_trainer, rewards_of
from recipes.training.guarding import add_guard, checker_of, limits_of, read_asked, said_of
from recipes.training.model_card import write_grpo_card
from recipes.training.tracking import tracking
from recipes.training.weights import run_dtype, save_policy
from rewards.sampling.prompts import prompt_files
from rewards.types import Problem
from rewards.verifying.answer_checker import AnswerChecker, check_name


def train_grpo(config: TrainGRPOConfig) -> Path:
    """Train `config.policy` on its own responses to `config.problems`; write the policy, its processor and the log.

    A problem whose image cannot be decoded, and one that no reward could judge (no reference answer, or one that the
    verifier cannot read, while there is no PRM), is not trained on; `quarantine.jsonl` names it. A run that the guard
    stops is finished all the same: the manifest and the closing line give the reason.

    Raises:
        ConfigError: settings that exclude each other, what TRL does not support, or a guard whose problems are trained
            on.
        DataError: no problem is left.
    """
    refuse_exclusive(config)
    micro_batches(config.batch_size, config.per_device_batch)
    check_name(config.verifier)
    limits_of(config)
    files, root = _files(config)
    config = replace(config, problems=files["problems"], guard=files.get("guard"), image_root=root)
    given = [config.policy, config.problems, config.prm, config.guard, *prompt_files(config.prompt)]
    saved = has_checkpoint(config.out) if config.save_steps else None
    stage = open_stage("train-grpo", config, inputs=[path for path in given if path is not None], work=saved)
    if stage.complete:
        return stage.out
    if config.guard is not None:
        names = ("--guard", "--problems")
        check_held_out(config.guard, config.problems, names=names, run=stage.out, image_root=root)
    quarantine, left_out = Quarantine(), Quarantine()
    every = read_asked(config, config.problems, quarantine)
    watched = every if config.guard is None else read_asked(config, config.guard, left_out)
    prm = prm_in_training(config) if config.prm_weight else None
    with (
        checker_of(config, every) as checker,
        checker_of(config, watched) as watching,
        tracking(config.report_to, stage.out, name=f"train-grpo {stage.out.name}"),
    ):
        problems = _judged(every, checker, quarantine, alone=prm is None)
        by_id = {problem.id: problem for problem in every}
        rewards = rewards_of(config, by_id, checker, prm, load_processor(config.policy))
        trainer = build_trainer(config, stage.out, problems, rewards)
        judge = checker if config.guard is None else watching
        guard = add_guard(config, trainer, watched, judge, prm, max_new_tokens=config.max_new_tokens)
        trainer.train(resume_from_checkpoint=saved)
    save_policy(trainer, config, stage.out, run_dtype(config, config.policy))
    found, rejected = trainer.total_counts(), quarantine.counts()
    counts = {"in": len(problems) + sum(rejected.values()), "out": len(problems), "rejected": rejected}
    account, words = _account(trainer, found)
    ended, why = said_of(guard, left_out.counts())
    account, words = account | ended, words + why
    if is_first_process():
        quarantine.write(stage.out)
        write_atomic(stage.out / "log_history.json", json.dumps(trainer.state.log_history))
        write_grpo_card(stage.out, stage.provenance(), counts, trainer, account)
    return stage.finish({**counts, "training": account}, note=words)


def _files(config: TrainGRPOConfig) -> tuple[dict[str, Path], Path | None]:
    sources = {"problems": config.problems} | ({} if config.guard is None else {"guard": config.guard})
    return problem_files(sources, config.out / SOURCE, columns=config.columns, image_root=config.image_root)


def _judged(every: Sequence[Problem], checker: AnswerChecker, quarantine: Quarantine, *, alone: bool) -> list[Problem]:
    """The problems that a reward can judge; the verifier is the only judge if it is `alone`."""
    faulty = set(checker.unreadable())
    kept = []
    for problem in every:
        if problem.id in faulty:
            quarantine.add(problem.id, "reference cannot be read", f"{checker.verifier}: {problem.answer!r}")
        elif alone and not checker.has_reference(problem.id):
            quarantine.add(problem.id, "no reference answer", "and no PRM: nothing could judge a response")
        else:
            kept.append(problem)
    if not kept:
        raise DataError(f"no problem is left to train on: {quarantine.counts()}")
    return kept


def _account(trainer: Any, found: Mapping[str, Mapping[str, int]]) -> tuple[dict[str, Any], str]:
    """What a finished run did, for the manifest; and the same in words."""
    lines = [line for line in trainer.state.log_history if line.get("reward") is not None]
    account = {
        "steps": trainer.state.global_step,
        "first_reward": lines[0]["reward"] if lines else None,
        "last_reward": lines[-1]["reward"] if lines else None,
        "rewards": found,
    }
    words = f"{account['steps']} optimizer steps"
    words += f", mean reward {lines[0]['reward']:.3g} -> {lines[-1]['reward']:.3g}" if lines else ""
    lost = {finding: n for finding, n in found.get("verifier", {}).items() if finding not in ("correct", "wrong")}
    words += f", answers without a verdict: {', '.join(f'{finding} {n}' for finding, n in lost.items())}" * bool(lost)
    return account, words
