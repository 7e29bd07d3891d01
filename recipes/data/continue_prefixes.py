"""`mpo continue`: for problems with only wrong samples, ask again from where the samples were still sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError
from recipes.config import ContinueConfig
from recipes.stage.engine import engine
from recipes.stage.exclusive import a_local_engine, one_policy
from recipes.stage.folder import open_stage
from recipes.stage.groups import problems_of, read_groups, write_groups
from recipes.stage.kept_calls import open_calls
from recipes.stage.policies import continuer_of, served_generator, with_rows
from rewards.kept.calls import Run, in_turn
from rewards.pairing.prefixes import continue_beginnings, is_all_wrong, sound_beginnings
from rewards.pairing.spans import RejectedSpan
from rewards.prm.labelling.monte_carlo import Continuer
from rewards.sampling.rows_per_call import ROWS
from rewards.types import Verdict

SERVED_ROWS = 1024  # continuations that servers are asked for side by side, and that a kill loses


def continue_prefixes(config: ContinueConfig) -> Path:
    """Write `groups.jsonl` with prefix ⊕ continuation as verified responses, for `mpo score` and `mpo pairs`.

    The budget is prefixes x num_continuations for each problem with only wrong samples; the manifest says what was
    drawn. Each call's results are in `calls.sqlite` as soon as they are there.
    """
    one_policy(config)
    a_local_engine(config)
    config = with_rows(config)
    rows = SERVED_ROWS if config.base_url else config.batch_rows or ROWS
    stage = open_stage("continue", config, inputs=[config.groups, *([config.policy] if config.policy else [])])
    if stage.complete:
        return stage.out
    if config.prefixes < 1 or config.num_continuations < 1:
        raise ConfigError(f"expected prefixes and num_continuations of at least 1, got {config}")
    span = RejectedSpan("first_bad_step", config.span_source, config.bad_step_threshold)
    groups = [group for group in read_groups(config.groups) if is_all_wrong(group)]
    beginnings, rejected = [], Counter[str]()
    for group in groups:
        found, reasons = sound_beginnings(group, span, most=config.prefixes)
        beginnings += found
        rejected += reasons
    total = len(beginnings) * config.num_continuations
    with (
        open_calls(stage) as calls,
        _on_servers(config) if config.base_url else _here(config, rows) as run,
        tqdm(total=total, desc="continue prefixes", unit="continuation") as bar,
    ):
        done = continue_beginnings(
            beginnings,
            run=run,
            num_continuations=config.num_continuations,
            seed=config.seed,
            rows_a_call=rows,
            each=calls.each,
            on_drawn=bar.update,
        )
    write_groups(stage.out, done.groups)
    right = [{r.verdict for r in group.rollouts} & {Verdict.CORRECT} for group in done.groups]
    counts = {
        "in": len(groups),
        "out": len(done.groups),
        "rejected": {"no sound beginning": len(groups) - len(done.groups)},
        "responses_without_prefix": dict(rejected),
        "continuations": total,
        "tokens": done.tokens,
        "solved": sum(map(bool, right)),
    }
    note = f"{counts['solved']} problems with a right continuation, of {len(groups)} without a right sample"
    return stage.finish({**counts, "problems": str(problems_of(config.groups))}, note=note)


def _here(config: ContinueConfig, rows: int) -> AbstractContextManager[Run]:
    assert config.policy is not None
    work = partial(
        continuer_of,
        config.policy,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        batch_rows=rows,
        with_texts=True,
    )
    return engine(config, work)


@contextmanager
def _on_servers(config: ContinueConfig) -> Iterator[Run]:
    with served_generator(config) as (generator, verify_many):
        yield in_turn(Continuer(generator, verify_many, with_texts=True))
