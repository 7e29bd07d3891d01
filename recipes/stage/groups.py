"""Problems and rollout groups as JSON lines: what one stage writes and the next reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from mpo.multimodal.errors import DataError, StageError
from mpo.multimodal.images import resolve_inside
from recipes.stage.manifest import image_root_of, problems_of
from rewards.interchange.json_rows import decoded_row, write_rows
from rewards.types import (
    Completion,
    FinishReason,
    MonteCarloCount,
    Problem,
    Prompt,
    Rollout,
    RolloutGroup,
    StepScores,
    Unseen,
    Verdict,
)

GROUPS = "groups.jsonl"
MAX_LINE_BYTES = 10 << 20  # of a problem

OnBad = Callable[[str, str, str], None]  # (file:line, kind of fault, detail)


class _ProblemRow(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    id: str
    question: str
    images: list[str] = []
    answer: bool | int | float | str | list[bool | int | float | str] | None = None
    meta: dict[str, Any] = {}
    placed: bool = False


class _UnseenRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    step_scores: list[float]
    reward: float


class _RolloutRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    text: str
    finish_reason: FinishReason
    num_tokens: int
    token_logprobs: list[float] | None = None
    verdict: Verdict | None = None
    second_verdict: Verdict | None = None
    vote: int | None = None
    step_scores: list[float] | None = None
    step_score_bounds: list[tuple[float, float]] | None = None  # of scores that a server told in part
    step_score_spreads: list[float] | None = None  # of a PRM that tells how sure it is
    scored_part: str = "solution"  # of a response with a thought, whose steps were scored
    reward: float | None = None
    mc: list[tuple[int, int] | None] | None = None
    label_source: str | None = None  # absent in files that were written before there was more than one budget
    blank: _UnseenRow | None = None
    swapped: _UnseenRow | None = None


class _PromptRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    template: str
    system: str = ""


class _GroupRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    problem_id: str
    prompt: _PromptRow | None = None  # how the policy was asked; the bare question without it
    rollouts: list[_RolloutRow]


def read_problems(
    path: str | Path, *, image_root: str | Path | None = None, on_bad: OnBad | None = None
) -> dict[str, Problem]:
    """Problems by id, in file order; arguments and errors are those of `iter_problems`."""
    return {problem.id: problem for problem in iter_problems(path, image_root=image_root, on_bad=on_bad)}


def iter_problems(
    path: str | Path, *, image_root: str | Path | None = None, on_bad: OnBad | None = None
) -> Iterator[Problem]:
    """Problems, one at a time, in file order.

    A line is `{"id", "question", "images": [paths], "answer", "meta", "placed"}`; `image` (one path) is accepted for
    `images`, and for `answer` a number, true or false, or a list of accepted answers. `placed` says that the images
    stand where the question holds `<image>`.

    Args:
        path: the file.
        image_root: folder that the images are in, anywhere below it; paths are relative to it, or absolute. None is
            the file's own folder.
        on_bad: called with (file:line, kind of fault, detail) for a bad line, and the rest is read; without it the
            first bad line raises.

    Raises:
        StageError: no such file.
        DataError: a line that is not such an object, is over `MAX_LINE_BYTES`, holds what UTF-8 or JSON cannot, uses
            an id again, or names an image outside `image_root`; the message names the line.
    """
    path = Path(path)
    seen: set[str] = set()
    for number, line in _lines(path):
        try:
            problem = _problem(line, path, number, Path(image_root or path.parent))
            if problem.id in seen:
                raise DataError(f"{path}:{number}: id {problem.id!r} occurs twice; ids must be unique")
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(f"{path.name}:{number}", "bad row", str(error))
        else:
            seen.add(problem.id)
            yield problem


def problems_behind(folder: str | Path) -> dict[str, Problem]:
    """The problems of a groups folder by id, bad lines left out: `mpo sample` has reported them.

    Raises:
        StageError: the folder holds no groups, or their problems are gone.
    """
    return read_problems(problems_of(folder), image_root=image_root_of(folder), on_bad=lambda *_: None)


def _problem(line: bytes, path: Path, number: int, root: Path) -> Problem:
    with _naming(path, number):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"a line of {len(line)} bytes; expected at most {MAX_LINE_BYTES}")
        row = decoded_row(line)
    if isinstance(row, dict) and "image" in row and "images" not in row:
        row["images"] = row["image"] if isinstance(row["image"], list) else [row["image"]]
    found = _validate(_ProblemRow, row, path, number)
    with _naming(path, number):
        images = tuple(resolve_inside(image, root) for image in found.images)
        return Problem(
            found.id, found.question, images, cast(str | None, found.answer), found.meta, placed=found.placed
        )


def write_problems(path: Path, problems: Iterable[Problem], *, image_root: Path | None = None) -> None:
    """Write problems whose images are paths inside `image_root`, by default the file's folder.

    Raises:
        DataError: an image is no path, or lies outside the folder.
    """
    rows = []
    root = (image_root or path.parent).resolve()
    for problem in problems:
        for image in problem.images:
            if not isinstance(image, str | Path) or not Path(image).resolve().is_relative_to(root):
                raise DataError(f"problem {problem.id!r}: image {image!r} is not a file inside {root}; save it there")
        images = [str(Path(str(image)).resolve().relative_to(root)) for image in problem.images]
        rows.append(
            {
                "id": problem.id,
                "question": problem.question,
                "images": images,
                "answer": problem.answer,
                "meta": dict(problem.meta),
                **({"placed": True} if problem.placed else {}),
            }
        )
    write_rows(path, rows)


def read_groups(folder: str | Path) -> list[RolloutGroup]:
    """All groups that a stage wrote, in memory; raises what `iter_groups` raises."""
    return list(iter_groups(folder))


def iter_groups(folder: str | Path, problems: Mapping[str, Problem] | None = None) -> Iterator[RolloutGroup]:
    """The groups that a stage wrote, one at a time.

    Args:
        folder: of the stage.
        problems: `problems_behind` the folder, where they have been read (all in memory).

    Raises:
        StageError: the stage has not finished.
        DataError: a damaged line or an unknown problem.
    """
    folder = Path(folder)
    problems = problems_behind(folder) if problems is None else problems
    seen: set[str] = set()
    for number, line in _lines(folder / GROUPS):
        with _naming(folder / GROUPS, number):
            row = decoded_row(line)
        group = _validate(_GroupRow, row, folder / GROUPS, number)
        if group.problem_id not in problems:
            raise DataError(f"{folder / GROUPS}:{number}: no problem {group.problem_id!r} in {problems_of(folder)}")
        with _naming(folder / GROUPS, number):
            rollouts = tuple(_rollout(rollout) for rollout in group.rollouts)
        if group.problem_id in seen:
            raise DataError(f"{folder / GROUPS}:{number}: problem {group.problem_id!r} occurs twice")
        seen.add(group.problem_id)
        problem = problems[group.problem_id]
        if group.prompt is not None:
            problem = replace(problem, prompt=Prompt(group.prompt.template, group.prompt.system))
        yield RolloutGroup(problem, rollouts)


class StoredGroups:
    """The groups that a stage wrote, read anew each time that they are iterated, with their problems in memory.

    Args:
        folder: of the stage.
        through: what each pass goes through, such as a filter.

    Raises:
        StageError, DataError: see `iter_groups`.
    """

    def __init__(
        self,
        folder: str | Path,
        through: Callable[[Iterator[RolloutGroup]], Iterator[RolloutGroup]] = lambda groups: groups,
    ) -> None:
        self.folder, self.through, self.problems = folder, through, problems_behind(folder)

    def __iter__(self) -> Iterator[RolloutGroup]:
        return self.through(iter_groups(self.folder, self.problems))


def write_groups(folder: Path, groups: Iterable[RolloutGroup]) -> None:
    """Write groups, one in memory at a time; problems are named by id only."""
    write_rows(folder / GROUPS, map(_group_row, groups))


def _group_row(group: RolloutGroup) -> dict[str, Any]:
    problem, rollouts = group.problem, [_row(rollout) for rollout in group.rollouts]
    prompt = {"prompt": asdict(problem.prompt)} if problem.prompt != Prompt() else {}
    return {"problem_id": problem.id, **prompt, "rollouts": rollouts}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise StageError(f"{path} is not a file; expected one JSON object per line")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


@contextmanager
def _naming(path: Path, number: int) -> Iterator[None]:
    """Put file and line in front of what is wrong with a value."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{path}:{number}: {error}") from error


