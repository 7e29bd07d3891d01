"""Stages that read groups, and the export of `sample`, hold some at a time, whatever the number of problems."""

from __future__ import annotations

import json
import random
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import recipes.data.pairs
import recipes.data.sample
import recipes.data.score
import recipes.data.verify
import recipes.stage.groups
import rewards.scoring.groups
from recipes.answering.best_of_n import best_of_n
from recipes.config import BestOfNConfig, PairsConfig, SampleConfig, ScoreConfig, VerifyConfig
from recipes.stage.folder import RESULTS, manifest_of
from recipes.stage.groups import GROUPS, iter_groups, read_groups
from rewards.choosing.evaluation import evaluate
from rewards.sampling.generator import Generator, Sample
from rewards.scoring.groups import score_groups, score_unseen
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.types import Completion, RolloutGroup, StepScores
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
    return made(tmp_path, PROBLEMS)


def made(tmp_path: Path, number: int) -> Path:
    rng = random.Random(0)
    problems = make_problems(tmp_path / "world", "preference", number, rng)
    return write_stage(tmp_path / "scored", score_all(make_groups(problems, 4, 0.5, rng), rng), problems, name="score")


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Alive:
    found = Alive()
    modules: tuple[ModuleType, ...] = (
        *(recipes.data.verify, recipes.data.pairs, recipes.data.score, recipes.stage.groups),
    )
    for module in modules:
        monkeypatch.setattr(module, "iter_groups", lambda *given: found.watch(iter_groups(*given)))
    monkeypatch.setattr(recipes.data.verify, "GROUPS_AT_A_TIME", 4)
    return found


def test_verify_holds_what_it_hands_to_the_workers(scored: Path, tmp_path: Path, alive: Alive) -> None:
    out = recipes.data.verify.verify(VerifyConfig(scored, tmp_path / "out", verifier="exact"))
    assert 4 <= alive.most <= 6
    assert [group.problem.id for group in read_groups(out)] == [group.problem.id for group in read_groups(scored)]


def test_pairs_holds_a_group(scored: Path, tmp_path: Path, alive: Alive) -> None:
    recipes.data.pairs.pairs(PairsConfig(scored, tmp_path / "out", rule="correctness"))
    assert 1 <= alive.most <= 3


class Lengths(ProcessRewardModel):
    """Scores that tell which call they come from: its last bits depend on its neighbours, as a model's do."""

    def outcomes(self, items, *, describe=""):
        return [StepScores((len(text) / (1000 + len(items)),)) for _, text in items]


@pytest.mark.parametrize("visual_dependence", [False, True])
def test_score_holds_some_calls_and_makes_the_same(
    tmp_path: Path, alive: Alive, monkeypatch: pytest.MonkeyPatch, visual_dependence: bool
) -> None:
    scored = made(tmp_path, 200)
    monkeypatch.setattr(recipes.data.score, "prm_of", lambda *_, **__: Lengths())
    monkeypatch.setattr(rewards.scoring.groups, "CALLS_AT_A_TIME", 3)
    monkeypatch.setattr(rewards.scoring.groups, "BLANK_AT_A_TIME", 4)
    prm = tmp_path / "prm"
    prm.mkdir()
    (prm / "config.json").write_text('{"model_type": "none"}')
    config = ScoreConfig(scored, prm, tmp_path / "out", batch_rows=6, visual_dependence=visual_dependence)
    out = recipes.data.score.score(config)
    # 3 calls of 6 responses are 5 groups, 4 are under each other image; `tee` lets go of 57 at a time.
    assert alive.most <= 5 + 2 * 4 + 2 * 57
    found, reasons = score_groups(read_groups(scored), InCalls(6))
    lacking = dict[str, int]()
    for image in ("blank", "swapped") if visual_dependence else ():
        found, without = score_unseen(found, InCalls(6), image=image)
        lacking |= without
    assert read_groups(out) == found
    counts = manifest_of(out)["counts"]
    assert (counts["in"], counts["unscored"]) == (4 * 200, dict(reasons))
    assert counts.get("without_other_picture", {}) == lacking


class InCalls(ProcessRewardModel):
    """`Lengths`, asked in calls of some responses cut from the whole list."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def outcomes(self, items, *, describe=""):
        starts = range(0, len(items), self.rows)
        return [found for start in starts for found in Lengths().outcomes(items[start : start + self.rows])]


def test_best_of_n_holds_a_group_and_gives_the_numbers_of_a_list(scored: Path, tmp_path: Path, alive: Alive) -> None:
    out = best_of_n(BestOfNConfig(scored, tmp_path / "out", ks=[1, 2, 4]))
    assert 1 <= alive.most <= 3
    straight = evaluate(read_groups(scored), [1, 2, 4])
    assert (out / RESULTS).read_text() == json.dumps(straight, default=list) + "\n"


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
