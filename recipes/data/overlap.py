"""`mpo overlap`: near-duplicates between training and test problems, a number per test file and a list.

Training problems are files of problems, or the problems behind folders of samples, scores or pairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mpo.multimodal.files import read_json, write_atomic
from recipes.config import OverlapConfig
from recipes.stage.folder import MANIFEST, manifest_of, open_stage, problems_of
from recipes.stage.groups import read_problems
from recipes.stage.identity import file_content
from recipes.stage.problem_source import SOURCE, problem_file
from rewards.benchmarks.contamination import NearDuplicate, near_duplicates
from rewards.types import Problem

OVERLAP, COUNTS = "near_duplicates.jsonl", "overlap.json"


@dataclass
class OverlapSettings:
    """Settings of the stage that looks for near-duplicates."""

    out: Path
    contents: list[str]


@dataclass(frozen=True)
class Overlap:
    """What a test file has in common with the training problems.

    Attributes:
        problems: in the file.
        near: with close images and a question that is nearly one of the training problems'.
        identical: of those, the ones with equal image hashes and the whole question.
        images: of the others, those whose images alone are close to a training problem's.
    """

    problems: int
    near: int
    identical: int
    images: int


def overlap(config: OverlapConfig) -> Path:
    """Compare every test file with all the training problems; `near_duplicates.jsonl` has a line per problem found.

    Raises:
        DataError: a source holds no problems.
        StageError: a source does not exist.
    """
    training = [training_file(source, config.out / SOURCE / f"training{i}") for i, source in enumerate(config.training)]
    tests = [problem_file(source, config.out / SOURCE / f"test{i}") for i, source in enumerate(config.test)]
    contents = [file_content(file) for file in (*training, *tests)]
    stage = open_stage("overlap", OverlapSettings(config.out, contents), inputs=[], refuse=False)
    if stage.complete:
        return stage.out
    (stage.out / MANIFEST).unlink(missing_ok=True)
    rows, found = [], []
    for place, file in enumerate(tests):
        problems = list(read_problems(file, on_bad=lambda *_: None).values())
        near = list(near_duplicates(problems, _training(training)))
        rows += [{"set": place, **asdict(one)} for one in near]
        found.append(_counted(len(problems), near))
    write_atomic(stage.out / OVERLAP, "".join(json.dumps(row) + "\n" for row in rows))
    write_atomic(stage.out / COUNTS, json.dumps([asdict(one) for one in found], indent=1) + "\n")
    told = [f"{one.near} of {one.problems} of {source}" for source, one in zip(config.test, found, strict=True)]
    counts = {"near_duplicates": sum(one.near for one in found), "images_alone": sum(one.images for one in found)}
    return stage.finish(counts, note=f"near-duplicates: {', '.join(told)}")


def counts_of(folder: Path) -> list[Overlap]:
    """What was counted, in the order of the test files."""
    return [Overlap(**row) for row in read_json(folder / COUNTS)]


def training_file(source: Path, out: Path) -> Path:
    """The problems behind what was trained on: of a folder of groups or pairs, else the file itself.

    Args:
        source: a folder of groups or of `mpo pairs`, or whatever `--problems` takes.
        out: where problems of another form are written.

    Raises:
        StageError: a stage's folder without groups before it, or its problems are gone.
    """
    folder = source
    while (folder / MANIFEST).is_file():
        manifest = manifest_of(folder)
        before = manifest["sources"].get("groups")
        if manifest.get("problems") or before is None:
            return problems_of(folder)
        folder = next((at for at in (folder / before[0], Path(before[1])) if at.exists()), folder / before[0])
    return problem_file(source, out)


def _training(files: Sequence[Path]) -> Iterator[Problem]:
    for file in files:
        yield from read_problems(file, on_bad=lambda *_: None).values()


def _counted(problems: int, found: Sequence[NearDuplicate]) -> Overlap:
    near = [one for one in found if one.same_question]
    identical = sum(one.overlap == 1.0 and not one.distance for one in near)
    return Overlap(problems, len(near), identical, len(found) - len(near))
