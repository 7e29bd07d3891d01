"""`mpo label-steps`: Monte-Carlo labels for the steps of sampled responses."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.loading import load_processor
from recipes.config import LabelConfig
from recipes.stage.engine import engine
from recipes.stage.exclusive import a_choice_has_a_size, a_local_engine, one_policy
from recipes.stage.folder import Stage, open_stage
from recipes.stage.groups import problems_of, read_groups, write_groups
from recipes.stage.kept_calls import open_calls
from recipes.stage.own_server import served
from recipes.stage.policies import continuer_of, served_generator, with_rows
from recipes.stage.set_aside import without_failing
from rewards.interchange.visualprm import VISUALPRM400K, write_visualprm400k
from rewards.kept.calls import CallStore
from rewards.prm.formats import find_format, format_files
from rewards.prm.labelling.budgets import budget_named
from rewards.prm.labelling.choice import Choice, choose_problems
from rewards.prm.labelling.confidence import LEVEL, THRESHOLD, UNIFORM, decided_steps
from rewards.prm.labelling.continuation_limit import within_limit
from rewards.prm.labelling.continuations import (
    CONTINUATIONS,
    KeptContinuations,
    keep_continuations,
    make_continuations,
)
from rewards.prm.labelling.cost import CostEstimate, estimate_cost, estimate_from_first, most_only
from rewards.prm.labelling.monte_carlo import Labelled, label_steps
from rewards.prm.labelling.responses import choose_responses
from rewards.prm.labelling.served import Unit, label_steps_on_servers
from rewards.prm.labelling.token_limit import TokenLimit, tokens_of
from rewards.sampling.rows_per_call import ROWS
from rewards.steps import scored_steps
from rewards.types import RolloutGroup

Draw = Callable[[list[RolloutGroup], Callable[[int], object]], Labelled]  # with what is told of each draw
NOT_CHOSEN = "problem not chosen"
OVER_LIMIT = "over the number of continuations"
Estimate = Callable[[list[RolloutGroup]], CostEstimate]


def label(config: LabelConfig) -> Path:
    """Choose problems and responses, estimate the cost, continue from the ends of their steps, count right answers.

    A response with more steps than the PRM will take is merged first, as it will be in training and scoring.
    Writes `groups.jsonl` and the same labels as `visualprm400k.jsonl`, whose images are paths below the root.
    The verdicts of each call of the policy, or of each prefix that a server continued, are in `calls.sqlite` as soon as
    they are there: after a kill the same command continues.
    """
    _check(config)
    config = with_rows(config)
    stage = open_stage(
        "label-steps",
        config,
        inputs=[config.groups, *([config.policy] if config.policy else []), *format_files(config.prm_format)],
    )
    if stage.complete:
        return stage.out
    groups = read_groups(config.groups)
    processor = load_processor(config.policy) if config.policy else None
    chosen, rejected = choose_responses(
        groups, processor, responses=config.responses, mixed_only=config.mixed_only, seed=config.seed
    )
    chosen, choice = _choose(config, groups, chosen, rejected)
    chosen = _limited(config, chosen, rejected)
    with (
        open_calls(stage) as calls,
        served(config, stage.out) as asking,
        (_on_servers if asking.base_url else _here)(asking, stage, calls) as (estimate, draw),
    ):

        def attempt(aside: Mapping[str, str]) -> tuple[CostEstimate, Labelled, float]:
            left = [group for group in chosen if group.problem.id not in aside]
            cost = _estimated(config, left, estimate, calls)
            with tqdm(total=round(cost.expected), desc="continue steps", unit="continuation") as bar:
                started = time.monotonic()
                done = draw(left, bar.update)
                return cost, done, round(time.monotonic() - started, 2)

        keys = {group.problem.id: group.problem.id for group in chosen}
        (cost, done, seconds), aside = without_failing(calls, keys, attempt)
    lost = sum(len(group.rollouts) for group in chosen if group.problem.id in aside)
    rejected += done.rejected + Counter({"no usable reply of the server": lost} if lost else {})
    labelled = [group for group in done.groups if group.rollouts]
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
        "set_aside": aside,
    }
    counts = {"in": total, "out": out, "rejected": dict(rejected), "steps": steps, "problems": str(problems)}
    right = sum(bool(count and count.correct) for group in labelled for r in group.rollouts for count in r.mc or ())
    decided = decided_steps(rollout for group in labelled for rollout in group.rollouts)
    counts["confidence"] = {"level": LEVEL, "threshold": THRESHOLD, "prior": UNIFORM, **asdict(decided)}
    note = f"{steps} steps, {right / steps:.1%} of them with a right continuation; {done.continuations} continuations"
    if choice is not None:
        counts["chosen"], note = asdict(choice), f"{choice}; {note}"
    return stage.finish({**counts, "estimate": asdict(cost), "drawn": drawn}, note=f"{note}; {decided}")


def _choose(
    config: LabelConfig, groups: list[RolloutGroup], responses: list[RolloutGroup], rejected: Counter[str]
) -> tuple[list[RolloutGroup], Choice | None]:
    """The problems to label of those that could be, and the account; the responses to the others are counted."""
    if config.choose_fraction is None:
        return responses, None
    chosen, choice = choose_problems(
        groups, responses, rule=config.choose, fraction=config.choose_fraction, seed=config.seed
    )
    before, after = (sum(len(group.rollouts) for group in some) for some in (responses, chosen))
    rejected += Counter({NOT_CHOSEN: before - after})
    return chosen, choice


def _limited(config: LabelConfig, chosen: list[RolloutGroup], rejected: Counter[str]) -> list[RolloutGroup]:
    """The problems that the continuations surely suffice for; the responses to the others are counted."""
    if not config.max_continuations:
        return chosen
    kept = within_limit(chosen, limit=config.max_continuations, seed=config.seed, **_budget(config))
    before, after = (sum(len(group.rollouts) for group in some) for some in (chosen, kept))
    rejected += Counter({OVER_LIMIT: before - after})
    return kept


def _estimated(config: LabelConfig, chosen: list[RolloutGroup], estimate: Estimate, calls: CallStore) -> CostEstimate:
    """What the labels will cost, measured once for all runs of the command, and said in each."""
    cost = CostEstimate(**calls.once("estimate", lambda: asdict(estimate(chosen))))
    each = config.price_per_million_tokens / 1e6
    price = f", for {cost.tokens * each:,.2f} at the given price" if each and cost.sample else ""
    print(f"label-steps, budget {config.budget}: {cost}{price}", file=sys.stderr)
    return cost


def _check(config: LabelConfig) -> None:
    """Refuse what cannot work, before anything is read."""
    budget_named(config.budget, config.num_continuations)
    one_policy(config)
    a_local_engine(config)
    a_choice_has_a_size(config)
    if config.max_tokens_total < 0 or not 0 <= config.price_per_million_tokens < float("inf"):
        raise ConfigError(
            "expected max_tokens_total and price_per_million_tokens of at least 0, "
            f"got {config.max_tokens_total} and {config.price_per_million_tokens}"
        )


def _budget(config: LabelConfig) -> dict[str, Any]:
    return {
        "splitter": partial(scored_steps, max_steps=find_format(config.prm_format).max_steps),  # merged, then paid for
        "num_continuations": config.num_continuations,
        "budget": config.budget,
    }


def _settings(config: LabelConfig) -> dict[str, Any]:
    return _budget(config) | {"seed": config.seed}


def _limit(config: LabelConfig, calls: CallStore) -> TokenLimit:
    """The limit, with what was spent before; without one the store is not read for it."""
    return TokenLimit(config.max_tokens_total, spent=tokens_of(calls) if config.max_tokens_total else 0)


@contextmanager
def _here(config: LabelConfig, stage: Stage, calls: CallStore) -> Iterator[tuple[Estimate, Draw]]:
    """The model in this process or on several workers: all responses advance together, in calls of `batch_rows`."""
    assert config.policy is not None
    rows = config.batch_rows or ROWS
    work = partial(
        continuer_of,
        config.policy,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        batch_rows=rows,
        with_texts=config.keep_continuations,
    )
    settings = _settings(config) | {"rows_a_call": rows}
    with engine(config, work) as run:

        def draw(chosen: list[RolloutGroup], tell: Callable[[int], object]) -> Labelled:
            kept = _limit(config, calls).over(run)
            if config.keep_continuations:
                kept = KeptContinuations(stage.out / CONTINUATIONS, stage.fingerprint, kept)
            return label_steps(chosen, run=kept, on_drawn=tell, each=calls.each, **settings)

        limited = partial(most_only, **_budget(config))  # a sample for the estimate would be spent from the limit
        yield limited if config.max_continuations else partial(estimate_cost, run=run, **settings), draw


@contextmanager
def _on_servers(config: LabelConfig, stage: Stage, calls: CallStore) -> Iterator[tuple[Estimate, Draw]]:
    """One server or several: each problem continues as soon as its own continuations are there."""
    texts, settings = stage.out / CONTINUATIONS, _settings(config)
    if config.keep_continuations:
        make_continuations(texts, stage.fingerprint)

    def keep(unit: Unit, result: dict[str, Any]) -> None:
        if config.keep_continuations:
            indexes = range(unit.first, unit.first + unit.n)
            places = [(unit.response.problem.id, unit.prefix, unit.seed, index) for index in indexes]
            keep_continuations(texts, places, result)

    with served_generator(config) as (servers, verify_many):

        def draw(chosen: list[RolloutGroup], tell: Callable[[int], object]) -> Labelled:
            return label_steps_on_servers(
                chosen,
                servers=servers,
                verify_many=verify_many,
                calls=calls,
                limit=_limit(config, calls),
                on_drawn=tell,
                keep_texts=keep,
                **settings,
            )

        def first(some: list[RolloutGroup]) -> Labelled:
            with tqdm(desc=f"continue steps of {len(some)} problems first", unit="continuation") as bar:
                return draw(some, bar.update)

        yield partial(estimate_from_first, label=first, **settings), draw
