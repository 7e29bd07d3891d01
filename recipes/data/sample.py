"""`mpo sample`: N completions per problem, each with why it ended.

Every completion is in the stage's store (`rewards/kept/store.py`) as soon as it is drawn. A run that was killed
continues with the same command and draws only what is missing; a larger `num_samples` adds to what is there.
`groups.jsonl`, which the later stages read, is written from the store at the end, in the order of the problems and of
the sample indexes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from PIL import Image
from tqdm.auto import tqdm

from mpo.multimodal.errors import DataError
from mpo.multimodal.files import opened_atomically
from mpo.multimodal.images import image_sha256, load_image, png_bytes
from recipes.config import SampleConfig
from recipes.stage.engine import engine
from recipes.stage.folder import MANIFEST, Stage, open_stage
from recipes.stage.groups import read_problems, write_groups
from recipes.stage.own_server import served
from recipes.stage.policies import checked_params, generator_of, with_rows
from recipes.stage.problem_source import SOURCE, problem_files
from recipes.stage.quarantine import Quarantine, readable
from recipes.stage.set_aside import set_aside
from rewards.errors import ServerError
from rewards.interchange.sample_rows import write_sample_parquet
from rewards.kept.keys import problem_key, unit_key
from rewards.kept.store import SampleStore, StoredSample
from rewards.sampling.generator import Generator, SamplingParams
from rewards.sampling.pooled import PooledGenerator, drawn
from rewards.sampling.prompts import prompt_files, prompt_of
from rewards.sampling.rows_per_call import ROWS
from rewards.scoring.other_images import partners, showing
from rewards.types import FinishReason, Problem, Rollout, RolloutGroup

STORE = "samples.sqlite"
PARQUET = "samples.parquet"
OTHER_IMAGES = "other_images"  # those that had to be resized


def sample(config: SampleConfig) -> Path:
    """Draw what the store lacks, and write `groups.jsonl`.

    Every problem in it has exactly `num_samples` rollouts. A bad line, a problem whose image cannot be decoded and
    one that the server or the processor refuses are not in it: they are listed in `quarantine.jsonl` and counted. So is
    one that got no usable reply in three runs, while the server answered others.
    """
    params, prompt = checked_params(config), prompt_of(config.prompt, system=config.system)
    given = {"": config.problems}
    own, root = problem_files(
        given, config.out / SOURCE, columns=config.columns, grows=True, image_root=config.image_root
    )
    config = with_rows(replace(config, problems=own[""], image_root=root))
    inputs = [path for path in (config.policy, config.problems, *prompt_files(config.prompt)) if path is not None]
    stage = open_stage(
        "sample", config, inputs=inputs, grows=("num_samples", "problems"), refuse=config.on_change == "refuse"
    )
    parquet = stage.out / PARQUET
    if stage.complete and (parquet.exists() or not config.parquet):
        return stage.out
    quarantine = Quarantine()
    every = read_problems(config.problems, image_root=config.image_root, on_bad=quarantine.add).values()
    problems, image_digests = readable((replace(problem, prompt=prompt) for problem in every), quarantine)
    asked = problems
    if config.swap_images:
        problems, asked, image_digests = _with_other_images(problems, quarantine, stage.out / OTHER_IMAGES)
    fingerprint = {**_fingerprint(stage), "prompt": asdict(prompt)}
    with SampleStore(stage.out / STORE, fingerprint, on_change=config.on_change) as store:
        (stage.out / MANIFEST).unlink(missing_ok=True)
        content = [problem_key(problem, [image_digests[image] for image in problem.images]) for problem in asked]
        units = _Units(store, content, config.num_samples)
        refused = _draw_missing(store, asked, units, config, params)
        for id, reason in refused.items():
            quarantine.add(
                id, "refused by the server" if config.base_url or config.serve else "refused by the processor", reason
            )
        quarantine.write(stage.out)
        kept = [(place, problem) for place, problem in enumerate(problems) if problem.id not in refused]
        if not kept:
            details = "; ".join(row["detail"] for row in quarantine.rows[:3])
            raise DataError(f"no problem of {config.problems} could be sampled: {quarantine.counts()}: {details}")
        ends = Counter[FinishReason]()
        write_groups(stage.out, _counted(_groups(units, kept), ends))
        if config.parquet or parquet.exists():
            write_sample_parquet(_groups(units, kept), parquet)
        out, rejected = config.num_samples * len(kept), quarantine.counts(times=config.num_samples)
        counts = {"in": out + sum(rejected.values()), "out": out, "rejected": rejected}
        note = f"{ends[FinishReason.LENGTH]} cut at {config.max_new_tokens} tokens"
        return stage.finish({**counts, "problems": str(config.problems)}, note=note)


def _with_other_images(
    problems: Sequence[Problem], quarantine: Quarantine, folder: Path
) -> tuple[list[Problem], list[Problem], dict[Any, str]]:
    """The problems that have a partner, each as it is asked with the partner's images, and those images' digests."""
    kept: list[Problem] = []
    asked: list[Problem] = []
    digests: dict[Any, str] = {}
    for problem, partner in zip(problems, partners(problems), strict=True):
        if partner is None:
            quarantine.add(
                problem.id, "no other image", "no other problem has as many images, all different from its own"
            )
            continue
        shown = showing(problem, problems[partner])
        paths = [_on_disk(image, folder) for image in shown.images]
        digests |= {path: image_sha256(load_image(path)) for path in paths}
        kept.append(problem)
        asked.append(replace(shown, images=tuple(paths)))
    return kept, asked, digests


def _on_disk(image: Any, folder: Path) -> Any:
    """A resized image as a file in the folder, named by its pixels; what is a file already stays where it is."""
    if not isinstance(image, Image.Image):
        return image
    path = folder / f"{image_sha256(image)[:24]}.png"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        with opened_atomically(path, "wb") as file:
            file.write(png_bytes(image))
    return path


def _fingerprint(stage: Stage) -> dict[str, Any]:
    """All that a sample depends on besides its problem, which is in its own key: settings, and the policy's content."""
    return {key: value for key, value in stage.by_content().items() if key not in ("num_samples", "problems")}


