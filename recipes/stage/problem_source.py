"""`--problems` of any kind: our JSON lines are read where they lie; any other source becomes such a file, once.

That file, its images and the rows that give no problem are a finished stage of their own, in a folder of the stage that
asked for them; later runs and later stages read it there, and nothing is downloaded twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from mpo.multimodal.errors import ConfigError, DataError, ImageError
from recipes.stage.folder import MANIFEST, open_stage
from recipes.stage.groups import write_problems
from recipes.stage.kept_images import KeptImages
from recipes.stage.quarantine import Quarantine
from rewards.interchange.hub import HUB
from rewards.interchange.json_rows import iter_rows
from rewards.interchange.problems import Rejected, read_problems
from rewards.interchange.tables import files_of
from rewards.types import Problem

PROBLEMS = "problems.jsonl"
SOURCE = "problem_source"  # folder inside the folder of the stage that asked


@dataclass
class ProblemSource:
    """Settings of the stage that writes the file."""

    source: Path
    out: Path
    columns: list[str] = field(default_factory=list)
    hub: str = ""  # the address, which is a setting where it is no path
    sample: int = 0
    image_root: Path | None = None


def problem_file(source: Path, out: Path, *, columns: Sequence[str] = (), grows: bool = False) -> Path:
    """A file of problems in our own form.

    Args:
        source: our JSON lines, or whatever `rewards/interchange/problems.py` reads.
        out: folder to write to if it is not our own form.
        columns: `part=column`, such as `question=query`.
        grows: whether the folder may take other problems in place of those that it has.

    Raises:
        FingerprintError: `out` holds other problems, and `grows` is off.
        ConfigError, StageError, DataError: as `read_problems`, or no row gives a problem.
    """
    if not columns and _is_ours(source):
        return source
    return import_problems(ProblemSource(source, out, list(columns)), grows=grows) / PROBLEMS


def import_problems(config: ProblemSource, *, grows: bool = False) -> Path:
    """Write `problems.jsonl` and `images/`; returns the folder. Arguments and errors are those of `problem_file`."""
    address = str(config.source)
    config = replace(config, hub=address if address.startswith(HUB) else "")
    columns = columns_of(config.columns)
    inputs = [] if config.hub else files_of(config.source)
    stage = open_stage("problems", config, inputs=inputs, refuse=not grows)
    if stage.complete:
        return stage.out
    (stage.out / MANIFEST).unlink(missing_ok=True)
    quarantine = Quarantine()
    found = read_problems(address if config.hub else config.source, columns=columns, image_root=config.image_root)
    some = islice(found, config.sample) if config.sample else found
    problems = list(kept_problems(some, stage.out, quarantine))
    quarantine.write(stage.out)
    if not problems:
        first = "; ".join(row["detail"] for row in quarantine.rows[:3])
        raise DataError(f"no row of {config.source} gives a problem: {quarantine.counts()}: {first}")
    write_problems(stage.out / PROBLEMS, problems)
    rejected = quarantine.counts()
    return stage.finish({"in": len(problems) + sum(rejected.values()), "out": len(problems), "rejected": rejected})


def kept_problems(found: Iterable[Problem | Rejected], out: Path, quarantine: Quarantine) -> Iterator[Problem]:
    """The problems, their images as files below `out`; the others go into the quarantine."""
    images = KeptImages(out / "images")
    for item in found:
        if isinstance(item, Rejected):
            quarantine.add(item.where, item.reason, item.detail)
            continue
        try:
            yield replace(item, images=tuple(images.kept(image) for image in item.images))
        except ImageError as error:
            quarantine.add(item.id, "unreadable image", str(error))


def columns_of(given: Sequence[str]) -> Mapping[str, str]:
    """`question=query` … as a mapping.

    Raises:
        ConfigError: a word without a sign, or a part that is named twice.
    """
    found: dict[str, str] = {}
    for word in given:
        part, sign, column = word.partition("=")
        if not (part and sign and column) or part in found:
            raise ConfigError(f"--columns {word!r}: expected part=column, such as question=query, each part once")
        found[part] = column
    return found


def _is_ours(source: Path) -> bool:
    """Whether a file's first row has what our own form needs; what is missing or damaged is left to our reader."""
    if str(source).startswith(HUB) or source.is_dir():
        return False
    if not source.is_file():
        return True
    if source.suffix != ".jsonl":
        return False
    first = next((row for _, row in iter_rows(source)), None)
    return not isinstance(first, dict) or {"id", "question"} <= first.keys()
