"""The settings file of `mpo evaluate`: which policies, which benchmarks, which critics, how many responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError
from recipes import config as stages
from recipes.commands.parse import build
from recipes.commands.shipped import read_mapping
from recipes.commands.words import did_you_mean
from rewards.benchmarks.metrics import METRICS
from rewards.benchmarks.table import BENCHMARKS, Benchmark
from rewards.choosing.evaluation import SELECTORS
from rewards.choosing.matrix import VOTE, Critic

TOP = ("ns", "seed", "sample", "verify", "score", "training", "policies", "benchmarks", "critics")
KINDS = ("prm", "reward_model", "judge", "judge_url", "self_certainty", "scores", "vote")  # what a critic may be
READERS = ("prm", "reward_model", "judge", "judge_url")  # those that read the responses, which costs tokens
SET_BY_US = ("problems", "out", "num_samples", "groups", "seed")


@dataclass
class BenchmarkSettings:
    """What a benchmark of the settings file may be told; what is left out is the row's of that name."""

    benchmark: str = ""
    problems: str = ""
    columns: list[str] = field(default_factory=list)
    image_root: Path | None = None
    prompt: str = ""
    verifier: str = ""
    metric: str = ""
    by: list[str] = field(default_factory=list)
    limit: int = 0


@dataclass
class CriticSettings:
    """What a critic may be told besides the settings of `mpo score`; one of `KINDS` says what it is."""

    prm: Path | None = None
    reward_model: Path | None = None
    judge: Path | None = None
    judge_url: list[str] = field(default_factory=list)
    judge_model: str | None = None
    self_certainty: bool = False
    scores: str = ""
    vote: str = ""
    select: str = ""
    cost: float = -1.0


@dataclass(frozen=True)
class PolicyEntry:
    """One policy: what `mpo sample` is told, or responses that are there."""

    name: str
    sample: Mapping[str, Any]
    responses: Mapping[str, Path]


@dataclass(frozen=True)
class BenchmarkEntry:
    """One benchmark: its row, and the source of its problems."""

    row: Benchmark
    problems: str
    columns: tuple[str, ...] = ()
    image_root: Path | None = None
    limit: int = 0


@dataclass(frozen=True)
class CriticEntry:
    """One critic: what it is, and what `mpo score` is told."""

    critic: Critic
    settings: CriticSettings
    score: Mapping[str, Any]

    def rewards(self) -> tuple[Any, ...]:
        """What its rewards depend on."""
        return (replace(self.settings, select="", cost=-1.0), dict(self.score))


