"""`mpo import-responses`: responses made elsewhere become the folder that `mpo sample` would have written.

From there they are verified, scored, voted on, paired and reported as any samples. Ids of problems and indexes of
samples survive; several files are taken in their order, each giving further samples of the same problems.
"""

from __future__ import annotations

from pathlib import Path

from mpo.multimodal.errors import ConfigError, DataError, ImageError
from recipes.config import ImportResponsesConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import read_problems, write_groups, write_problems
from recipes.stage.problem_source import PROBLEMS, SOURCE, columns_of, kept_problems, problem_file
from recipes.stage.quarantine import Quarantine
from rewards.interchange.problems import Rejected, problem_of
from rewards.interchange.responses import Response, read_responses
from rewards.interchange.tables import files_of, folder_of
from rewards.types import Problem, Rollout, RolloutGroup


def import_responses(config: ImportResponsesConfig) -> Path:
    """Write `groups.jsonl`, `problems.jsonl` and `images/`; responses that cannot be used are in `quarantine.jsonl`.

    Raises:
        ConfigError: a file of no known form, or columns that it lacks.
        DataError: not one response could be used.
    """
    given = None
    if config.problems is not None:
        given = problem_file(config.problems, config.out / SOURCE, columns=config.columns)
    files = [file for source in config.responses for file in files_of(source)]
    stage = open_stage("import-responses", config, inputs=[*files, *([given] if given else [])])
    if stage.complete:
        return stage.out
    quarantine = Quarantine()
    known = read_problems(given, on_bad=lambda *_: None) if given else None
    found = _Found(known, config, quarantine)
    for place, source in enumerate(config.responses):
        found.take(source, place)
    wanted = (known[id] for id in known if id in found.rollouts) if known else iter(found.problems.values())
    problems = list(kept_problems(wanted, stage.out, quarantine))
    groups = [RolloutGroup(problem, found.of(problem.id)) for problem in problems]
    lost = {id: len(some) for id, some in found.rollouts.items() if id not in {problem.id for problem in problems}}
    quarantine.write(stage.out)
    out = sum(len(group.rollouts) for group in groups)
    rejected = found.rejected(lost)
    if not out:
        first = "; ".join(row["detail"] for row in quarantine.rows[:3])
        raise DataError(f"no response of {', '.join(map(str, config.responses))} can be used: {rejected}: {first}")
    write_problems(stage.out / PROBLEMS, problems)
    write_groups(stage.out, groups)
    counts = {"in": out + sum(rejected.values()), "out": out, "rejected": rejected}
    return stage.finish({**counts, "problems": str(stage.out / PROBLEMS)}, note=f"{len(groups)} problems")


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
            elif reason := self._refused(item, root):
                self.quarantine.add(item.where, *reason)
            else:
                some = self.rollouts.setdefault(item.problem_id, {})
                index = item.index if item.index is not None else len(some)
                if (place, index) in some:
                    detail = f"problem {item.problem_id!r} has a response of index {index} already"
                    self.quarantine.add(item.where, "index occurs twice", detail)
                else:
                    some[place, index] = Rollout(item.completion)

    def of(self, id: str) -> tuple[Rollout, ...]:
        """A problem's responses in the order of files and indexes."""
        return tuple(rollout for _, rollout in sorted(self.rollouts[id].items(), key=lambda item: item[0]))

    def rejected(self, lost: dict[str, int]) -> dict[str, int]:
        """Reason → responses; of a problem whose image cannot be decoded, all of them."""
        counts = self.quarantine.counts()
        for row in self.quarantine.rows:
            if row["id"] in lost:
                counts[row["reason"]] += lost[row["id"]] - 1
        return counts

    def _refused(self, item: Response, root: Path | None) -> tuple[str, str] | None:
        """(reason, detail) where there is no problem for a response."""
        id = item.problem_id
        if self.known is not None:
            return None if id in self.known else ("unknown problem", f"--problems has no problem {id!r}")
        if id in self.problems:
            return None
        try:
            self.problems[id] = problem_of({**item.row, "id": id}, self.columns, where=item.where, root=root)
        except ImageError as error:
            return "unreadable image", str(error)
        except ConfigError as error:
            raise ConfigError(f"{error}; or give the problems with --problems") from error
        except DataError as error:
            return error.reason, str(error)
        return None
