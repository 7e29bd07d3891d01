"""What labelling is said to cost, against what it then costs."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from rewards.kept.calls import in_turn
from rewards.prm.labelling.cost import CostEstimate, estimate_cost
from rewards.prm.labelling.monte_carlo import Continuer, label_steps
from rewards.sampling.generator import Generator, Sample
from rewards.steps import split_on_blank_lines
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict

C, W = Verdict.CORRECT, Verdict.WRONG


class KnownPolicy(Generator):
    """Continuations of three tokens; a prefix is right with a probability that its text alone decides."""

    def draw(
        self, problems: Sequence[Problem], n: int, *, prefixes: Any = None, seed: int, done: Any = frozenset()
    ) -> Iterator[list[Sample]]:
        for place, prefix in enumerate(prefixes):
            rng = random.Random(f"{seed}:{place}:{prefix}")
            p = int(hashlib.sha256(prefix.encode()).hexdigest(), 16) % 3 / 4  # 0, 1/4 or 1/2
            texts = ["right" if rng.random() < p else "wrong" for _ in range(n)]
            yield [Sample(place, i, seed, Completion(text, num_tokens=3)) for i, text in enumerate(texts)]


def verify(items: Sequence[tuple[Problem, Completion]]) -> list[Verdict]:
    return [C if completion.text.endswith("right") else W for _, completion in items]


def groups_of(count: int) -> list[RolloutGroup]:
    rng = random.Random(0)

    def rollout(index: int) -> Rollout:
        steps = [f"step {index} {i}" for i in range(rng.randint(2, 9))]
        return Rollout(Completion("\n\n".join(steps)), rng.choice([C, W]))

    return [RolloutGroup(Problem(f"p{i}", "q", answer="1"), (rollout(2 * i), rollout(2 * i + 1))) for i in range(count)]


SETTINGS: dict[str, Any] = {
    "run": in_turn(Continuer(KnownPolicy(), verify)),
    "splitter": split_on_blank_lines,
    "num_continuations": 16,
}


@pytest.mark.parametrize("budget", ["full", "sequential", "bisect"])
def test_the_estimate_is_near_what_it_costs(budget: str) -> None:
    """800 responses, 12 of them sampled; the mean of 10 estimates is within 12 % of what is drawn."""
    groups = groups_of(400)
    done = label_steps(groups, **SETTINGS, seed=0, budget=budget)
    estimates = [estimate_cost(groups, **SETTINGS, seed=seed, budget=budget) for seed in range(10)]
    mean = sum(estimate.expected for estimate in estimates) / len(estimates)
    assert mean == pytest.approx(done.continuations, rel=0.0 if budget == "full" else 0.12)
    for estimate in estimates:
        assert done.continuations <= estimate.at_most
        assert estimate.steps == sum(
            len(split_on_blank_lines(r.completion.text)) - 1 for g in groups for r in g.rollouts
        )
        assert estimate.tokens == pytest.approx(3 * estimate.expected)
        assert estimate.seconds > 0
        assert estimate.sample < 0.05 * 16 * estimate.steps


def test_a_slow_first_call_is_not_extrapolated() -> None:
    """A second for the first call, then 0.1 ms per continuation: 800 responses must not be said to take an hour."""

    class Starting(KnownPolicy):
        def __init__(self) -> None:
            self.started = False

        def draw(self, problems: Sequence[Problem], n: int, **settings: Any) -> Iterator[list[Sample]]:
            time.sleep(1e-4 * n * len(problems) if self.started else 1.0)
            self.started = True
            return super().draw(problems, n, **settings)

    estimate = estimate_cost(groups_of(400), **SETTINGS | {"run": in_turn(Continuer(Starting(), verify))}, seed=0)
    assert 1e-4 * estimate.at_most <= estimate.seconds < estimate.at_most / estimate.sample * 0.9


def test_labels_do_not_depend_on_the_estimate() -> None:
    groups = groups_of(20)
    before = label_steps(groups, **SETTINGS, seed=3)
    estimate_cost(groups, **SETTINGS, seed=3)
    assert label_steps(groups, **SETTINGS, seed=3) == before


def test_nothing_to_draw_costs_nothing() -> None:
    right = [RolloutGroup(Problem("p", "q", answer="1"), (Rollout(Completion("a\n\nb"), C),))]
    assert estimate_cost(right, **SETTINGS, seed=0, budget="bisect") == CostEstimate(1, 0, 0, 0.0, 0.0, 0)
    assert estimate_cost([], **SETTINGS, seed=0) == CostEstimate(0, 0, 0, 0.0, 0.0, 0)


def test_what_is_said() -> None:
    said = str(CostEstimate(steps=1200, at_most=19200, expected=6400.4, tokens=128000, seconds=90, sample=256))
    assert said == (
        "1,200 steps to continue; at most 19,200 continuations, about 6,400 expected: 128,000 tokens, 1.5 min of "
        "drawing (measured on 256 continuations)"
    )
