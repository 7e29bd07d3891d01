"""`mpo score`: step scores and one reward a rollout."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_processor
from recipes.calls import open_calls
from recipes.config import ScoreConfig
from recipes.groups import problems_of, read_groups, write_groups
from recipes.run import open_stage
from recipes.sample import swapped
from rewards.aggregation import AGGREGATIONS
from rewards.prm.formats import format_files
from rewards.prm.model_prm import ModelPRM
from rewards.scoring import StoredScorer, score_groups
from rewards.types import RolloutGroup


def score(config: ScoreConfig) -> Path:
    """Score every rollout that can be scored; the others keep their place with reward `None`, and are counted.

    Each batch's scores are in `calls.sqlite` as soon as they are there: after a kill the same command goes on.
    """
    stage = open_stage("score", config, inputs=[config.groups, config.prm, *format_files(config.prm_format)])
    if stage.complete:
        return stage.out
    if config.aggregation not in AGGREGATIONS:
        raise ConfigError(f"unknown aggregation {config.aggregation!r}: expected one of {', '.join(AGGREGATIONS)}")
    groups = read_groups(config.groups)
    asked = _with_swapped_images(groups) if config.swap_images else groups
    with open_calls(stage, processor=load_processor(config.prm), groups=groups) as calls:
        prm = ModelPRM.load(config.prm, prm_format=config.prm_format, batch_rows=config.batch_rows)
        stored = StoredScorer(prm, calls.once, rows_a_call=config.batch_rows)
        scored, unscored = score_groups(asked, stored, how=config.aggregation, describe="score")
    scored = [replace(after, problem=before.problem) for after, before in zip(scored, groups, strict=True)]
    write_groups(stage.out, scored)
    total = sum(len(group.rollouts) for group in groups)
    counts = {"in": total, "out": total, "rejected": {}, "unscored": dict(Counter(unscored))}
    return stage.finish({**counts, "problems": str(problems_of(config.groups))})


def _with_swapped_images(groups: list[RolloutGroup]) -> list[RolloutGroup]:
    problems = swapped([group.problem for group in groups])
    return [replace(group, problem=problem) for group, problem in zip(groups, problems, strict=True)]
