"""`mpo sample`: N completions a problem, each with why it ended.

Every completion is in the stage's store (`rewards/store.py`) as soon as it is drawn. A run that was killed goes on with
the same command and draws only what is missing; a larger `num_samples` adds to what is there. `groups.jsonl`, which the
later stages read, is written from the store at the end, in the order of the problems and of the sample indexes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError, DataError, ImageError
from mpo.multimodal.images import image_sha256, load_image
from recipes.config import SampleConfig
from recipes.engine import engine
from recipes.groups import read_problems, write_groups
from recipes.quarantine import Quarantine
from recipes.run import MANIFEST, Stage, open_stage
from rewards.generators.gathering import check_number
from rewards.generators.pooled import PooledGenerator, drawn
from rewards.interchange.sample_rows import write_sample_parquet
from rewards.other_pictures import swapped
from rewards.store import OnChange, SampleStore, StoredSample
from rewards.types import Generator, Problem, Rollout, RolloutGroup, SamplingParams
from rewards.units import digest, problem_key, unit_key

STORE = "samples.sqlite"
PARQUET = "samples.parquet"


def sample(config: SampleConfig) -> Path:
    """Draw what the store lacks, and write `groups.jsonl`.

    Every problem in it has exactly `num_samples` rollouts. A bad line, a problem whose picture cannot be decoded and
    one that the server or the processor refuses are not in it: they stand in `quarantine.jsonl` and are counted.
    """
    params = checked_params(config)
    inputs = [path for path in (config.policy, config.problems) if path is not None]
    stage = open_stage("sample", config, inputs=inputs, grows=("num_samples",), refuse=config.on_change == "refuse")
    parquet = stage.out / PARQUET
    if stage.complete and (parquet.exists() or not config.parquet):
        return stage.out
    quarantine = Quarantine()
    every = read_problems(config.problems, on_bad=quarantine.add).values()
    problems, image_digests = readable(every, quarantine)
    asked = swapped(problems) if config.swap_images else problems
    with SampleStore(
        stage.out / STORE, _fingerprint(stage, config), on_change=cast(OnChange, config.on_change)
    ) as store:
        (stage.out / MANIFEST).unlink(missing_ok=True)
        keys = [
            [
                unit_key(store.segment, problem_key(problem, [image_digests[image] for image in problem.images]), index)
                for index in range(config.num_samples)
            ]
            for problem in asked
        ]
        refused = _draw_missing(store, asked, keys, config, params)
        for id, reason in refused.items():
            quarantine.add(id, "refused by the server" if config.base_url else "refused by the processor", reason)
        quarantine.write(stage.out)
        kept = [(problem, row) for problem, row in zip(problems, keys, strict=True) if problem.id not in refused]
        if not kept:
            details = "; ".join(row["detail"] for row in quarantine.rows[:3])
            raise DataError(f"no problem of {config.problems} could be sampled: {quarantine.counts()}: {details}")
        write_groups(stage.out, _groups(store, kept))
        if config.parquet or parquet.exists():
            write_sample_parquet(_groups(store, kept), parquet)
        out, rejected = config.num_samples * len(kept), quarantine.counts(times=config.num_samples)
        counts = {"in": out + sum(rejected.values()), "out": out, "rejected": rejected}
        return stage.finish({**counts, "problems": str(config.problems)})


def checked_params(config: SampleConfig) -> SamplingParams:
    """The sampling settings; ConfigError for what cannot work, before anything is read."""
    if (config.policy is None) != bool(config.base_url) or bool(config.base_url) != (config.model is not None):
        raise ConfigError("expected either policy (a model folder), or base_url and model (a server)")
    if config.engine != "local" and config.base_url:
        raise ConfigError("engine ray is for a policy of this process; to a server, raise concurrency instead")
    if config.on_change not in ("refuse", "segment"):
        raise ConfigError(f"on_change must be refuse or segment, got {config.on_change!r}")
    if config.batch_rows < 1 or config.concurrency < 1:
        raise ConfigError(f"expected batch_rows and concurrency >= 1, got {config.batch_rows}, {config.concurrency}")
    params = SamplingParams(config.temperature, config.top_p, config.top_k, config.max_new_tokens)
    check_number(config.num_samples, params)
    return params


def _fingerprint(stage: Stage, config: SampleConfig) -> dict[str, Any]:
    """All that a sample depends on besides its problem: settings, inputs by content, the prompt template."""
    fingerprint = {key: value for key, value in stage.by_content().items() if key != "num_samples"}
    if config.policy is not None:
        from mpo.multimodal.loading import load_processor

        fingerprint["template"] = digest(load_processor(config.policy).chat_template)[:16]
    return fingerprint


def generator_of(config: SampleConfig, params: SamplingParams, rows_a_problem: int) -> Generator:
    """The policy in this process, or the client of its server."""
    if config.base_url and config.model is not None:
        try:
            from rewards.generators.openai_generator import OpenAIGenerator
        except ImportError as error:
            raise ConfigError(f"a server needs the extra: pip install 'mpo-prm[server]' ({error})") from error

        return OpenAIGenerator(
            config.base_url,
            config.model,
            params,
            concurrency=config.concurrency,
            samples_a_request=config.samples_a_request,
            logprobs=config.logprobs,
        )
    from mpo.multimodal.loading import load_for_inference, load_processor
    from rewards.generators.transformers_generator import TransformersGenerator

    assert config.policy is not None
    return TransformersGenerator(
        load_for_inference(config.policy),
        load_processor(config.policy),
        params,
        batch_rows=config.batch_rows,
        rows_a_problem=rows_a_problem,
        keep_logprobs=config.logprobs,
    )


@contextmanager
def _drawing(config: SampleConfig, params: SamplingParams, rows_a_problem: int) -> Iterator[Generator]:
    """The generator of this process, which tells of each call at once; or one whose calls several workers make."""
    if config.engine == "local":
        yield generator_of(config, params, rows_a_problem)
    else:
        with engine(config, partial(_drawer, config, params, rows_a_problem)) as run:
            yield PooledGenerator(run, problems_a_task=max(1, config.batch_rows // rows_a_problem))


@contextmanager
def _drawer(config: SampleConfig, params: SamplingParams, rows_a_problem: int) -> Iterator[Callable[[Any], Any]]:
    """What makes one call: the policy, loaded."""
    yield partial(drawn, generator_of(config, params, rows_a_problem))


def _draw_missing(
    store: SampleStore,
    asked: Sequence[Problem],
    keys: Sequence[Sequence[str]],
    config: SampleConfig,
    params: SamplingParams,
) -> dict[str, str]:
    """Draw the units that are not in the store, keep them as they come; id → reason of each problem refused."""
    stored = store.keys()
    done = {(place, index) for place, row in enumerate(keys) for index, key in enumerate(row) if key in stored}
    total = len(asked) * config.num_samples
    refused: dict[int, str] = {}
    if len(done) == total:
        return {}
    # As many rows a problem as when this segment began, so that going on cuts the same calls.
    rows_a_problem = store.note("rows_a_problem", config.num_samples)
    with (
        _drawing(config, params, rows_a_problem) as generator,
        tqdm(total=total, initial=len(done), desc=f"sample {config.problems.stem}", unit="sample") as bar,
    ):
        for samples in generator.draw(asked, config.num_samples, seed=config.seed, done=done):
            store.add(
                StoredSample(keys[s.problem][s.index], asked[s.problem].id, s.index, s.seed, s.completion)
                for s in samples
                if s.completion is not None
            )
            refused |= {s.problem: s.reason for s in samples if s.completion is None}
            bar.update(len(samples))
    return {asked[place].id: reason for place, reason in refused.items()}


def _groups(store: SampleStore, kept: Iterable[tuple[Problem, Sequence[str]]]) -> Iterator[RolloutGroup]:
    """The samples of each problem, read from the store when their turn comes."""
    for problem, row in kept:
        found = store.completions(row)
        yield RolloutGroup(problem, tuple(Rollout(found[key]) for key in row))


def readable(problems: Iterable[Problem], quarantine: Quarantine) -> tuple[list[Problem], Mapping[Any, str]]:
    """The problems whose pictures all decode, and the content key of each picture; the others go into quarantine."""
    kept, digests = [], dict[Any, str]()
    for problem in problems:
        try:
            digests |= {image: image_sha256(load_image(image)) for image in problem.images}
        except ImageError as error:
            quarantine.add(problem.id, "unreadable image", str(error))
        else:
            kept.append(problem)
    return kept, digests
