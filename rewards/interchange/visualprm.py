"""VisualPRM400K rows: a response's steps with their Monte-Carlo counts (VisualPRM, arXiv 2503.10291).

A line of the file is what InternVL's released labelling pipeline writes
(`internvl_chat/tools/reasoning_data_pipeline/visualprm_data_pieline.py`):

    {"image", "question", "question_orig", "answer", "response", "num_mc_sequences",
     "steps_with_score": [{"step", "score", "num_mc_correct", "num_mc_total"}, …]}

`image` is a path inside a root folder, or a list of them; `question` is the whole prompt with `<image>` in the place of
the image, `question_orig` the same without; `score` is num_mc_correct / num_mc_total; a step of the file may be
several of the response's, merged. Our rows have three more fields, which other readers skip: `problem_id`, `verdict`
and `label_source`. Where that is not `mc:full:…` or `exact`, only `score > 0` may be read
(`rewards/prm/labelling/source.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from mpo.multimodal.errors import DataError, ImageError
from mpo.multimodal.images import resolve_inside
from rewards.interchange.json_rows import Model, write_rows
from rewards.interchange.placeholders import placed_question, with_placeholders
from rewards.prm.labelling.source import monte_carlo_source
from rewards.steps import split_into
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, RolloutGroup, Verdict

_BLANK_LINES = re.compile(r"\s*\n\s*\n\s*")
VISUALPRM400K = "visualprm400k.jsonl"
Find = Callable[[str], Any]  # the name that a row gives an image → the image


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which no file that we write can hold."""
    text.encode()
    return text


_Text = Annotated[str, AfterValidator(_unicode)]


