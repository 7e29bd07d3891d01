"""Whether held-out problems are really held out: compared by question and pixels, not by id or path.

The same question with the same pixels is refused. What comes near it, another size or another file of the image, other
words around the question, is counted, listed in `near_duplicates.jsonl` and said before anything is trained.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from mpo.multimodal.errors import ConfigError, ImageError
from mpo.multimodal.files import write_atomic
from mpo.multimodal.images import image_sha256, load_image
from recipes.stage.folder import is_first_process
from recipes.stage.groups import read_problems
from rewards.benchmarks.contamination import WORDS, NearDuplicate, near_duplicates, with_like_questions
from rewards.types import Problem

Pixels = tuple[str, ...]
NEAR = "near_duplicates.jsonl"
AT_ONCE = 256  # prompts, their images undecoded, whose questions are compared in one go
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
    trained_on = _readable(others, image_root)
    for problem in trained_on:
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
    _refuse(both, tested, names, (held_out, others))
    near = near_duplicates(*with_like_questions(tested, trained_on))
    _warn_of_near([one for one in near if one.same_question], tested, names, run)


def check_not_asked(
    tested: Sequence[Problem],
    prompts: Iterable[Problem],
    *,
    names: tuple[str, str],
    places: tuple[Path, Path],
    run: Path | None = None,
) -> None:
    """The same for prompts as a policy was asked: a template's words may stand before and after the question.

    A prompt with the same pixels asks a problem's question if it holds all of it; without images, if it holds it on
    lines of its own, so that "2 + 2?" is not found in "3 × 2 + 2?".

    Args:
        tested: the held-out problems.
        prompts: of pairs, see `prompts_in_rows`; read once, few are kept in memory.
        names: of the two settings, for the error.
        places: what they were set to.
        run: folder for the list of near-duplicates.

    Raises:
        ConfigError: a problem's question is asked with the same pixels.
    """
    by_pixels: defaultdict[Pixels, list[Problem]] = defaultdict(list)
    for problem in tested:
        if (pixels := _pixels(problem)) is not None:
            by_pixels[pixels].append(problem)
    both: dict[str, Problem] = {}

    def passing() -> Iterator[Problem]:
        for prompt in _like(tested, prompts):
            try:
                opened = replace(prompt, images=tuple(load_image(image) for image in prompt.images))
            except ImageError:
                continue
            pixels = _pixels(opened)
            same = by_pixels.get(pixels, []) if pixels is not None else []
            both.update({problem.id: problem for problem in same if asks(opened, problem.question)})
            yield opened

    near = [one for one in near_duplicates(tested, passing()) if one.same_question]
    _refuse(list(both.values()), tested, names, places)
    _warn_of_near(near, tested, names, run)


def asks(prompt: Problem, question: str) -> bool:
    """Whether a prompt's text is a question, perhaps inside a template.

    Example:
        >>> asks(Problem("p", "3 × 2 + 2?"), "2 + 2?"), asks(Problem("p", "2 + 2?\\n\\nThink first."), "2 + 2?")
        (False, True)
    """
    if not (own := question.strip()):
        return prompt.question == question
    around = (r"(?<!\w)", r"(?!\w)") if prompt.images else (r"^\s*", r"\s*$")
    return re.search(re.escape(own).join(around), prompt.question, re.MULTILINE) is not None


def _like(tested: Sequence[Problem], prompts: Iterable[Problem]) -> Iterator[Problem]:
    """The prompts whose text comes near a tested question, or holds one that is too short for its n-grams to tell."""
    short = {own for one in tested if len((own := one.question.strip()).split()) <= WORDS}
    rest = iter(prompts)
    while batch := list(islice(rest, AT_ONCE)):
        like = {id(prompt) for prompt in with_like_questions(tested, batch)[1]}
        yield from (one for one in batch if id(one) in like or any(own in one.question for own in short))


def _refuse(
    both: Sequence[Problem], tested: Sequence[Problem], names: tuple[str, str], places: tuple[Path, Path]
) -> None:
    if both:
        raise ConfigError(
            f"{len(both)} of {len(tested)} questions of {names[0]} {places[0]} are also in {names[1]} {places[1]}, "
            f"e.g. {both[0].id!r}: {both[0].question[:60]!r}; the {names[0].strip('-')} must be held out: choose other "
            "problems"
        )


def _warn_of_near(
    found: Sequence[NearDuplicate], tested: Sequence[Problem], names: tuple[str, str], run: Path | None
) -> None:
    """Say and list what comes near; of several processes the first does."""
    if not found or not is_first_process():
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