@contextmanager
def _drawing(config: SampleConfig, params: SamplingParams, rows_a_problem: int) -> Iterator[Generator]:
    """The generator of this process, which tells of each call at once; or one whose calls several workers make."""
    if config.engine == "local":
        yield generator_of(config, params, rows_a_problem)
    else:
        with engine(config, partial(_drawer, config, params, rows_a_problem)) as run:
            yield PooledGenerator(run, problems_a_task=max(1, (config.batch_rows or ROWS) // rows_a_problem))


@contextmanager
def _drawer(config: SampleConfig, params: SamplingParams, rows_a_problem: int) -> Iterator[Callable[[Any], Any]]:
    """What makes one call: the policy, loaded."""
    yield partial(drawn, generator_of(config, params, rows_a_problem))


def _draw_missing(
    store: SampleStore,
    asked: Sequence[Problem],
    units: _Units,
    config: SampleConfig,
    params: SamplingParams,
) -> dict[str, str]:
    """Draw the units that are not in the store, keep them as they come; id → reason of each problem refused."""
    total = len(asked) * config.num_samples
    refused: dict[int, str] = {}
    if units.num_stored == total:
        return {}
    # As many rows per problem as when this segment began, so that a resumed run cuts the same calls.
    rows_a_problem = store.note("rows_a_problem", config.num_samples)
    with (
        served(config, store.path.parent) as asked_there,
        _drawing(asked_there, params, rows_a_problem) as generator,
        tqdm(total=total, initial=units.num_stored, desc=_what(config), unit="sample") as bar,
    ):
        try:
            for samples in generator.draw(asked, config.num_samples, seed=config.seed, done=units):
                store.add(
                    StoredSample(units.key(s.problem, s.index), asked[s.problem].id, s.index, s.seed, s.completion)
                    for s in samples
                    if s.completion is not None
                )
                refused |= {s.problem: s.reason for s in samples if s.completion is None}
                bar.update(len(samples))
        except ServerError as error:
            aside = set_aside(store, error, {problem.id: units.key(place, 0) for place, problem in enumerate(asked)})
            return {**{asked[place].id: reason for place, reason in refused.items()}, **aside}
    return {asked[place].id: reason for place, reason in refused.items()}


def _what(config: SampleConfig) -> str:
    """What a bar of progress counts."""
    how = ", greedy" * (config.temperature == 0) + ", another image" * config.swap_images
    return f"sample {config.problems.stem}{how}"


class _Units:
    """The units of a run: (place of the problem, sample index). It contains those that were stored when it was made.

    Keys are made when they are asked for, and of a unit a byte is held: the keys of a million would take 150 MB.
    """

    def __init__(self, store: SampleStore, content: Sequence[str], num_samples: int) -> None:
        self.store, self.content, self.num_samples = store, content, num_samples
        places = range(len(content) if store.holds_any() else 0)
        self._stored = [bytes(store.has(self.keys(place))) for place in places]
        self.num_stored = sum(map(sum, self._stored))

    def __contains__(self, unit: object) -> bool:
        place, index = cast(tuple[int, int], unit)
        return bool(self._stored) and bool(self._stored[place][index])

    def key(self, place: int, index: int) -> str:
        return unit_key(self.store.segment, self.content[place], index)

    def keys(self, place: int) -> list[str]:
        return [self.key(place, index) for index in range(self.num_samples)]


def _counted(groups: Iterable[RolloutGroup], ends: Counter[FinishReason]) -> Iterator[RolloutGroup]:
    """The groups, while the reasons why their responses ended are counted."""
    for group in groups:
        ends.update(rollout.completion.finish_reason for rollout in group.rollouts)
        yield group


def _groups(units: _Units, kept: Iterable[tuple[int, Problem]]) -> Iterator[RolloutGroup]:
    """The samples of each problem, read from the store when their turn comes."""
    for place, problem in kept:
        keys = units.keys(place)
        found = units.store.completions(keys)
        yield RolloutGroup(problem, tuple(Rollout(found[key]) for key in keys))
