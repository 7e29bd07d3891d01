"""`mpo score`: step scores and one reward a rollout; with `--visual_dependence`, the same without the picture."""

from __future__ import annotations

from pathlib import Path

from mpo.multimodal.errors import ConfigError
from recipes.config import ScoreConfig
from recipes.groups import problems_of, read_groups, write_groups
from recipes.run import open_stage
from rewards.aggregation import AGGREGATIONS
from rewards.prm.formats import format_files
from rewards.prm.model_prm import ModelPRM
from rewards.scoring import score_groups, score_unseen


def score(config: ScoreConfig) -> Path:
    """Score every rollout that can be scored; the others keep their place with reward `None`, and are counted.

    With `visual_dependence` each is scored three times: with its picture, a blank one and another problem's.
    """
    stage = open_stage("score", config, inputs=[config.groups, config.prm, *format_files(config.prm_format)])
    if stage.complete:
        return stage.out
    if config.aggregation not in AGGREGATIONS:
        raise ConfigError(f"unknown aggregation {config.aggregation!r}: expected one of {', '.join(AGGREGATIONS)}")
    groups = read_groups(config.groups)
    prm = ModelPRM.load(config.prm, prm_format=config.prm_format, batch_rows=config.batch_rows)
    scored, unscored = score_groups(groups, prm, how=config.aggregation, describe="score")
    total = sum(len(group.rollouts) for group in groups)
    counts = {"in": total, "out": total, "rejected": {}, "unscored": dict(unscored)}
    if config.visual_dependence:
        scored, lacking = score_unseen(scored, prm, how=config.aggregation, describe="score without the picture")
        counts["without_other_picture"] = dict(lacking)
    write_groups(stage.out, scored)
    return stage.finish({**counts, "problems": str(problems_of(config.groups))})