class Matrix:
    """The whole settings file, checked before anything runs.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a critic that is none, all named.
        StageError: no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path, loaded = read_mapping(path)
        if unknown := sorted(set(loaded) - set(TOP)):
            raise ConfigError(f"{self.path}: {unknown[0]!r} is unknown{did_you_mean(unknown[0], TOP)}")
        self.ns = self._numbers(loaded.get("ns", [1, 2, 4, 8]))
        self.seed = self._whole("seed", loaded.get("seed", 0))
        self.sample, self.verify, self.score = (self._mapping(name, loaded) for name in ("sample", "verify", "score"))
        training = loaded.get("training") or []
        self.training = [Path(str(one)) for one in (training if isinstance(training, list) else [training])]
        self.policies = [self._policy(name, given) for name, given in self._entries("policies", loaded)]
        self.benchmarks = [self._benchmark(name, given) for name, given in self._entries("benchmarks", loaded)]
        self.critics = [self._critic(name, given) for name, given in self._entries("critics", loaded, needed=False)]
        self._check()

    def sampling(
        self, policy: PolicyEntry, benchmark: BenchmarkEntry, problems: Path, out: Path
    ) -> stages.SampleConfig:
        """How a policy answers a benchmark; what the file says wins over the row's prompt."""
        needs_logprobs = {"logprobs": True} if any(one.settings.self_certainty for one in self.critics) else {}
        own = {"prompt": benchmark.row.prompt, **needs_logprobs, **self.sample, **policy.sample}
        given = {"problems": problems, "out": out, "num_samples": max(self.ns), "seed": self.seed}
        return self._built(stages.SampleConfig, f"policies.{policy.name}", {**own, **given})

    def verifying(self, benchmark: BenchmarkEntry, groups: Path, out: Path) -> stages.VerifyConfig:
        """How a benchmark's answers are checked; its own verifier is no second one."""
        own = {"verifier": benchmark.row.verifier, **self.verify}
        if own.get("second_verifier") == own["verifier"]:
            own["second_verifier"] = ""
        return self._built(stages.VerifyConfig, "verify", {**own, "groups": groups, "out": out})

    def scoring(self, critic: CriticEntry, groups: Path, out: Path) -> stages.ScoreConfig:
        """How a PRM scores; what the critic says wins over the section `score`."""
        own = {**self.score, **critic.score, "prm": critic.settings.prm}
        return self._built(stages.ScoreConfig, f"critics.{critic.critic.name}", {**own, "groups": groups, "out": out})

    def first_alike(self, critic: CriticEntry) -> str:
        """The first critic with the same rewards, however it chooses by them: they are computed once, in its name."""
        return next(one.critic.name for one in self.critics if one.rewards() == critic.rewards())

    def _check(self) -> None:
        """Build every config once, so that nothing is wrong after the first hours."""
        here = Path()
        for benchmark in self.benchmarks:
            self.verifying(benchmark, here, here)
            for policy in self.policies:
                if policy.sample:
                    self.sampling(policy, benchmark, here, here)
        for critic in self.critics:
            if critic.settings.prm is not None:
                self.scoring(critic, here, here)
        for policy in self.policies:
            known = [benchmark.row.name for benchmark in self.benchmarks]
            if unknown := sorted(set(policy.responses) - set(known)):
                raise ConfigError(
                    f"{self.path}: policies.{policy.name}.responses.{unknown[0]}: no such benchmark in this "
                    f"file{did_you_mean(unknown[0], known)}"
                )
        for names in ([one.name for one in self.policies], [one.row.name for one in self.benchmarks], self._critics()):
            if len({folder_name(name) for name in names}) < len(names):
                raise ConfigError(f"{self.path}: two of {', '.join(names)} have one name as folders; rename one")

    def _critics(self) -> list[str]:
        return [one.critic.name for one in self.critics]

    def _policy(self, name: str, given: Mapping[str, Any]) -> PolicyEntry:
        where = f"policies.{name}"
        own = dict(given)
        responses = own.pop("responses", None) or {}
        if not isinstance(responses, Mapping):
            raise ConfigError(
                f"{self.path}: {where}.responses: expected benchmark: file or folder, got {responses!r:.80}"
            )
        self._refuse_ours(where, own)
        if bool(own) == bool(responses):
            raise ConfigError(
                f"{self.path}: {where}: expected either policy (a model), base_url and model (a server), or responses"
            )
        return PolicyEntry(name, own, {str(key): Path(str(value)) for key, value in responses.items()})

    def _benchmark(self, name: str, given: Mapping[str, Any]) -> BenchmarkEntry:
        where = f"benchmarks.{name}"
        own: BenchmarkSettings = self._built(BenchmarkSettings, where, given)
        known = own.benchmark or name
        if own.benchmark and known not in BENCHMARKS:
            raise ConfigError(f"{self.path}: {where}.benchmark: unknown{did_you_mean(known, BENCHMARKS)}")
        row = BENCHMARKS.get(known) or Benchmark(name, "", None, None, None, None)
        changes: dict[str, Any] = {
            part: value for part in ("prompt", "verifier", "metric") if (value := getattr(own, part))
        }
        row = replace(row, name=name, by=tuple(own.by) or row.by, **changes)
        if row.metric not in METRICS:
            raise ConfigError(f"{self.path}: {where}.metric: unknown {row.metric!r}{did_you_mean(row.metric, METRICS)}")
        problems = own.problems or row.hub or ""
        if not problems:
            hint = f"; its file is {row.tsv}" if row.tsv else ""
            raise ConfigError(f"{self.path}: {where}: expected problems (a file, a folder or hub:NAME){hint}")
        return BenchmarkEntry(row, problems, tuple(own.columns), own.image_root, own.limit)

    def _critic(self, name: str, given: Mapping[str, Any]) -> CriticEntry:
        where = f"critics.{name}"
        names = {part.name for part in fields(CriticSettings)}
        own: CriticSettings = self._built(CriticSettings, where, {k: v for k, v in given.items() if k in names})
        score = {key: value for key, value in given.items() if key not in names}
        self._refuse_ours(where, score)
        kinds = [kind for kind in KINDS if getattr(own, kind)]
        if len(kinds) != 1 or (score and kinds != ["prm"]):
            raise ConfigError(
                f"{self.path}: {where}: expected one of {', '.join(KINDS)}, and settings of `mpo score` beside prm "
                f"alone, got {', '.join(map(str, given)) or 'nothing'}"
            )
        if bool(own.judge_url) != (own.judge_model is not None):
            raise ConfigError(f"{self.path}: {where}: a judge behind a server needs both judge_url and judge_model")
        if own.vote not in ("", VOTE):
            raise ConfigError(
                f"{self.path}: {where}.vote: expected {VOTE}, got {own.vote!r}; for weighted votes use select"
            )
        selector = own.select or own.vote or "prm"
        if selector not in SELECTORS:
            raise ConfigError(f"{self.path}: {where}.select: unknown {selector!r}{did_you_mean(selector, SELECTORS)}")
        cost = own.cost if own.cost >= 0 else float(kinds[0] in READERS)
        return CriticEntry(Critic(name, selector, cost), own, score)

    def _entries(self, section: str, loaded: Mapping[str, Any], *, needed: bool = True) -> list[tuple[str, Any]]:
        given = loaded.get(section) or {}
        if isinstance(given, list) and section == "benchmarks":
            given = dict.fromkeys(map(str, given), None)
        if not isinstance(given, Mapping) or (needed and not given):
            raise ConfigError(
                f"{self.path}: {section}: expected a mapping of a name to its settings, got {given!r:.60}"
            )
        for name, value in given.items():
            if not isinstance(value or {}, Mapping):
                raise ConfigError(f"{self.path}: {section}.{name}: expected keys and values, got {value!r:.60}")
        return [(str(name), value or {}) for name, value in given.items()]

    def _mapping(self, section: str, loaded: Mapping[str, Any]) -> dict[str, Any]:
        given = loaded.get(section) or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"{self.path}: {section}: expected keys and values, got {given!r:.60}")
        self._refuse_ours(section, given)
        return dict(given)

    def _refuse_ours(self, where: str, given: Mapping[str, Any]) -> None:
        if ours := [key for key in given if key in SET_BY_US]:
            raise ConfigError(f"{self.path}: {where}.{ours[0]} is set by mpo evaluate; remove it")

    def _built(self, config_class: type, where: str, values: Mapping[str, Any]) -> Any:
        return build(config_class, values, where=lambda key: f"{self.path}: {where}.{key}")

    def _whole(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.path}: {name}: expected a whole number, got {value!r:.40}")
        return value

    def _numbers(self, given: Any) -> list[int]:
        values = given if isinstance(given, list) else [given]
        numbers = sorted({self._whole("ns", value) for value in values})
        if not numbers or numbers[0] < 1:
            raise ConfigError(f"{self.path}: ns: expected numbers of responses from 1, got {given!r:.60}")
        return numbers


def folder_name(name: str) -> str:
    """A name as a folder of the run.

    Example:
        >>> folder_name("InternVL3-8B + MPO")
        'InternVL3-8B-MPO'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "unnamed"
