"""Labelled steps between our groups, rows of VisualPRM400K and TRL's stepwise rows.

A row that breaks its format, or whose image cannot be decoded, is counted under the field that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mpo.multimodal.errors import ConfigError, DataError, ImageError, StageError
from mpo.multimodal.images import load_image
from recipes.config import ConvertDataConfig
from recipes.stage.groups import GROUPS, read_groups, write_groups, write_problems
from recipes.stage.pictures import Pictures
from recipes.stage.quarantine import Quarantine
from rewards.interchange.json_rows import write_rows
from rewards.interchange.stepwise_rows import (
    STEPWISE,
    Labelled,
    read_stepwise_parquet,
    to_stepwise_row,
    write_stepwise_parquet,
)
from rewards.interchange.visualprm import VISUALPRM400K, read_visualprm400k, to_visualprm_row
from rewards.types import Problem, Rollout, RolloutGroup

T = TypeVar("T")
Items = Iterator[tuple[str, Labelled | DataError]]  # where it stood, and the rollout or what is wrong with it


def read_labelled_groups(config: ConvertDataConfig) -> Items:
    """Every rollout of a finished stage; one without labels is an error."""
    for group in read_groups(config.source):
        for index, rollout in enumerate(group.rollouts):
            where = f"{group.problem.id}:{index}"
            yield where, (group.problem, rollout) if rollout.mc else DataError("labels: a rollout without step counts")


def read_visualprm(config: ConvertDataConfig) -> Items:
    """Rows of a JSON-lines file, or of one in a folder; their images lie below `image_root`, or beside the file."""
    file = inside(config.source, VISUALPRM400K)
    root = config.image_root or file.parent
    if not root.is_dir():
        raise StageError(f"image_root {root} is not a folder; expected the folder that the image paths start from")
    return ((f"{file.name}:{number}", row) for number, row in read_visualprm400k(file, image_root=root))


def read_stepwise(config: ConvertDataConfig) -> Items:
    """Rows of a Parquet file, or of one in a folder."""
    file = inside(config.source, STEPWISE)
    return ((f"{file.name}:{number}", row) for number, row in read_stepwise_parquet(file))


def write_labelled_groups(items: Iterable[tuple[str, Labelled]], out: Path, quarantine: Quarantine) -> int:
    """`groups.jsonl`, `problems.jsonl` and `images/`, for `mpo train-prm`; rows of one problem are put together."""
    pictures = Pictures(out / "images")
    problems: dict[str, Problem] = {}
    rollouts: dict[str, list[Rollout]] = {}
    for where, (problem, rollout) in items:
        try:
            kept = replace(problem, images=tuple(pictures.kept(image) for image in problem.images))
        except ImageError as error:
            _reject(quarantine, where, ImageError(f"image: {error}"))
            continue
        if problems.setdefault(kept.id, kept) != kept:
            message = f"problem_id: {kept.id!r} is already the id of another question, answer or image"
            _reject(quarantine, where, DataError(message))
            continue
        rollouts.setdefault(kept.id, []).append(rollout)
    write_problems(out / "problems.jsonl", problems.values())
    write_groups(out, (RolloutGroup(problems[id_], tuple(some)) for id_, some in rollouts.items()))
    return sum(map(len, rollouts.values()))


def write_visualprm(items: Iterable[tuple[str, Labelled]], out: Path, quarantine: Quarantine) -> int:
    """`visualprm400k.jsonl` and `images/`, which hold PNG bytes that we decoded and encoded again."""
    pictures = Pictures(out / "images", encode=True)

    def convert(problem: Problem, rollout: Rollout) -> dict[str, Any]:
        kept = replace(problem, images=tuple(pictures.kept(image) for image in problem.images))
        return to_visualprm_row(kept, rollout, image_root=out)

    return write_rows(out / VISUALPRM400K, _converted(items, convert, quarantine))


def write_stepwise(items: Iterable[tuple[str, Labelled]], out: Path, quarantine: Quarantine) -> int:
    """`stepwise.parquet`."""

    def decode(problem: Problem, rollout: Rollout) -> Labelled:
        kept = replace(problem, images=tuple(load_image(image) for image in problem.images))
        to_stepwise_row(kept, rollout)  # raises here what would end the whole file
        return kept, rollout

    return write_stepwise_parquet(_converted(items, decode, quarantine), out / STEPWISE)


def usable_items(items: Items, quarantine: Quarantine) -> Iterator[tuple[str, Labelled]]:
    """The rollouts; faults go into the quarantine."""
    for where, item in items:
        if isinstance(item, DataError):
            _reject(quarantine, where, item)
        else:
            yield where, item


def _converted(
    items: Iterable[tuple[str, Labelled]], convert: Callable[[Problem, Rollout], T], quarantine: Quarantine
) -> Iterator[T]:
    """What the rollouts become; those that cannot be converted go into the quarantine."""
    for where, (problem, rollout) in items:
        try:
            made = convert(problem, rollout)
        except ImageError as error:
            _reject(quarantine, where, ImageError(f"image: {error}"))
        except DataError as error:
            _reject(quarantine, where, DataError(f"steps: {error}"))
        else:
            yield made


def inside(source: Path, name: str) -> Path:
    """The file that a path means: itself, or the one of that name in a folder."""
    file = source / name if source.is_dir() else source
    if not file.is_file():
        raise ConfigError(f"{file} is not a file; expected it, or a folder with {name}")
    return file


def _reject(quarantine: Quarantine, where: str, fault: DataError) -> None:
    """Under the field that is wrong, with which each message begins."""
    field, _, _ = str(fault).partition(":")
    quarantine.add(where, field if len(field) <= 40 else "row", str(fault))


READERS: dict[str, tuple[Callable[[ConvertDataConfig], Items], str]] = {
    "groups": (read_labelled_groups, GROUPS),
    "visualprm": (read_visualprm, VISUALPRM400K),
    "stepwise": (read_stepwise, STEPWISE),
}
WRITERS: dict[str, tuple[Callable[[Iterable[tuple[str, Labelled]], Path, Quarantine], int], str]] = {
    "groups": (write_labelled_groups, GROUPS),
    "visualprm": (write_visualprm, VISUALPRM400K),
    "stepwise": (write_stepwise, STEPWISE),
}
