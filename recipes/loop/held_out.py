"""Whether held-out problems are really held out: compared by question and pixels, not by id or path.

The same question with the same pixels is refused. What comes near it, another size or another file of the image, other
words around the question, is counted, listed in `near_duplicates.jsonl` and said before anything is trained.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from mpo.multimodal.errors import ConfigError, ImageError
from mpo.multimodal.files import write_atomic
from mpo.multimodal.images import image_sha256, load_image
from recipes.stage.groups import read_problems
from rewards.benchmarks.contamination import near_duplicates, with_like_questions
from rewards.types import Problem

Pixels = tuple[str, ...]
NEAR = "near_duplicates.jsonl"
_log = logging.getLogger(__name__)


def check_held_out(
    held_out: Path, others: Path, *, names: tuple[str, str], run: Path | None = None, image_root: Path | None = None
) -> None:
    """Refuse held-out problems that are among others, and warn of near-duplicates; only images of like questions are
    opened.

    Args:
        held_out: a file of problems; lines that cannot be read are left to the stage that samples.
        others: the file that they must not be in.
        names: of the two settings, for the error.
        run: folder for the list of near-duplicates.
        image_root: folder of the images of both; None: each file's own.

    Raises:
        ConfigError: a problem with the same question and pixels is in both.
    """
    by_question: defaultdict[str, list[Problem]] = defaultdict(list)
    for problem in _readable(others, image_root):
        by_question[problem.question].append(problem)
    tested = _readable(held_out, image_root)
    seen: dict[str, set[Pixels | None]] = {}
    both = []
    for problem in tested:
        question = problem.question
        if question in by_question and question not in seen:
            seen[question] = {_pixels(other) for other in by_question[question]} - {None}
        if question in seen and _pixels(problem) in seen[question]:
            both.append(problem)
    if both:
        raise ConfigError(
            f"{len(both)} of {len(tested)} questions of {names[0]} {held_out} are also in {names[1]} {others}, e.g. "
            f"{both[0].id!r}: {both[0].question[:60]!r}; the {names[0].strip('-')} must be held out: choose other "
            "problems"
        )
    _warn_of_near(tested, _readable(others, image_root), names, run)


def _warn_of_near(tested: list[Problem], others: list[Problem], names: tuple[str, str], run: Path | None) -> None:
    """Say and list what comes near."""
    found = [one for one in near_duplicates(*with_like_questions(tested, others)) if one.same_question]
    if not found:
        return
    where = ""
    if run is not None:
        run.mkdir(parents=True, exist_ok=True)
        path = run / f"{names[1].strip('-').replace('.', '_')}_{NEAR}"
        write_atomic(path, "".join(json.dumps(asdict(one)) + "\n" for one in found))
        where = f"; {path} lists them"
    _log.warning(
        "%d of %d problems of %s are near-duplicates of problems of %s, e.g. %r of %r%s",
        len(found), len(tested), names[0], names[1], found[0].test, found[0].training, where,
    )  # fmt: skip


def _readable(path: Path, image_root: Path | None) -> list[Problem]:
    return list(read_problems(path, image_root=image_root, on_bad=lambda *_: None).values())


def _pixels(problem: Problem) -> Pixels | None:
    """Hashes of the images; None where one cannot be used."""
    try:
        return tuple(image_sha256(load_image(image)) for image in problem.images)
    except ImageError:
        return None
