"""Step labels by continuation: a real tiny policy draws, a verifier written here decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from mpo.multimodal.errors import DataError
from recipes.digits.world import scenes, to_problem
from rewards.generators.transformers_generator import SamplingParams, TransformersGenerator
from rewards.prm.monte_carlo import count, label_steps
from rewards.splitting import split_on_blank_lines
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

    def __call__(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        self.asked += items
        left = {key: list(row) for key, row in self.rows.items()}
        found = []
        for problem, text in items:
            prefix = max((p for i, p in left if i == problem.id and text.startswith(p)), key=len)
            found.append(left[problem.id, prefix].pop(0))
        return found


def label(groups: list[RolloutGroup], generator: Any, verify_many: Any, *, seed: int = 0) -> Any:
    return label_steps(
        groups,
        generator=generator,
        verify_many=verify_many,
        splitter=split_on_blank_lines,
        num_continuations=K,
        seed=seed,
    )


def test_counts_stand_at_their_steps(generator: TransformersGenerator) -> None:
    """Timeouts and errors leave K; the last step is its own verdict, K of K or 0 of K."""
    table = Table(
        {
            ("p0", "Red is 3\n\n"): [C, C, C, W],
            ("p0", "Red is 3\n\nBlue is 9\n\n"): [C, T, E, U],
            ("p1", "Green is 1\n\n\n"): [W, W, U, W],
        }
    )
    labelled, rejected = label(groups_of([C, W], [U]), generator, table)
    assert [[r.mc for r in group.rollouts] for group in labelled] == [
        [
            (MonteCarloCount(3, 4), MonteCarloCount(1, 2), MonteCarloCount(4, 4)),
            (MonteCarloCount(0, 4),),
        ],
        [(MonteCarloCount(0, 4), MonteCarloCount(0, 4))],
    ]
    assert rejected == Counter()
    assert Counter(p.id for p, _ in table.asked) == {"p0": 2 * K, "p1": K}  # no continuation of a last step


def test_answers_are_prefix_and_continuation(generator: TransformersGenerator) -> None:
    seen: list[tuple[Problem, str]] = []

    def all_wrong(items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        seen.extend(items)
        return [W] * len(items)

    label(groups_of([C, W], [U]), generator, all_wrong)
    prefixes = ["Red is 3\n\n", "Green is 1\n\n\n", "Red is 3\n\nBlue is 9\n\n"]  # by length, which pads least
    assert len(seen) == len(prefixes) * K
    drawn = generator.generate([PROBLEMS[0], PROBLEMS[1], PROBLEMS[0]], K, prefixes=prefixes, seed=0)
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
    assert rejected == {"a step without a decided continuation": 2}
    assert sum(len(g.rollouts) for g in groups) == sum(len(g.rollouts) for g in labelled) + rejected.total()


def test_the_rollout_itself_is_kept(generator: TransformersGenerator) -> None:
    groups = groups_of([C, W], [U])
    labelled, _ = label(groups, generator, lambda items: [W] * len(items))
    for before, after in zip(groups, labelled, strict=True):
        assert [r.with_(mc=None) for r in after.rollouts] == list(before.rollouts)
        assert all(len(r.mc) == len(split_on_blank_lines(r.completion.text)) for r in after.rollouts)


def test_unverified_rollouts_are_rejected_not_wrong(generator: TransformersGenerator) -> None:
    labelled, rejected = label(groups_of([None, C], [None]), generator, lambda items: [C] * len(items))
    assert [[r.verdict for r in group.rollouts] for group in labelled] == [[C], []]
    assert rejected.total() == 2


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: [*v, C], lambda v: []])
def test_a_verifier_that_loses_rows_is_refused(generator: TransformersGenerator, change: Any) -> None:
    with pytest.raises(DataError, match="expected 12 continuations and as many verdicts, got 12 and"):
        label(groups_of([C, W], [U]), generator, lambda items: change([W] * len(items)))


def test_single_steps_and_no_groups_need_no_draw(generator: TransformersGenerator) -> None:
    single = RolloutGroup(PROBLEMS[0], (Rollout(Completion("Final answer: 12"), verdict=C),))
    labelled, _ = label([single], generator, lambda items: [C] * len(items))
    assert labelled[0].rollouts[0].mc == (MonteCarloCount(4, 4),)
    assert label([], generator, lambda items: []) == ([], Counter())


def test_count() -> None:
    assert count([C, W, U, U]) == MonteCarloCount(1, 4)
    assert count([T, E]) is None
    assert count([]) is None
    assert count([T, C]).value == 1.0
