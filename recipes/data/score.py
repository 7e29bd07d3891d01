"""`mpo score`: step scores and one reward per rollout; with `--visual_dependence`, the same without the image."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from mpo.multimodal.errors import ConfigError
from recipes.config import ScoreConfig
from recipes.stage.engine import engine
from recipes.stage.exclusive import a_local_engine
from recipes.stage.folder import open_stage
from recipes.stage.groups import problems_of, read_groups, write_groups
from recipes.stage.kept_calls import open_calls
from recipes.stage.prms import prm_of
from rewards.prm.formats import format_files
from rewards.scoring.aggregation import AGGREGATIONS
from rewards.scoring.groups import StoredScorer, json_scores, score_groups, score_unseen
from rewards.scoring.spreads import scored_steps, step_spreads
from rewards.types import RolloutGroup
from rewards.verifying.thoughts import scored_spans

_log = logging.getLogger(__name__)


def score(config: ScoreConfig) -> Path:
    """Score every rollout that can be scored; the others keep their place with reward `None`, and are counted.

    With `visual_dependence` the same again with blank and with other problems' images, into the same groups.
    Each batch's scores are in `calls.sqlite` as soon as they are kept: after a kill the same command continues.
    """
    stage = open_stage("score", config, inputs=[config.groups, config.prm, *format_files(config.prm_format)])
    if stage.complete:
        return stage.out
    if config.aggregation not in AGGREGATIONS:
        raise ConfigError(f"unknown aggregation {config.aggregation!r}: expected one of {', '.join(AGGREGATIONS)}")
    scored_spans("", config.score)  # refuses a part that there is not
    a_local_engine(config)
    groups = read_groups(config.groups)
    with (
        open_calls(stage) as calls,
        engine(config, partial(_scorer, config)) as run,
    ):
        stored = StoredScorer(run, calls.each, rows_a_call=config.batch_rows)
        scored, unscored, lacking = _scored(groups, stored, config)
    total = sum(len(group.rollouts) for group in groups)
    counts = {"in": total, "out": total, "rejected": {}, "unscored": dict(unscored)}
    if config.visual_dependence:
        counts["without_other_picture"] = dict(lacking)
    write_groups(stage.out, scored)
    if bounded := _bounded(scored):
        counts["bounded"] = bounded
        _log.warning(
            "%d of %d responses have scores that are only bounds; --read token_ids gives exact scores", bounded, total
        )
    if spreads := [spread for group in scored for spread in step_spreads(group)]:
        counts["steps_with_spread"] = len(spreads)
        counts["steps_without_spread"] = sum(map(scored_steps, scored)) - len(spreads)
    rewards = [rollout.reward for group in scored for rollout in group.rollouts if rollout.reward is not None]
    note = f"mean reward {fmean(rewards):.3f}" if rewards else "no response scored"
    note += f", mean spread of a step {fmean(spreads):.3f}" if spreads else ""
    note += f", {total - len(rewards)} unscored ({', '.join(unscored)})" if unscored else ""
    return stage.finish({**counts, "problems": str(problems_of(config.groups))}, note=note)


@contextmanager
def _scorer(config: ScoreConfig) -> Iterator[Callable[[Any], Any]]:
    """What makes one call: the PRM, loaded."""
    prm = prm_of(
        config.prm,
        prm_format=config.prm_format,
        batch_rows=config.batch_rows,
        base_url=config.base_url,
        model=config.model,
        read=config.read,
        concurrency=config.concurrency,
        part=config.score,
    )
    yield partial(json_scores, prm)


def _scored(
    groups: list[RolloutGroup], prm: StoredScorer, config: ScoreConfig
) -> tuple[list[RolloutGroup], Counter[str], Counter[str]]:
    """The scored groups; why some responses have no score, and why some have none without their image."""
    scored, unscored = score_groups(groups, prm, how=config.aggregation, describe="score")
    lacking: Counter[str] = Counter()
    for image in ("blank", "swapped") if config.visual_dependence else ():
        describe = f"score, {image} image"
        stored = prm.for_image(image)
        scored, reasons = score_unseen(scored, stored, image=image, how=config.aggregation, describe=describe)
        lacking |= reasons  # a response without an image lacks both
    return scored, unscored, lacking


def _bounded(groups: list[RolloutGroup]) -> int:
    """Responses with a step whose score lies in an interval."""
    scores = [rollout.step_scores for group in groups for rollout in group.rollouts]
    return sum(found is not None and found.bounds is not None for found in scores)
