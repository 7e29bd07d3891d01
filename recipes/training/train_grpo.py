"""`mpo train-grpo`: online reinforcement learning on TRL's GRPOTrainer, rewarded by the verifier and the PRM.

The second stage of InternVL3.5's cascade (arXiv 2508.18265): MPO first, as a cheap and stable start, then GSPO. The
verifier and the PRM are the ones that build pairs and choose among N responses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from mpo.multimodal.errors import DataError
from mpo.multimodal.files import write_atomic
from mpo.multimodal.loading import load_processor
from recipes.config import TrainGRPOConfig
from recipes.stage.folder import is_first_process, open_stage
from recipes.stage.groups import read_problems
from recipes.stage.prms import prm_of
from recipes.stage.problem_source import SOURCE, problem_files
from recipes.stage.quarantine import Quarantine, readable
from recipes.training.arguments import has_checkpoint
from recipes.training.grpo_run import build_trainer, check_settings, rewards_of
from recipes.training.model_card import write_grpo_card
from recipes.training.tracking import tracking
from recipes.training.training_guard import TrainingGuard
from recipes.training.weights import run_dtype, save_policy
from rewards.choosing.training_guard import Limits, Stop
from rewards.sampling.prompts import prompt_files, prompt_of
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.scoring.reward_functions import OnlineReward
from rewards.types import Problem
from rewards.verifying.answer_checker import AnswerChecker, check_name


def train_grpo(config: TrainGRPOConfig) -> Path:
    """Train `config.policy` on its own responses to `config.problems`; write the policy, its processor and the log.

    A problem whose image cannot be decoded, and one that no reward could judge (no reference answer, or one that the
    verifier cannot read, while there is no PRM), is not trained on; `quarantine.jsonl` names it. A run that the guard
    stops is finished all the same: the manifest and the closing line give the reason.

    Raises:
        ConfigError: settings that exclude each other, or what TRL does not support.
        DataError: no problem is left.
    """
    check_settings(config)
    check_name(config.verifier)
    limits = _limits(config)
    files, root = _files(config)
    config = replace(config, problems=files["problems"], guard=files.get("guard"), image_root=root)
    given = [config.policy, config.problems, config.prm, config.guard, *prompt_files(config.prompt)]
    saved = has_checkpoint(config.out) if config.save_steps else None
    stage = open_stage("train-grpo", config, inputs=[path for path in given if path is not None], work=saved)
    if stage.complete:
        return stage.out
    quarantine = Quarantine()
    every = _read(config, config.problems, quarantine)
    watched = every if config.guard is None else _read(config, config.guard, Quarantine())
    by_id = {problem.id: problem for problem in every}
    prm = prm_of(config.prm) if config.prm is not None and config.prm_weight else None
    checks: dict[str, Any] = {"verifier": config.verifier, "workers": config.workers, "timeout_s": config.timeout_s}
    with (
        AnswerChecker(by_id, **checks) as checker,
        AnswerChecker({problem.id: problem for problem in watched}, **checks) as watching,
        tracking(config.report_to, stage.out, name=f"train-grpo {stage.out.name}"),
    ):
        problems = _judged(every, checker, quarantine, alone=prm is None)
        rewards = rewards_of(config, by_id, checker, prm, load_processor(config.policy))
        trainer = build_trainer(config, stage.out, problems, rewards)
        guard = _guard(config, trainer, watched, checker if config.guard is None else watching, prm, limits)
        trainer.train(resume_from_checkpoint=saved)
    save_policy(trainer, config, stage.out, run_dtype(config, config.policy))
    found, rejected = _counts_of(rewards), quarantine.counts()
    counts = {"in": len(problems) + sum(rejected.values()), "out": len(problems), "rejected": rejected}
    stopped = guard.stopped if guard else None
    account, words = _account(trainer, stopped, found)
    if is_first_process():
        quarantine.write(stage.out)
        write_atomic(stage.out / "log_history.json", json.dumps(trainer.state.log_history))
        write_grpo_card(stage.out, stage.provenance(), counts, trainer, account)
    return stage.finish({**counts, "training": account}, note=words)


def _limits(config: TrainGRPOConfig) -> Limits | None:
    limits = Limits(config.guard_remaining, config.guard_repetition, config.guard_drift, config.guard_patience)
    return limits if config.guard_stop else None


def _files(config: TrainGRPOConfig) -> tuple[dict[str, Path], Path | None]:
    sources = {"problems": config.problems} | ({} if config.guard is None else {"guard": config.guard})
    return problem_files(sources, config.out / SOURCE, columns=config.columns, image_root=config.image_root)


def _read(config: TrainGRPOConfig, path: Path, quarantine: Quarantine) -> list[Problem]:
    """The problems of a file whose images decode, with the prompt that the policy is asked with."""
    prompt = prompt_of(config.prompt, system=config.system)
    every = read_problems(path, image_root=config.image_root, on_bad=quarantine.add).values()
    problems, _ = readable((replace(problem, prompt=prompt) for problem in every), quarantine)
    if not problems:
        raise DataError(f"no problem of {path} can be used: {quarantine.counts()}")
    return problems


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


def _guard(
    config: TrainGRPOConfig,
    trainer: Any,
    problems: Sequence[Problem],
    checker: AnswerChecker,
    prm: ProcessRewardModel | None,
    limits: Limits | None,
) -> TrainingGuard | None:
    if not config.guard_every:
        return None
    guard = TrainingGuard(
        trainer,
        list(islice(problems, config.guard_problems)),
        every=config.guard_every,
        checker=checker,
        prm=prm,
        how=config.aggregation,
        limits=limits,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )
    trainer.add_callback(guard)
    return guard


def _counts_of(rewards: Sequence[tuple[OnlineReward, float]]) -> dict[str, dict[str, int]]:
    """Reward → finding → number of responses, over all processes."""
    total: dict[str, dict[str, int]] = {}
    for counts in gather_object([{reward.name: dict(reward.counts) for reward, _ in rewards}]):
        for name, found in counts.items():
            own = total.setdefault(name, {})
            own |= {finding: own.get(finding, 0) + number for finding, number in found.items()}
    return total


def _account(trainer: Any, stopped: Stop | None, found: Mapping[str, Mapping[str, int]]) -> tuple[dict[str, Any], str]:
    """What a finished run did, for the manifest; and the same in words."""
    lines = [line for line in trainer.state.log_history if line.get("reward") is not None]
    account = {
        "steps": trainer.state.global_step,
        "first_reward": lines[0]["reward"] if lines else None,
        "last_reward": lines[-1]["reward"] if lines else None,
        "rewards": found,
        "stopped": asdict(stopped) if stopped else None,
    }
    words = f"{account['steps']} optimizer steps"
    words += f", mean reward {lines[0]['reward']:.3g} -> {lines[-1]['reward']:.3g}" if lines else ""
    lost = {finding: n for finding, n in found.get("verifier", {}).items() if finding not in ("correct", "wrong")}
    words += f", answers without a verdict: {', '.join(f'{finding} {n}' for finding, n in lost.items())}" * bool(lost)
    if stopped:
        words += f"; STOPPED by the guard at step {stopped.step}: {stopped.reason} ({stopped.words})"
    return account, words
