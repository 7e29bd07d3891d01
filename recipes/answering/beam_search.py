"""`mpo beam-search`: one response per problem, found step by step with the PRM, ready for `mpo verify`.

`groups.jsonl` holds the best response of each search; `searches.jsonl` all its finished ones with their rewards, its
tokens (what was cut off included), rounds and dropped extensions. A killed run starts anew.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.files import write_atomic
from recipes.config import BeamSearchConfig, SampleConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import read_problems, write_groups
from recipes.stage.policies import checked_params, generator_of
from recipes.stage.prms import prm_of
from recipes.stage.problem_source import SOURCE, problem_files
from recipes.stage.quarantine import Quarantine, readable
from rewards.choosing.beam_search import BeamSearch, Search, group_of
from rewards.sampling.prompts import prompt_files, prompt_of
from rewards.scoring.aggregation import AGGREGATIONS

SEARCHES = "searches.jsonl"


def beam_search(config: BeamSearchConfig) -> Path:
    """Search every problem; one whose images, prompt or responses cannot be used is listed in `quarantine.jsonl`.

    Raises:
        ConfigError: settings that cannot work; all are checked before weights load.
        DataError: no problem was answered.
    """
    if config.aggregation not in AGGREGATIONS or config.problems_a_call < 1 or config.temperature == 0:
        raise ConfigError(
            f"expected aggregation of {', '.join(AGGREGATIONS)}, problems_a_call >= 1 and temperature > 0, "
            f"got {config.aggregation!r}, {config.problems_a_call}, {config.temperature}"
        )
    given = {"": config.problems}
    own, root = problem_files(given, config.out / SOURCE, columns=config.columns, image_root=config.image_root)
    config = replace(config, problems=own[""], image_root=root)
    sampling, prompt = sampling_of(config), prompt_of(config.prompt, system=config.system)
    params = checked_params(sampling)
    inputs = [
        path for path in (config.problems, config.prm, config.policy, *prompt_files(config.prompt)) if path is not None
    ]
    stage = open_stage("beam-search", config, inputs=inputs)
    if stage.complete:
        return stage.out
    quarantine = Quarantine()
    every = read_problems(config.problems, image_root=config.image_root, on_bad=quarantine.add).values()
    problems, _ = readable((replace(problem, prompt=prompt) for problem in every), quarantine)
    engine = BeamSearch(
        generator_of(sampling, params, config.expand),
        prm_of(
            config.prm,
            batch_rows=config.batch_rows,
            base_url=config.prm_base_url,
            model=config.prm_model,
            read=config.prm_read,
            concurrency=config.concurrency,
        ),
        width=config.width,
        expand=config.expand,
        max_rounds=config.max_rounds,
        aggregation=config.aggregation,
    )
    searches: list[Search] = []
    with tqdm(total=len(problems), desc="beam search", unit="problem") as bar:
        for start in range(0, len(problems), config.problems_a_call):
            some = problems[start : start + config.problems_a_call]
            searches += engine.search(some, seed=config.seed)
            bar.update(len(some))
    answered = []
    for search in searches:
        if search.refused:
            quarantine.add(search.problem.id, "refused by the server", search.refused)
        elif search.best is None:
            quarantine.add(search.problem.id, "no readable answer", f"{search.dropped} extensions dropped")
        else:
            answered.append(search)
    quarantine.write(stage.out)
    if not answered:
        raise DataError(f"no problem of {config.problems} was answered: {quarantine.counts()}")
    write_groups(stage.out, [group_of(search) for search in answered])
    write_atomic(stage.out / SEARCHES, "".join(json.dumps(_row(search)) + "\n" for search in answered))
    rejected = quarantine.counts()
    counts = {"in": len(answered) + sum(rejected.values()), "out": len(answered), "rejected": rejected}
    cost = {name: sum(getattr(search, name) for search in searches) for name in ("tokens", "extensions", "dropped")}
    unfinished = sum(not search.finished for search in answered)
    note = f"{cost['tokens']} tokens, {unfinished} searches without a finished response"
    return stage.finish({**counts, **cost, "unfinished": unfinished, "problems": str(config.problems)}, note=note)


def sampling_of(config: BeamSearchConfig) -> SampleConfig:
    """How extensions are drawn, in the terms of `mpo sample`."""
    return SampleConfig(
        problems=config.problems,
        out=config.out,
        policy=config.policy,
        base_url=config.base_url,
        model=config.model,
        num_samples=config.expand,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_new_tokens=config.max_new_tokens,
        batch_rows=config.batch_rows,
        concurrency=config.concurrency,
    )


def _row(search: Search) -> dict[str, Any]:
    return {
        "problem_id": search.problem.id,
        "tokens": search.tokens,
        "extensions": search.extensions,
        "rounds": search.rounds,
        "dropped": search.dropped,
        "finished": [{"text": r.completion.text, "reward": r.reward} for r in search.finished],
    }
