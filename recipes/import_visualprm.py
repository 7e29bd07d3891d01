"""`mpo import-visualprm`: rows in the format of VisualPRM400K as labelled groups for `mpo train-prm`."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from mpo.multimodal.errors import DataError, ImageError, StageError
from mpo.multimodal.images import load_image
from recipes.config import ImportVisualPRMConfig
from recipes.groups import write_groups, write_problems
from recipes.run import open_stage
from rewards.interchange.visualprm import read_visualprm400k
from rewards.types import Problem, Rollout, RolloutGroup


def import_visualprm(config: ImportVisualPRMConfig) -> Path:
    """Read the rows, put those of one problem together, and its pictures beside them.

    A row that breaks the format, or whose picture cannot be decoded, is counted under the field that is wrong; the
    manifest's `first` has the line and the words of each field's first fault.
    """
    stage = open_stage("import-visualprm", config, inputs=[config.rows])
    if stage.complete:
        return stage.out
    if not config.image_root.is_dir():
        raise StageError(f"image_root {config.image_root} is not a folder; expected the one that the paths start from")
    pictures = _Pictures(config.image_root.resolve(), stage.out / "images")
    problems: dict[str, Problem] = {}
    rollouts: dict[str, list[Rollout]] = {}
    rejected, first = Counter[str](), dict[str, str]()
    for number, row in read_visualprm400k(config.rows, image_root=config.image_root):
        fault = row if isinstance(row, DataError) else _add(*row, problems, rollouts, pictures)
        if fault:
            field = str(fault).partition(":")[0]
            rejected[field] += 1
            first.setdefault(field, f"line {number}: {fault}")
    out = sum(map(len, rollouts.values()))
    for fault_line in first.values():
        print(f"import-visualprm: {config.rows}: {fault_line}", file=sys.stderr)
    if not out:
        raise DataError(f"no row of {config.rows} could be read: {'; '.join(first.values()) or 'it is empty'}")
    write_problems(stage.out / "problems.jsonl", problems.values())
    write_groups(stage.out, (RolloutGroup(problem, tuple(rollouts[id_])) for id_, problem in problems.items()))
    counts = {"in": out + rejected.total(), "out": out, "rejected": dict(rejected), "first": first}
    return stage.finish({**counts, "problems": str(stage.out / "problems.jsonl")})


class _Pictures:
    """Each picture is decoded once, so that a damaged one costs its own rows and no training run, and kept as it is."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self._known: dict[Path, Path | ImageError] = {}

    def kept(self, image: Path) -> Path:
        """The picture's place in the folder: a hard link where the file system has one, else a copy.

        Raises:
            ImageError: it cannot be decoded.
        """
        if image not in self._known:
            self._known[image] = self._keep(image)
        found = self._known[image]
        if isinstance(found, ImageError):
            raise found
        return found

    def _keep(self, image: Path) -> Path | ImageError:
        try:
            load_image(image)
        except ImageError as error:
            return ImageError(f"image: {error}")
        place = self.folder / image.relative_to(self.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(image, place)
        except OSError:
            shutil.copyfile(image, place)
        return place


def _add(
    problem: Problem,
    rollout: Rollout,
    problems: dict[str, Problem],
    rollouts: dict[str, list[Rollout]],
    pictures: _Pictures,
) -> DataError | None:
    """Put a row with its problem; what is wrong with it, or `None`."""
    try:
        images = tuple(pictures.kept(Path(str(image))) for image in problem.images)
    except ImageError as error:
        return error
    problem = replace(problem, images=images)
    if problems.setdefault(problem.id, problem) != problem:
        return DataError(f"problem_id: {problem.id!r} is the id of another question, answer or picture before")
    rollouts.setdefault(problem.id, []).append(rollout)
    return None
