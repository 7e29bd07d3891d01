"""From a stage's settings to the guard of its training run, and what a stage says of it; train-mpo and train-grpo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import DataError
from recipes.config import GuardedTraining, TrainGRPOConfig, TrainMPOConfig
from recipes.stage.exclusive import refuse_exclusive
from recipes.stage.groups import read_problems
from recipes.stage.held_out import check_not_asked
from recipes.stage.problem_source import SOURCE, problem_files
from recipes.stage.quarantine import Quarantine, readable
from recipes.training.training_guard import TrainingGuard
from rewards.choosing.training_guard import Limits
from rewards.interchange.trl_rows import prompts_in_rows
from rewards.sampling.prompts import prompt_files, prompt_of
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.types import Problem
from rewards.verifying.answer_checker import AnswerChecker, check_name


def limits_of(config: GuardedTraining) -> Limits | None:
    """When the guard ends a run; None if it may only log.

    Raises:
        ConfigError: a limit outside its range, in either case: such a value is never right.
    """
    limits = Limits(config.guard_remaining, config.guard_repetition, config.guard_drift, config.guard_patience)
    return limits if config.guard_stop else None


def check_guard(config: TrainMPOConfig) -> None:
    """The settings of a guard, before anything is read.

    Raises:
        ConfigError: they exclude each other, or are outside their range.
    """
    limits_of(config)
    check_name(config.verifier)
    refuse_exclusive(config)


def with_guard_file(config: TrainMPOConfig) -> tuple[TrainMPOConfig, list[Path]]:
    """The settings with the guard's problems as a file of our own form; and the inputs that only a guard has."""
    if config.guard is None:
        return config, []
    sources = {"guard": config.guard}
    files, root = problem_files(sources, config.out / SOURCE, columns=config.columns, image_root=config.image_root)
    given = [files["guard"], *([] if config.prm is None else [config.prm]), *prompt_files(config.prompt)]
    return replace(config, guard=files["guard"], image_root=root), given


def guard_problems(config: TrainMPOConfig, rows: Any, out: Path, left_out: Quarantine) -> list[Problem]:
    """The guard's problems, which no pair asks; none without a guard.

    Args:
        config: as `with_guard_file` gives it.
        rows: the pairs.
        out: folder for the list of near-duplicates.
        left_out: takes the problems that cannot be asked.

    Raises:
        ConfigError: a pair asks one of them.
        DataError: none can be asked.
    """
    if config.guard is None or not config.guard_every:
        return []
    problems = read_asked(config, config.guard, left_out)
    names, places = ("--guard", "--pairs"), (config.guard, config.pairs)
    check_not_asked(problems, prompts_in_rows(rows), names=names, places=places, run=out)
    return problems


def read_asked(config: GuardedTraining, path: Path, quarantine: Quarantine) -> list[Problem]:
    """The problems of a file whose images decode, with the prompt that the policy is asked with.

    Raises:
        DataError: none is left.
    """
    prompt = prompt_of(config.prompt, system=config.system)
    every = read_problems(path, image_root=config.image_root, on_bad=quarantine.add).values()
    problems, _ = readable((replace(problem, prompt=prompt) for problem in every), quarantine)
    if not problems:
        raise DataError(f"no problem of {path} can be used: {quarantine.counts()}")
    return problems


def checker_of(config: GuardedTraining, problems: Sequence[Problem]) -> AnswerChecker:
    """What checks responses to these problems; it starts no process before it is asked."""
    by_id = {problem.id: problem for problem in problems}
    return AnswerChecker(by_id, verifier=config.verifier, workers=config.workers, timeout_s=config.timeout_s)


def add_guard(
    config: TrainMPOConfig | TrainGRPOConfig,
    trainer: Any,
    problems: Sequence[Problem],
    checker: AnswerChecker,
    prm: ProcessRewardModel | None,
    *,
    max_new_tokens: int,
) -> TrainingGuard | None:
    """The guard, now a callback of the trainer; None if it is turned off or has no problems.

    Args:
        config: of the stage.
        trainer: not yet started.
        problems: held out, in their order; the first `guard_problems` of them are looked at.
        checker: of these problems.
        prm: that scores the responses; None measures no reward.
        max_new_tokens: limit of a response.
    """
    if not config.guard_every or not problems:
        return None
    guard = TrainingGuard(
        trainer,
        list(islice(problems, config.guard_problems)),
        every=config.guard_every,
        checker=checker,
        prm=prm,
        how=config.aggregation,
        limits=limits_of(config),
        max_new_tokens=max_new_tokens,
        seed=config.seed,
    )
    trainer.add_callback(guard)
    return guard


def said_of(guard: TrainingGuard | None, left_out: Mapping[str, int]) -> tuple[dict[str, Any], str]:
    """Why the guard ended the run, if it did, for the manifest; and the same in words.

    Args:
        guard: after training.
        left_out: reason → number of the guard's problems that could not be asked.
    """
    stopped = guard.stopped if guard else None
    account = {"stopped": asdict(stopped) if stopped else None, "guard_rejected": dict(left_out)}
    words = f"; guard: {sum(left_out.values())} problems left out ({', '.join(left_out)})" if left_out else ""
    if stopped:
        words += f"; STOPPED by the guard at step {stopped.step}: {stopped.reason} ({stopped.words})"
    return account, words
