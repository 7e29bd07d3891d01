"""`mpo label-steps`: Monte-Carlo labels for the steps of sampled responses."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mpo.multimodal.errors import DataError
from mpo.multimodal.loading import load_processor
from recipes.config import LabelConfig
from recipes.stage.engine import engine
from recipes.stage.folder import open_stage
from recipes.stage.groups import problems_of, read_groups, write_groups
from recipes.stage.kept_calls import open_calls
from recipes.stage.policies import continuer_of
from rewards.interchange.visualprm import VISUALPRM400K, write_visualprm400k
from rewards.prm.labelling.budgets import budget_named
from rewards.prm.labelling.continuations import CONTINUATIONS, KeptContinuations
from rewards.prm.labelling.cost import CostEstimate, estimate_cost
from rewards.prm.labelling.monte_carlo import label_steps
from rewards.prm.labelling.responses import choose_responses
from rewards.steps import split_on_blank_lines


def label(config: LabelConfig) -> Path:
    """Choose responses, estimate the cost, continue from the ends of their steps, count right answers.

    Writes `groups.jsonl` and the same labels as `visualprm400k.jsonl`, whose images are paths below the root.
    The verdicts of each call of the policy are in `calls.sqlite` as soon as they are there: after a kill the same
    command continues.
    """
    stage = open_stage("label-steps", config, inputs=[config.groups, config.policy])
    if stage.complete:
        return stage.out
    budget_named(config.budget, config.num_continuations)
    groups = read_groups(config.groups)
    processor = load_processor(config.policy)
    chosen, rejected = choose_responses(
        groups, processor, responses=config.responses, mixed_only=config.mixed_only, seed=config.seed
    )
    with (
        open_calls(stage) as calls,
        engine(
            config,
            partial(
                continuer_of,
                config.policy,
                temperature=config.temperature,
                max_new_tokens=config.max_new_tokens,
                batch_rows=config.batch_rows,
                with_texts=config.keep_continuations,
            ),
        ) as run,
    ):
        settings: dict[str, Any] = {
            "splitter": split_on_blank_lines,
            "num_continuations": config.num_continuations,
            "seed": config.seed,
            "budget": config.budget,
            "rows_a_call": config.batch_rows,
        }
        cost = CostEstimate(**calls.once("estimate", lambda: asdict(estimate_cost(chosen, run=run, **settings))))
        print(f"label-steps, budget {config.budget}: {cost}", file=sys.stderr)
        if config.keep_continuations:  # with their verdicts, for `mpo pairs --rule step_prefix`
            run = KeptContinuations(stage.out / CONTINUATIONS, stage.fingerprint, run)
        with tqdm(total=round(cost.expected), desc="continue steps", unit="continuation") as bar:
            started = time.monotonic()
            done = label_steps(chosen, run=run, **settings, on_drawn=bar.update, each=calls.each)
            seconds = round(time.monotonic() - started, 2)
    labelled, rejected = [group for group in done.groups if group.rollouts], rejected + done.rejected
    if not labelled:
        raise DataError(f"no response of {len(groups)} problems could be labelled: {dict(rejected)}")
    write_groups(stage.out, labelled)
    problems = problems_of(config.groups)
    root = stage.image_root or problems.parent
    write_visualprm400k(stage.out / VISUALPRM400K, labelled, image_root=root)
    total, out = (sum(len(group.rollouts) for group in some) for some in (groups, labelled))
    steps = sum(len(rollout.mc or ()) for group in labelled for rollout in group.rollouts)
    drawn = {
        "continuations": done.continuations,
        "tokens": done.tokens,
        "undecided": dict(sorted(done.undecided.items())),
        "seconds": seconds,
    }
    counts = {"in": total, "out": out, "rejected": dict(rejected), "steps": steps, "problems": str(problems)}
    right = sum(count.correct > 0 for group in labelled for rollout in group.rollouts for count in rollout.mc or ())
    note = f"{steps} steps, {right / steps:.1%} of them with a right continuation; {done.continuations} continuations"
    return stage.finish({**counts, "estimate": asdict(cost), "drawn": drawn}, note=note)
