"""Whether held-out problems are really held out: compared by question and pixels, not by id or path."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from mpo.multimodal.errors import ConfigError, ImageError
from mpo.multimodal.images import image_sha256, load_image
from recipes.stage.groups import read_problems
from rewards.types import Problem

Pixels = tuple[str, ...]


def check_held_out(held_out: Path, others: Path, *, names: tuple[str, str], image_root: Path | None = None) -> None:
    """Refuse held-out problems that are among others; only images of equal questions are opened.

    Args:
        held_out: a file of problems; lines that cannot be read are left to the stage that samples.
        others: the file that they must not be in.
        names: of the two settings, for the error.
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


def _readable(path: Path, image_root: Path | None) -> list[Problem]:
    return list(read_problems(path, image_root=image_root, on_bad=lambda *_: None).values())


def _pixels(problem: Problem) -> Pixels | None:
    """Hashes of the images; None where one cannot be used."""
    try:
        return tuple(image_sha256(load_image(image)) for image in problem.images)
    except ImageError:
        return None
