"""`verify`, `pairs` and the export of `sample` hold some groups at a time, whatever the number of problems."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import recipes.data.pairs
import recipes.data.sample
import recipes.data.verify
from recipes.config import PairsConfig, SampleConfig, VerifyConfig
from recipes.stage.groups import GROUPS, iter_groups, read_groups
from rewards.sampling.generator import Generator, Sample
from rewards.types import Completion, RolloutGroup
from tests.recipes.run_folders import make_groups, make_problems, score_all, write_stage

PROBLEMS = 40


class Alive:
    """The most groups that were alive whenever one more was read."""

    def __init__(self) -> None:
        self.most, self._seen = 0, list[weakref.ref[RolloutGroup]]()

    def watch(self, groups: Iterable[RolloutGroup]) -> Iterator[RolloutGroup]:
        for group in groups:
            self._seen.append(weakref.ref(group))
            self.most = max(self.most, sum(ref() is not None for ref in self._seen))
            yield group


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    rng = random.Random(0)
    problems = make_problems(tmp_path / "world", "preference", PROBLEMS, rng)
    return write_stage(tmp_path / "scored", score_all(make_groups(problems, 4, 0.5, rng), rng), problems, name="score")


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Alive:
    found = Alive()
    modules: tuple[ModuleType, ...] = (recipes.data.verify, recipes.data.pairs)
    for module in modules:
        monkeypatch.setattr(module, "iter_groups", lambda folder: found.watch(iter_groups(folder)))
    monkeypatch.setattr(recipes.data.verify, "GROUPS_AT_A_TIME", 4)
    return found


def test_verify_holds_what_it_hands_to_the_workers(scored: Path, tmp_path: Path, alive: Alive) -> None:
    out = recipes.data.verify.verify(VerifyConfig(scored, tmp_path / "out", verifier="exact"))
    assert 4 <= alive.most <= 6
    assert [group.problem.id for group in read_groups(out)] == [group.problem.id for group in read_groups(scored)]


def test_pairs_holds_a_group(scored: Path, tmp_path: Path, alive: Alive) -> None:
    recipes.data.pairs.pairs(PairsConfig(scored, tmp_path / "out", rule="correctness"))
    assert 1 <= alive.most <= 3


def test_the_export_of_samples_holds_a_group(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Instant(Generator):
        def draw(self, problems, n, **_):
            for place in range(len(problems)):
                yield [Sample(place, i, 0, Completion(f"{place} {i}")) for i in range(n)]

    found = Alive()
    export = recipes.data.sample.write_groups
    monkeypatch.setattr(recipes.data.sample, "write_groups", lambda out, groups: export(out, found.watch(groups)))
    monkeypatch.setattr(recipes.data.sample, "generator_of", lambda *_: Instant())
    config = SampleConfig(tmp_path / "world" / "preference.jsonl", tmp_path / "out", base_url="http://x", model="m")
    out = recipes.data.sample.sample(config)
    assert 1 <= found.most <= 3
    assert len((out / GROUPS).read_text().splitlines()) == PROBLEMS