class _StepRow(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    step: str
    score: float
    num_mc_correct: int
    num_mc_total: int


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    image: str | list[str] | None = None
    question: _Text
    answer: _Text | None = None
    response: _Text
    steps_with_score: list[_StepRow]
    problem_id: _Text | None = None
    verdict: Verdict | None = None
    label_source: _Text | None = None


def to_visualprm_row(problem: Problem, rollout: Rollout, *, image_root: str | Path) -> dict[str, Any]:
    """One labelled rollout as a row.

    Args:
        problem: its images are paths inside `image_root`.
        rollout: with `mc`; its steps are its text's, or neighbours merged to as many as there are counts.
        image_root: folder that the row's paths are relative to.

    Raises:
        DataError: no counts, or an image that is no path inside the root.
    """
    if rollout.mc is None:
        raise DataError(f"problem {problem.id!r} has a rollout without step counts; run `mpo label-steps` first")
    images = [_relative(image, image_root, problem.id) for image in problem.images]
    steps = split_into(rollout.completion.text, len(rollout.mc))
    return {
        "image": images[0] if len(images) == 1 else images,
        "question": with_placeholders(problem.question, len(images), placed=problem.placed),
        "question_orig": problem.question,
        "answer": problem.answer,
        "response": rollout.completion.text,
        "steps_with_score": [
            {"step": step.text, "score": c.value, "num_mc_correct": c.correct, "num_mc_total": c.total}
            for step, c in zip(steps, rollout.mc, strict=True)
        ],
        "num_mc_sequences": max(c.total for c in rollout.mc),
        "problem_id": problem.id,
        "verdict": rollout.verdict,
        "label_source": rollout.label_source,
    }


def from_visualprm_row(row: Any, *, image_root: str | Path, find: Find | None = None) -> tuple[Problem, Rollout]:
    """A row as problem and rollout; the problem's images are real paths inside `image_root`, not yet opened.

    Args:
        row: decoded.
        image_root: folder that the row's paths are relative to.
        find: gives the image of a name, where a set's paths do not start at one folder (`image_places.py`).

    A row without `label_source` is someone else's: `full`, as VisualPRM400K itself, if every step has the same number
    of continuations, else of an unknown budget, whose counts may have stopped early and are no estimates of mc.
    Without `problem_id`, the id is a digest of images, question and answer, so that rows of one problem agree.

    Raises:
        DataError: a field is missing, of the wrong type, or contradicts another; the message begins with its name.
    """
    parsed = valid_row(_Row, row)
    names = image_names(parsed.image)
    question, placed = _placed(parsed.question, len(names))
    try:
        images = tuple(find(name) if find else resolve_inside(name, image_root) for name in names)
    except ImageError as error:
        raise ImageError(f"image: {error}") from error
    mc = tuple(_count(step, index) for index, step in enumerate(parsed.steps_with_score))
    check_steps(parsed.response, [step.step for step in parsed.steps_with_score], where="steps_with_score.{}.step")
    identity = json.dumps([names, question, parsed.answer]).encode()
    identifier = parsed.problem_id or f"visualprm-{hashlib.sha256(identity).hexdigest()[:16]}"
    problem = Problem(identifier, question, images, parsed.answer, placed=placed)
    totals = {count.total for count in mc}
    budget = "full" if len(totals) == 1 else "unknown"
    source = parsed.label_source or monte_carlo_source(budget, max(totals))
    return problem, Rollout(Completion(parsed.response), parsed.verdict, mc=mc, label_source=source)


def image_names(image: str | list[str] | None) -> list[str]:
    """The names of a row's images: none, one or several."""
    return [image] if isinstance(image, str) else image or []


def write_visualprm400k(path: str | Path, groups: Iterable[RolloutGroup], *, image_root: str | Path) -> int:
    """Write labelled groups, one row per rollout; the file appears whole or not at all. Returns the number of rows."""
    rows = (to_visualprm_row(g.problem, rollout, image_root=image_root) for g in groups for rollout in g.rollouts)
    return write_rows(path, rows)


def _relative(image: Any, root: str | Path, identifier: str) -> str:
    resolved = Path(image).resolve() if isinstance(image, str | Path) else None
    if resolved is None or not resolved.is_relative_to(Path(root).resolve()):
        raise DataError(f"problem {identifier!r}: image {image!r} is not a file inside {root}; save it there")
    return resolved.relative_to(Path(root).resolve()).as_posix()


def _placed(question: str, images: int) -> tuple[str, bool]:
    try:
        return placed_question(question, images)
    except DataError as error:
        raise DataError(f"question: {error}; got {question[:60]!r}") from error


def _count(step: _StepRow, index: int) -> MonteCarloCount:
    where = f"steps_with_score.{index}"
    try:
        found = MonteCarloCount(step.num_mc_correct, step.num_mc_total)
    except DataError as error:
        raise DataError(f"{where}.num_mc_correct: {error}") from error
    if not abs(found.value - step.score) <= 0.01:  # a rounded score passes, one that is not a number does not
        raise DataError(
            f"{where}.score: expected num_mc_correct / num_mc_total = {found.correct}/{found.total}, got {step.score}"
        )
    return found


def valid_row(model: type[Model], row: Any) -> Model:
    """The row as a pydantic model.

    Raises:
        DataError: it is not one; names the field and shows its value.
    """
    try:
        return model.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "row"
        raise DataError(f"{where}: {first['msg']} (got {str(first['input'])[:60]!r})") from error


def response_of(steps: Sequence[str]) -> str:
    r"""A response that falls into these steps, of a row that holds only them.

    A blank line inside a step would make two of it, unless the steps are merged neighbours (`rewards/steps.py`); else
    it becomes a line break.

    Example:
        >>> response_of(["a\n\nb", "c"]), response_of(["a\n\nb", "c", "d"])
        ('a\n\nb\n\nc', 'a\nb\n\nc\n\nd')
    """
    text = "\n\n".join(step.strip() for step in steps)
    try:
        check_steps(text, steps, where="steps.{}")
    except DataError:
        text = "\n\n".join(_BLANK_LINES.sub("\n", step.strip()) for step in steps)
    return text


def check_steps(response: str, steps: Sequence[str], *, where: str) -> None:
    """Refuse a response that does not fall into a row's steps, or labels would belong to other text.

    Args:
        response: the whole text.
        steps: a row's own, in order; blanks around and in them do not count.
        where: the row's field that holds step {}, for the message.

    Raises:
        DataError: naming the step.
    """
    given = [" ".join(step.split()) for step in steps]
    if not given:
        raise DataError(f"{where.partition('.')[0]}: expected at least one step, got none")
    try:
        own = [" ".join(step.text.split()) for step in split_into(response, len(given))]
    except DataError as error:
        raise DataError(f"response: {error}") from error
    for index, (a, b) in enumerate(zip(given, own, strict=True)):
        if a != b:
            raise DataError(f"{where.format(index)}: expected the response's own {b[:60]!r}, got {a[:60]!r}")
