"""The stages of a loop, one after the other, told on the terminal: which one, of how many, and how long the rest takes.

A loop is written once, as calls of `do(stage, config, about)`. With a `Plan` the calls are only noted, so the loop is
counted before it runs; with `Stages` they run.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.leftovers import free_leftovers
from recipes.commands.table import COMMANDS
from recipes.stage.closing import duration
from recipes.stage.exclusive import refuse_exclusive
from recipes.stage.folder import manifest_of


@dataclass(frozen=True)
class Planned:
    """A stage that will run: its name, its config, and what it is about, in words."""

    name: str
    config: Any
    about: str


class Plan:
    """Notes the stages of a loop in their order; nothing runs and nothing is written."""

    planning = True

    def __init__(self) -> None:
        self.stages: list[Planned] = []

    def __call__(self, name: str, config: Any, about: str) -> Path:
        """Note a stage; gives the folder that it will write.

        Raises:
            ConfigError: settings that exclude each other; the loop would end there, hours later.
        """
        try:
            refuse_exclusive(config)
        except ConfigError as error:
            raise ConfigError(f"{name} ({about}): {error}") from error
        self.stages.append(Planned(name, config, about))
        return Path(config.out)


class Stages:
    """Runs stages by the names of their commands.

    Args:
        planned: the stages of a `Plan` of the same loop, in the order in which they run; empty if it cannot be known.
    """

    planning = False

    def __init__(self, planned: Sequence[Planned] = ()) -> None:
        self._planned = planned
        self._begun = 0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._units: defaultdict[str, float] = defaultdict(float)

    def __call__(self, name: str, config: Any, about: str) -> Path:
        """Run a stage, after a line that says which one it is; gives the folder that it wrote."""
        assert not self._planned or self._planned[self._begun].config.out == config.out, (name, config.out)
        self._begun += 1
        of = f" of {len(self._planned)}" if self._planned else ""
        print(f"stage {self._begun}{of}: {name}, {about}{self._forecast()}", file=sys.stderr)
        command = COMMANDS[name]
        out: Path = getattr(import_module(command.module), command.function)(config)
        free_leftovers()
        self._seconds[name] += manifest_of(out)["seconds"]
        self._units[name] += self._size(name, config) or 1
        return out

    def _forecast(self) -> str:
        """How long it took so far and what is left, by what the stages of the same kind took for each response."""
        left = self._planned[self._begun - 1 :]
        if not left or not self._seconds:
            return ""
        known = [stage for stage in left if stage.name in self._seconds]
        more = sum(
            self._seconds[stage.name] / self._units[stage.name] * (self._size(stage.name, stage.config) or 1)
            for stage in known
        )
        new = dict.fromkeys(stage.name for stage in left if stage.name not in self._seconds)
        without = f", not counting {', '.join(new)}: none has run yet" if new else ""
        return f" ({duration(sum(self._seconds.values()))} so far; about {duration(more)} to go at this rate{without})"

    def _size(self, name: str, config: Any) -> int | None:
        """Responses that a stage draws or reads; None if that cannot be told before it runs."""
        if name == "sample":
            lines = lines_of(config.problems)
            return None if lines is None else lines * config.num_samples
        before = _by_out(self._planned).get(getattr(config, "groups", None))
        size = self._size(before.name, before.config) if before else None
        return 3 * size if size and getattr(config, "visual_dependence", False) else size


def _by_out(planned: Sequence[Planned]) -> Mapping[Path | None, Planned]:
    return {Path(stage.config.out): stage for stage in planned}


def lines_of(problems: Path) -> int | None:
    """How many problems a file has, without reading them; None before it is written."""
    if not problems.is_file():
        return None
    with problems.open("rb") as file:
        return sum(1 for line in file if line.strip())
