"""`mpo train-mpo`: Mixed Preference Optimization on pairs (arXiv 2411.10442)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mpo.multimodal.files import write_atomic
from recipes.config import TrainMPOConfig
from recipes.stage.folder import is_first_process, open_stage
from recipes.stage.prms import prm_in_training
from recipes.stage.quarantine import Quarantine
from recipes.training.arguments import has_checkpoint, training_account
from recipes.training.guarding import add_guard, check_guard, checker_of, guard_problems, said_of, with_guard_file
from recipes.training.model_card import write_policy_card
from recipes.training.mpo_run import build_trainer, read_pairs
from recipes.training.sample_monitor import SampleMonitor
from recipes.training.tracking import tracking
from recipes.training.weights import run_dtype, save_policy
from rewards.interchange.trl_rows import problems_in_rows

ROWS = ".rows"  # the pairs, uncompressed, while a run reads them


def train_mpo(config: TrainMPOConfig) -> Path:
    """Train `config.policy` against itself as it is given; write the policy, its processor and the log.

    A run that the guard stops is finished all the same: the manifest and the closing line give the reason.

    Raises:
        ConfigError: settings that cannot work, or a guard whose problems are trained on.
        DataError: no pair, or none of the guard's problems, can be used.
    """
    check_guard(config)
    config, of_guard = with_guard_file(config)
    saved = has_checkpoint(config.out) if config.save_steps else None
    stage = open_stage("train-mpo", config, inputs=[config.policy, config.pairs, *of_guard], work=saved)
    if stage.complete:
        return stage.out
    rows, left_out = read_pairs(config, kept_in=stage.out / ROWS), Quarantine()
    watched = guard_problems(config, rows, stage.out, left_out)
    prm = prm_in_training(config) if config.guard_every else None
    with (
        checker_of(config, watched) as checker,
        tracking(config.report_to, stage.out, name=f"train-mpo {stage.out.name}"),
    ):
        trainer = build_trainer(config, stage.out, rows)
        if config.sample_every:
            problems = problems_in_rows(rows, config.sample_problems)
            looks = {"every": config.sample_every, "max_new_tokens": config.sample_tokens, "seed": config.seed}
            trainer.add_callback(SampleMonitor(trainer, problems, **looks))
        guard = add_guard(config, trainer, watched, checker, prm, max_new_tokens=config.guard_tokens)
        trainer.train(resume_from_checkpoint=saved)
    save_policy(trainer, config, stage.out, run_dtype(config, config.policy))
    if is_first_process():
        shutil.rmtree(stage.out / ROWS, ignore_errors=True)
    report = trainer.admission["train"]
    counts = {"in": report.rows, "out": report.kept, "rejected": report.rejected}
    account, words = training_account(trainer)
    if guard is not None:
        ended, why = said_of(guard, left_out.counts())
        account, words = account | ended, words + why
    if is_first_process():
        write_atomic(stage.out / "log_history.json", json.dumps(trainer.state.log_history))
        write_policy_card(stage.out, stage.provenance(), counts, trainer, account)
    noted = {"noted": report.noted} if report.noted else {}
    return stage.finish({**counts, **noted, "training": account}, note=words)
