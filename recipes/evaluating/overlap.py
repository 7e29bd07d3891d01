"""Near-duplicates between what a policy or PRM was trained on and the benchmarks: a number each, and a list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mpo.multimodal.files import write_atomic
from recipes.evaluating.settings import Matrix, folder_name
from recipes.stage.folder import MANIFEST, manifest_of, open_stage, problems_of
from recipes.stage.groups import read_problems
from recipes.stage.identity import file_content
from recipes.stage.problem_source import problem_file
from rewards.benchmarks.contamination import NearDuplicate, near_duplicates
from rewards.types import Problem

OVERLAP = "near_duplicates.jsonl"


@dataclass
class OverlapSettings:
    """Settings of the stage that looks for near-duplicates."""

    out: Path
    contents: list[str]


@dataclass(frozen=True)
class Overlap:
    """What a benchmark has in common with the training problems.

    Attributes:
        problems: of the benchmark.
        near: with close images and a question that is nearly one of the training problems'.
        identical: of those, the ones with equal image hashes and the whole question.
        images: of the others, those whose images alone are close to a training problem's.
    """

    problems: int
    near: int
    identical: int
    images: int


def overlaps(matrix: Matrix, benchmarks: Mapping[str, Path], out: Path) -> dict[str, Overlap]:
    """Benchmark → what it has in common with `training`; empty without any."""
    if not matrix.training:
        return {}
    files = [training_file(source, out.parent / "training" / folder_name(str(source))) for source in matrix.training]
    contents = [file_content(file) for file in (*files, *benchmarks.values())]
    stage = open_stage("overlap", OverlapSettings(out, contents), inputs=[], refuse=False)
    if not stage.complete:
        (out / MANIFEST).unlink(missing_ok=True)
        rows = []
        for name, file in benchmarks.items():
            tests = read_problems(file).values()
            rows += [{"benchmark": name, **asdict(one)} for one in near_duplicates(tests, _training(files))]
        write_atomic(out / OVERLAP, "".join(json.dumps(row) + "\n" for row in rows))
        stage.finish({"near_duplicates": sum(row["same_question"] for row in rows)})
    found = _by_benchmark(out / OVERLAP)
    return {name: _counted(len(read_problems(file)), found.get(name, ())) for name, file in benchmarks.items()}


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


def _by_benchmark(file: Path) -> dict[str, list[NearDuplicate]]:
    found: dict[str, list[NearDuplicate]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row.pop("benchmark"), []).append(NearDuplicate(**row))
    return found


def _counted(problems: int, found: Sequence[NearDuplicate]) -> Overlap:
    near = [one for one in found if one.same_question]
    identical = sum(one.overlap == 1.0 and not one.distance for one in near)
    return Overlap(problems, len(near), identical, len(found) - len(near))
