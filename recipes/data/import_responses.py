"""`mpo import-responses`: responses made elsewhere become the folder that `mpo sample` would have written.

From there they are verified, scored, voted on, paired and reported as any samples. Ids of problems and indexes of
samples survive; several files are taken in their order, each giving further samples of the same problems.
"""

from __future__ import annotations

import re
from pathlib import Path

from mpo.multimodal.errors import ConfigError, DataError, ImageError
from recipes.config import ImportResponsesConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import read_problems, write_groups, write_problems
from recipes.stage.problem_source import PROBLEMS, SOURCE, columns_of, kept_problems, problem_file
from recipes.stage.quarantine import Quarantine
from rewards.interchange.problems import COLUMNS, Rejected, problem_of
from rewards.interchange.responses import Response, read_responses, response_files
from rewards.interchange.tables import Row, folder_of
from rewards.types import Problem, Rollout, RolloutGroup

_PLACEHOLDER = re.compile(r"<image ?\d*>|\s+")


def import_responses(config: ImportResponsesConfig) -> Path:
    """Write `groups.jsonl`, `problems.jsonl` and `images/`; responses that cannot be used are in `quarantine.jsonl`.

    Raises:
        ConfigError: a file of no known form, or columns that it lacks.
        DataError: not one response could be used.
    """
    given = None
    if config.problems is not None:
        given = problem_file(config.problems, config.out / SOURCE, columns=config.columns)
    files = [file for source in config.responses for file in response_files(source)]
    stage = open_stage("import-responses", config, inputs=[*files, *([given] if given else [])])
    if stage.complete:
        return stage.out
    quarantine = Quarantine()
    found = _Found(read_problems(given, on_bad=lambda *_: None) if given else None, config, quarantine)
    for place, source in enumerate(config.responses):
        found.take(source, place)
    problems = list(kept_problems(found.asked(), stage.out, quarantine))
    groups = [RolloutGroup(problem, found.of(problem.id)) for problem in problems]
    quarantine.write(stage.out)
    out = sum(len(group.rollouts) for group in groups)
    rejected = found.rejected({problem.id for problem in problems})
    if not out:
        first = "; ".join(row["detail"] for row in quarantine.rows[:3])
        raise DataError(f"no response of {', '.join(map(str, config.responses))} can be used: {rejected}: {first}")
    write_problems(stage.out / PROBLEMS, problems)
    write_groups(stage.out, groups)
    counts = {"in": out + sum(rejected.values()), "out": out, "rejected": rejected}
    numbers = {len(group.rollouts) for group in groups}
    each = f"{min(numbers)}" if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
    note = f"{len(groups)} problems with {each} responses each"
    return stage.finish({**counts, "problems": str(stage.out / PROBLEMS)}, note=note)


class _Found:
    """The responses of each problem, by their index."""

    def __init__(self, known: dict[str, Problem] | None, config: ImportResponsesConfig, quarantine: Quarantine) -> None:
        self.known, self.config, self.quarantine = known, config, quarantine
        self.columns = {} if known is not None else dict(columns_of(config.columns))
        self.problems: dict[str, Problem] = {}
        self.rollouts: dict[str, dict[tuple[int, int], Rollout]] = {}

    def take(self, source: Path, place: int) -> None:
        """The responses of one file; its place among the files comes first in the order of the samples."""
        root = self.config.image_root or folder_of(source)
        for item in read_responses(source):
            if isinstance(item, Rejected):
                self.quarantine.add(item.where, item.reason, item.detail)
                continue
            try:
                some = self.rollouts.setdefault(self._problem(item, root), {})
                index = item.index if item.index is not None else len(some)
                if (place, index) in some:
                    raise DataError(f"a response of index {index} is there already", reason="index occurs twice")
                some[place, index] = Rollout(item.completion)
            except ImageError as error:
                self.quarantine.add(item.where, "unreadable image", str(error))
            except DataError as error:
                self.quarantine.add(item.where, error.reason, f"problem {item.problem_ids[0]!r:.80}: {error}")

    def asked(self) -> list[Problem]:
        """The problems that have a response, in the order of their file, else of their first response."""
        every = self.problems if self.known is None else self.known
        return [problem for id, problem in every.items() if self.rollouts.get(id)]

    def of(self, id: str) -> tuple[Rollout, ...]:
        """A problem's responses in the order of files and indexes."""
        return tuple(rollout for _, rollout in sorted(self.rollouts[id].items(), key=lambda item: item[0]))

    def rejected(self, kept: set[str]) -> dict[str, int]:
        """Reason → responses; of a problem whose image cannot be decoded, all of them."""
        counts = self.quarantine.counts()
        reasons = {row["id"]: row["reason"] for row in self.quarantine.rows}
        for id, some in self.rollouts.items():
            if some and id not in kept:
                counts[reasons[id]] += len(some) - 1
        return counts

    def _problem(self, item: Response, root: Path | None) -> str:
        """The id of a response's problem, which is made of its row where no set of problems was given."""
        if self.known is not None:
            id = next((id for id in item.problem_ids if id in self.known), None)
            if id is None:
                raise DataError("--problems has no problem of this id", reason="unknown problem")
            _check_question(self.known[id], item.row)
            return id
        id = item.problem_ids[0]
        if id not in self.problems:
            try:
                self.problems[id] = problem_of({**item.row, "id": id}, self.columns, where=item.where, root=root)
            except ConfigError as error:
                raise ConfigError(f"{error}; or give the problems with --problems") from error
        return id


def _check_question(problem: Problem, row: Row) -> None:
    """Refuse a row that asks something else under the same id: another table's numbers would join to wrong answers.

    Raises:
        DataError: neither question holds the other.
    """
    asked = next((str(row[name]) for name in COLUMNS["question"] if row.get(name)), None)
    if asked is None:
        return
    one, other = (_PLACEHOLDER.sub("", text).casefold() for text in (asked, problem.question))
    if one not in other and other not in one:
        raise DataError(
            f"the row asks {asked[:60]!r}, the problem {problem.question[:60]!r}", reason="another question"
        )
