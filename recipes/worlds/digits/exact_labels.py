"""`mpo label-exact`: the world's own step labels, in place of Monte-Carlo counts.

What a PRM learns from exact labels bounds what it can learn from sampled ones: if it cannot order right above wrong
answers with these, its architecture or its data must change before any continuation is paid for.
"""

from __future__ import annotations

from pathlib import Path

from mpo.multimodal.loading import load_processor
from recipes.config import ExactLabelConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import problems_of, read_groups, write_groups
from recipes.worlds.digits.truth import step_truth
from rewards.prm.labelling.responses import choose_responses
from rewards.prm.labelling.source import EXACT
from rewards.steps import split_on_blank_lines
from rewards.types import MonteCarloCount, Problem, Rollout, RolloutGroup


def label_exactly(config: ExactLabelConfig) -> Path:
    """Choose responses as `mpo label-steps` does, and give every step the count 1 of 1 or 0 of 1."""
    stage = open_stage("label-exact", config, inputs=[config.groups, config.policy])
    if stage.complete:
        return stage.out
    groups = read_groups(config.groups)
    chosen, rejected = choose_responses(
        groups,
        load_processor(config.policy),
        responses=config.responses,
        mixed_only=config.mixed_only,
        seed=config.seed,
    )
    labelled = [
        RolloutGroup(group.problem, tuple(_labelled(group.problem, rollout) for rollout in group.rollouts))
        for group in chosen
    ]
    write_groups(stage.out, labelled)
    total, out = (sum(len(group.rollouts) for group in some) for some in (groups, labelled))
    counts = {"in": total, "out": out, "rejected": dict(rejected)}
    labels = [count.correct for group in labelled for r in group.rollouts for count in r.mc or () if count]
    note = f"{len(labels)} steps, {sum(labels)} of them right"
    return stage.finish({**counts, "problems": str(problems_of(config.groups))}, note=note)


def _labelled(problem: Problem, rollout: Rollout) -> Rollout:
    steps = split_on_blank_lines(rollout.completion.text)
    labels = step_truth(problem, [step.text for step in steps])
    return rollout.with_(mc=tuple(MonteCarloCount(int(label), 1) for label in labels), label_source=EXACT)
