"""`mpo score`: step scores and one reward per rollout; with `--visual_dependence`, the same without the image."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from mpo.multimodal.errors import ConfigError
from recipes.config import ScoreConfig
from recipes.stage.engine import engine
from recipes.stage.exclusive import a_local_engine
from recipes.stage.folder import manifest_of, open_stage
from recipes.stage.groups import iter_groups, problems_of, write_groups
from recipes.stage.kept_calls import open_calls
from recipes.stage.prms import prm_of
from rewards.prm.formats import format_files
from rewards.scoring.aggregation import AGGREGATIONS
from rewards.scoring.groups import StoredScorer, json_scores, score_in_turn, score_unseen_in_turn
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
    unscored, lacking = Counter[str](), {"blank": Counter[str](), "swapped": Counter[str]()}
    account = _Account()
    with (
        open_calls(stage) as calls,
        engine(config, partial(_scorer, config)) as run,
    ):
        stored = StoredScorer(run, calls.each, rows_a_call=config.batch_rows)
        write_groups(stage.out, account.counted(_scored(stored, config, unscored, lacking)))
    total, rewards, spreads = account.responses, account.rewards, account.spreads
    counts = {"in": total, "out": total, "rejected": {}, "unscored": dict(unscored)}
    if config.visual_dependence:  # a response without an image lacks both
        counts["without_other_picture"] = dict(lacking["blank"] | lacking["swapped"])
    if account.bounded:
        counts["bounded"] = account.bounded
        _log.warning(
            "%d of %d responses have scores that are only bounds; --read token_ids gives exact scores",
            account.bounded,
            total,
        )
    if spreads:
        counts["steps_with_spread"] = len(spreads)
        counts["steps_without_spread"] = account.steps - len(spreads)
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
    prm: StoredScorer, config: ScoreConfig, unscored: Counter[str], lacking: Mapping[str, Counter[str]]
) -> Iterator[RolloutGroup]:
    """The scored groups, some in memory; counts why some responses have no score, and why some have none unseen."""
    how, total = config.aggregation, manifest_of(config.groups)["counts"].get("out")
    groups = score_in_turn(iter_groups(config.groups), prm, how=how, reasons=unscored, total=total, describe="score")
    if not config.visual_dependence:
        return groups
    problems = [group.problem for group in iter_groups(config.groups)]
    for image, reasons in lacking.items():
        stored = prm.for_image(image)
        groups = score_unseen_in_turn(
            groups, problems, stored, image=image, how=how, lacking=reasons, describe=f"score, {image} image"
        )
    return groups


class _Account:
    """What the closing line and the manifest say of the scored groups, taken as they pass."""

    def __init__(self) -> None:
        self.responses = self.bounded = self.steps = 0
        self.rewards, self.spreads = array("d"), array("d")

    def counted(self, groups: Iterable[RolloutGroup]) -> Iterator[RolloutGroup]:
        for group in groups:
            scores = [rollout.step_scores for rollout in group.rollouts]
            self.responses += len(scores)
            self.bounded += sum(found is not None and found.bounds is not None for found in scores)
            self.steps += scored_steps(group)
            self.spreads.extend(step_spreads(group))
            self.rewards.extend(rollout.reward for rollout in group.rollouts if rollout.reward is not None)
            yield group
