"""Step labels by continuation: a real tiny policy draws, a verifier written here decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from mpo.multimodal.errors import ConfigError, DataError
from recipes.worlds.digits.world import scenes, to_problem
from rewards.kept.calls import in_turn
from rewards.prm.labelling.monte_carlo import Continuer, label_steps
from rewards.sampling.generator import Generator
from rewards.sampling.transformers_generator import SamplingParams, TransformersGenerator
from rewards.steps import split_on_blank_lines
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, RolloutGroup, Verdict

C, W, U, T, E = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE, Verdict.TIMEOUT, Verdict.ERROR
K = 4
PROBLEMS = [to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("prm", 2, 1))]
TEXTS = [["Red is 3\n\nBlue is 9\n\nFinal answer: 12", "Final answer: 12"], ["Green is 1\n\n\nFinal answer: 7\n"]]


def groups_of(*verdicts: list[Verdict | None]) -> list[RolloutGroup]:
    return [
        RolloutGroup(problem, tuple(Rollout(Completion(t), verdict=v) for t, v in zip(texts, row, strict=True)))
        for problem, texts, row in zip(PROBLEMS, TEXTS, verdicts, strict=True)
    ]


@pytest.fixture(scope="module")
def generator(policy: Any, processor: Any) -> TransformersGenerator:
    return TransformersGenerator(policy, processor, SamplingParams(max_new_tokens=6), batch_rows=8)


class Table:
    """Verdicts by the problem and the prefix that an answer starts with; keeps what it was asked."""

    def __init__(self, rows: dict[tuple[str, str], list[Verdict]]) -> None:
        self.rows, self.asked = rows, []

    def __call__(self, items: Sequence[tuple[Problem, Completion]]) -> list[Verdict]:
        self.asked += [(problem, completion.text) for problem, completion in items]
        left = {key: list(row) for key, row in self.rows.items()}
        found = []
        for problem, completion in items:
            text = completion.text
            prefix = max((p for i, p in left if i == problem.id and text.startswith(p)), key=len)
            found.append(left[problem.id, prefix].pop(0))
        return found


def settings(generator: Any, verify_many: Any, seed: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "run": in_turn(Continuer(generator, verify_many)),
        "splitter": split_on_blank_lines,
        "num_continuations": K,
        "seed": seed,
        **changes,
    }


def label(groups: list[RolloutGroup], generator: Any, verify_many: Any, **changes: Any) -> Any:
    done = label_steps(groups, **settings(generator, verify_many, **changes))
    return done.groups, done.rejected


class Recorder(Generator):
    """Passes calls on to a generator and keeps them."""

    def __init__(self, generator: TransformersGenerator) -> None:
        self.generator, self.calls = generator, []

    def draw(
        self, problems: Sequence[Problem], n: int, *, prefixes: Any = None, seed: int, done: Any = frozenset()
    ) -> Any:
        drawn = list(self.generator.draw(problems, n, prefixes=prefixes, seed=seed, done=done))
        self.calls.append(([p.id for p in problems], n, list(prefixes), seed, drawn))
        return drawn


def test_counts_stand_at_their_steps(generator: TransformersGenerator) -> None:
    """What is not read or checked leaves K; the last step is its own verdict, K of K or 0 of K."""
    table = Table(
        {
            ("p0", "Red is 3\n\n"): [C, C, C, W],
            ("p0", "Red is 3\n\nBlue is 9\n\n"): [C, T, E, U],
            ("p1", "Green is 1\n\n\n"): [W, W, U, W],
        }
    )
    labelled, rejected = label(groups_of([C, W], [W]), generator, table)
    assert [[r.mc for r in group.rollouts] for group in labelled] == [
        [
            (MonteCarloCount(3, 4), MonteCarloCount(1, 1), MonteCarloCount(4, 4)),
            (MonteCarloCount(0, 4),),
        ],
        [(MonteCarloCount(0, 3), MonteCarloCount(0, 4))],
    ]
    assert rejected == Counter()
    assert Counter(p.id for p, _ in table.asked) == {"p0": 2 * K, "p1": K}  # no continuation of a last step


def test_answers_are_prefix_and_continuation(generator: TransformersGenerator) -> None:
    seen: list[tuple[Problem, str]] = []

    def all_wrong(items: Sequence[tuple[Problem, Completion]]) -> list[Verdict]:
        seen.extend((problem, completion.text) for problem, completion in items)
        return [W] * len(items)

    label(groups_of([C, W], [W]), generator, all_wrong)
    prefixes = ["Red is 3\n\n", "Red is 3\n\nBlue is 9\n\n", "Green is 1\n\n\n"]  # those of one problem side by side
    assert len(seen) == len(prefixes) * K
    drawn = generator.generate([PROBLEMS[0], PROBLEMS[0], PROBLEMS[1]], K, prefixes=prefixes, seed=0)
    assert [text for _, text in seen] == [p + c.text for p, row in zip(prefixes, drawn, strict=True) for c in row]


def test_nothing_is_lost(generator: TransformersGenerator) -> None:
    """in = out + rejected, whatever the verifier says; a rollout goes as a whole."""
    table = Table(
        {
            ("p0", "Red is 3\n\n"): [C, C, C, C],
            ("p0", "Red is 3\n\nBlue is 9\n\n"): [T, E, T, E],
            ("p1", "Green is 1\n\n\n"): [C, W, T, T],
        }
    )
    groups = groups_of([C, T], [W])
    labelled, rejected = label(groups, generator, table)
    assert [len(group.rollouts) for group in labelled] == [0, 1]
    assert [group.problem.id for group in labelled] == ["p0", "p1"]
    assert labelled[1].rollouts[0].mc == (MonteCarloCount(1, 2), MonteCarloCount(0, 4))
    assert rejected == {"a step without a decided continuation": 1, "verdict timeout": 1}
    assert sum(len(g.rollouts) for g in groups) == sum(len(g.rollouts) for g in labelled) + rejected.total()


def test_the_rollout_itself_is_kept(generator: TransformersGenerator) -> None:
    groups = groups_of([C, W], [W])
    labelled, _ = label(groups, generator, lambda items: [W] * len(items))
    for before, after in zip(groups, labelled, strict=True):
        assert [r.with_(mc=None, label_source=None) for r in after.rollouts] == list(before.rollouts)
        assert {r.label_source for r in after.rollouts} == {"mc:full:4"}
        assert all(len(r.mc) == len(split_on_blank_lines(r.completion.text)) for r in after.rollouts)


def test_unverified_rollouts_are_rejected_not_wrong(generator: TransformersGenerator) -> None:
    labelled, rejected = label(groups_of([None, C], [U]), generator, lambda items: [C] * len(items))
    assert [[r.verdict for r in group.rollouts] for group in labelled] == [[C], []]
    assert rejected == {"verdict none": 1, "verdict unparsable": 1}


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: [*v, C], lambda v: []])
def test_a_verifier_that_loses_rows_is_refused(generator: TransformersGenerator, change: Any) -> None:
    with pytest.raises(DataError, match="expected 12 continuations and a verdict for each, got 12 and"):
        label(groups_of([C, W], [W]), generator, lambda items: change([W] * len(items)))


def test_single_steps_and_no_groups_need_no_draw(generator: TransformersGenerator) -> None:
    single = RolloutGroup(PROBLEMS[0], (Rollout(Completion("Final answer: 12"), verdict=C),))
    labelled, _ = label([single], generator, lambda items: [C] * len(items))
    assert labelled[0].rollouts[0].mc == (MonteCarloCount(4, 4),)
    assert label([], generator, lambda items: []) == ([], Counter())


def test_what_labelling_cost(generator: TransformersGenerator) -> None:
    """Three steps to continue, four each; every continuation of a random policy runs into its limit of six tokens."""
    verdicts = [C, T, W, E, U, W, W, W, T, T, W, C]
    ticks: list[int] = []
    done = label_steps(
        groups_of([C, W], [W]),
        **settings(generator, lambda items: [verdicts.pop(0) for _ in items], rows_a_call=2 * K, on_drawn=ticks.append),
    )
    assert (done.continuations, done.undecided) == (12, {"timeout": 3, "error": 1, "unparsable": 1})
    assert ticks == [8, 4]
    assert 12 <= done.tokens <= 12 * 6
    assert not verdicts


def test_a_rollout_without_a_verdict_costs_nothing(generator: TransformersGenerator) -> None:
    done = label_steps(groups_of([None, T], [E]), **settings(generator, lambda items: [C] * len(items)))
    assert (done.continuations, done.rejected.total()) == (0, 3)


@pytest.mark.parametrize(("budget", "sizes"), [("full", [4]), ("sequential", [2, 2]), ("bisect", [2, 2])])
def test_waves_draw_anew(generator: TransformersGenerator, budget: str, sizes: list[int]) -> None:
    """The same place in the next wave has another seed, and so other text; a rerun has the same."""
    recorder = Recorder(generator)
    groups = [groups_of([W, W], [W])[1]]
    done = label_steps(groups, **settings(recorder, lambda items: [W] * len(items), budget=budget))
    assert [n for _, n, *_ in recorder.calls] == sizes
    assert len({seed for *_, seed, _ in recorder.calls}) == len(sizes)
    texts = [sample.completion.text for *_, drawn in recorder.calls for row in drawn for sample in row]
    assert len(set(texts)) == len(texts) == K
    assert done.groups[0].rollouts[0].mc == (MonteCarloCount(0, 4), MonteCarloCount(0, 4))
    assert done.groups[0].rollouts[0].label_source == f"mc:{budget}:4"
    again = Recorder(generator)
    label_steps(groups, **settings(again, lambda items: [W] * len(items), budget=budget))
    assert again.calls == recorder.calls


def test_a_smaller_budget_stops_at_a_success(generator: TransformersGenerator) -> None:
    """`sequential` draws 2 from each of 3 ends and 2 more where both were wrong; `bisect` asks only the wrong p1."""
    groups = groups_of([C, W], [W])

    def first_of_red(items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [C if problem.id == "p0" else W for problem, _ in items]

    done = label_steps(groups, **settings(generator, first_of_red, budget="sequential"))
    assert [r.mc for r in done.groups[0].rollouts] == [
        (MonteCarloCount(2, 2), MonteCarloCount(2, 2), MonteCarloCount(4, 4)),
        (MonteCarloCount(0, 4),),
    ]
    assert done.continuations == 2 + 2 + 4
    done = label_steps(groups, **settings(generator, first_of_red, budget="bisect"))
    assert done.groups[0].rollouts[0].mc == (MonteCarloCount(1, 1), MonteCarloCount(1, 1), MonteCarloCount(4, 4))
    assert done.continuations == 4


def test_settings_that_cannot_work_are_refused(generator: TransformersGenerator) -> None:
    for changes, said in (({"budget": "half"}, "unknown budget 'half'"), ({"num_continuations": 0}, "at least 1")):
        with pytest.raises(ConfigError, match=said):
            label_steps([], **settings(generator, lambda items: [], **changes))