def _validate(model: Any, row: Any, path: Path, number: int) -> Any:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the line"
        raise DataError(f"{path}:{number}: {where}: {first['msg']} (got {str(first['input'])[:60]!r})") from error


def _rollout(row: _RolloutRow) -> Rollout:
    return Rollout(
        Completion(
            row.text,
            row.finish_reason,
            row.num_tokens,
            None if row.token_logprobs is None else tuple(row.token_logprobs),
        ),
        row.verdict,
        _step_scores(row),
        row.reward,
        tuple(MonteCarloCount(*count) if count else None for count in row.mc) if row.mc is not None else None,
        row.label_source,
        _unseen(row.blank),
        _unseen(row.swapped),
        row.second_verdict,
        row.vote,
    )


def _unseen(row: _UnseenRow | None) -> Unseen | None:
    return Unseen(StepScores(tuple(row.step_scores)), row.reward) if row is not None else None


def _step_scores(row: _RolloutRow) -> StepScores | None:
    if row.step_scores is None:
        return None
    bounds = tuple(row.step_score_bounds) if row.step_score_bounds else None
    spreads = None if row.step_score_spreads is None else tuple(row.step_score_spreads)
    return StepScores(tuple(row.step_scores), bounds, row.scored_part, spreads)


def _row(rollout: Rollout) -> Mapping[str, Any]:
    completion = rollout.completion
    scored = rollout.step_scores
    row = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "num_tokens": completion.num_tokens,
        "token_logprobs": completion.token_logprobs,
        "verdict": rollout.verdict,
        "second_verdict": rollout.second_verdict,
        "vote": rollout.vote,
        "step_scores": list(scored.values) if scored else None,
        "step_score_bounds": scored.bounds if scored else None,
        "step_score_spreads": scored.spreads if scored else None,
        "scored_part": scored.part if scored and scored.part != "solution" else None,
        "reward": rollout.reward,
        "mc": [(count.correct, count.total) if count else None for count in rollout.mc] if rollout.mc else None,
        "label_source": rollout.label_source,
        "blank": _unseen_row(rollout.blank),
        "swapped": _unseen_row(rollout.swapped),
    }
    return {key: value for key, value in row.items() if value is not None}


def _unseen_row(unseen: Unseen | None) -> Mapping[str, Any] | None:
    return {"step_scores": list(unseen.step_scores.values), "reward": unseen.reward} if unseen else None
