"""`mpo continue`: for problems with only wrong samples, ask again from where the samples were still sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
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
from recipes.stage.own_server import served
from recipes.stage.policies import continuer_of, served_generator, with_rows
from recipes.stage.set_aside import without_failing
from rewards.kept.calls import Run
from rewards.pairing.prefixes import Continued, continue_beginnings, is_all_wrong, sound_beginnings
from rewards.pairing.spans import RejectedSpan
from rewards.prm.labelling.monte_carlo import checked_call
from rewards.sampling.rows_per_call import ROWS
from rewards.types import Verdict


def continue_prefixes(config: ContinueConfig) -> Path:
    """Write `groups.jsonl` with prefix ⊕ continuation as verified responses, for `mpo score` and `mpo pairs`.

    The budget is prefixes x num_continuations for each problem with only wrong samples; the manifest says what was
    drawn. Each call's results are in `calls.sqlite` as soon as they are there.
    """
    one_policy(config)
    a_local_engine(config)
    config = with_rows(config)
    rows = 1 if config.base_url or config.serve else config.batch_rows or ROWS  # servers: a beginning is a call
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
    with (
        open_calls(stage) as calls,
        served(config, stage.out) as asking,
        _on_servers(asking) if asking.base_url else _here(asking, rows) as run,
    ):

        def attempt(aside: Mapping[str, str]) -> Continued:
            left = [beginning for beginning in beginnings if beginning.problem.id not in aside]
            total = len(left) * config.num_continuations
            with tqdm(total=total, desc="continue prefixes", unit="continuation") as bar:
                return continue_beginnings(
                    left,
                    run=run,
                    num_continuations=config.num_continuations,
                    seed=config.seed,
                    rows_a_call=rows,
                    each=calls.each,
                    on_drawn=bar.update,
                )

        done, aside = without_failing(calls, {group.problem.id: group.problem.id for group in groups}, attempt)
    asked = sum(beginning.problem.id not in aside for beginning in beginnings)
    write_groups(stage.out, done.groups)
    right = [{r.verdict for r in group.rollouts} & {Verdict.CORRECT} for group in done.groups]
    counts = {
        "in": len(groups),
        "out": len(done.groups),
        "rejected": +Counter(
            {
                "no sound beginning": len(groups) - len(done.groups) - len(aside),
                "no usable reply of the server": len(aside),
            }
        ),
        "responses_without_prefix": dict(rejected),
        "continuations": asked * config.num_continuations,
        "set_aside": aside,
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
    with served_generator(config) as (servers, verify_many):
        from rewards.sampling.served_calls import side_by_side

        yield side_by_side(servers, partial(checked_call, verify_many=verify_many))
