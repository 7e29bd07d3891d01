"""Step labels from real servers on loopback: the same labels whatever the order, the servers and the trouble."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import ServerError, TokensSpentError
from rewards.kept.calls import CallStore
from rewards.prm.labelling.cost import estimate_from_first
from rewards.prm.labelling.monte_carlo import Labelled
from rewards.prm.labelling.served import label_steps_on_servers
from rewards.prm.labelling.token_limit import TokenLimit, tokens_of
from rewards.sampling.generator import SamplingParams
from rewards.sampling.openai_generator import OpenAIGenerator
from rewards.steps import split_on_blank_lines
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict
from tests import simulated_policy
from tests.model_server import ModelServer

BUDGETS = ("full", "sequential", "bisect")
K = 8


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(reply=simulated_policy.reply, models=["tiny"]) as running:
        yield running


def verify_many(items: Sequence[tuple[Problem, Completion]]) -> list[Verdict]:
    return [Verdict.CORRECT if c.text.endswith(f"answer: {p.answer}") else Verdict.WRONG for p, c in items]


def groups_of(number: int, seed: int = 0) -> tuple[list[RolloutGroup], dict[tuple[int, int], int | None]]:
    """Groups of a right and two wrong responses, and where the first error of each is."""
    rng, groups, errors = random.Random(seed), [], {}
    for g in range(number):
        rollouts = []
        for r in range(3):
            steps = rng.randint(2, 9)
            errors[g, r] = None if r == 0 else rng.randint(0, steps - 1)
            text = f"problem {g} response {r}\n\n" + simulated_policy.response(steps, errors[g, r])
            rollouts.append(Rollout(Completion(text), Verdict.CORRECT if r == 0 else Verdict.WRONG))
        groups.append(RolloutGroup(Problem(f"p{g}", f"What is {g}?", answer="6"), tuple(rollouts)))
    return groups, errors


def label(server: ModelServer | Sequence[str], groups: list[RolloutGroup], **changes: Any) -> Labelled:
    urls = server.base_url if isinstance(server, ModelServer) else server
    client = {key: changes.pop(key) for key in ("samples_a_request", "concurrency", "attempts") if key in changes}
    generator = OpenAIGenerator(urls, "tiny", SamplingParams(max_new_tokens=64), **{"attempts": 1} | client)
    settings = {"splitter": split_on_blank_lines, "num_continuations": K, "seed": 0, "verify_many": verify_many}
    return label_steps_on_servers(groups, servers=generator, **settings | changes)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_first_error_is_found_and_the_order_of_replies_changes_nothing(server: ModelServer, budget: str) -> None:
    """Every hard label is that of the known first error (a sound step has a success but for 0.4^8 = 0.07 %), in one
    request at a time as in sixteen, and in one sample a request as in all of a wave, whose draws are other ones."""
    groups, errors = groups_of(4)
    one = label(server, groups, budget=budget, concurrency=1)
    for g, group in enumerate(one.groups):
        for r, rollout in enumerate(group.rollouts):
            steps, error = len(rollout.mc or ()), errors[g, r]
            sound = [error is None or i < 1 + error for i in range(steps)]  # the first step names the problem
            assert [count.correct > 0 for count in rollout.mc or ()] == sound, (budget, g, r)
    assert label(server, groups, budget=budget) == one
    other = label(server, groups, budget=budget, samples_a_request=1)
    assert [[r.verdict for r in g.rollouts] for g in other.groups] == [
        [r.verdict for r in g.rollouts] for g in one.groups
    ]
    assert one.rejected == other.rejected == {}
    assert server.most > 1


def test_bisection_asks_less_and_no_problem_waits_for_another(server: ModelServer) -> None:
    """Two requests under way: the first problem is asked to its end before the last one is begun."""
    groups, _ = groups_of(8)
    costs = {budget: label(server, groups, budget=budget).continuations for budget in BUDGETS}
    assert costs["bisect"] < costs["sequential"] < costs["full"]
    del server.requests[:]
    label(server, groups, budget="bisect", concurrency=2)
    asked = [body["messages"][0]["content"][0]["text"] for body in server.requests]
    last = {question: place for place, question in enumerate(asked)}
    assert last["What is 0?"] < asked.index("What is 7?")


def test_what_is_kept_is_not_asked_again(server: ModelServer, tmp_path: Path) -> None:
    """A server that dies after 20 requests: their counts are kept, the rest is asked, the labels are the straight
    run's, to the last count and token."""
    groups, _ = groups_of(6)
    straight = label(server, groups, budget="bisect")
    asked = len(server.requests)
    server.faults, server.then = ["ok"] * 20, "404"
    with CallStore(tmp_path / "calls.sqlite", {"k": K}) as calls, pytest.raises(ServerError):
        label(server, groups, budget="bisect", calls=calls)
    server.then, before = "ok", len(server.requests)
    ticks: list[int] = []
    with CallStore(tmp_path / "calls.sqlite", {"k": K}) as calls:
        kept = sum(1 for _ in calls.results())
        again = label(server, groups, budget="bisect", calls=calls, on_drawn=ticks.append)
        assert tokens_of(calls) == straight.tokens
    assert again == straight
    assert sum(ticks) == straight.continuations
    assert 0 < kept <= 20
    assert len(server.requests) - before == asked - kept


def test_a_refused_continuation_is_neither_right_nor_wrong(server: ModelServer) -> None:
    """The server refuses the third request for good: those K draws decide nothing, and the response whose step it was
    gets no labels instead of a wrong one."""
    groups, _ = groups_of(3)
    server.faults = ["ok", "ok", "refuse"]
    done = label(server, groups, budget="full", concurrency=1)
    assert done.undecided == {"error": K}
    assert done.rejected == {"a step without a decided continuation": 1}
    assert sum(len(group.rollouts) for group in done.groups) == 8


def test_one_that_never_answers_stops_no_other(server: ModelServer) -> None:
    groups, _ = groups_of(5)
    server.breaks_on = "What is 3?"
    with pytest.raises(ServerError) as caught:
        label(server, groups, budget="bisect")
    assert set(caught.value.problems) == {"p3"}
    questions = Counter(body["messages"][0]["content"][0]["text"] for body in server.requests)
    assert all(questions[f"What is {g}?"] >= 2 for g in range(5))


def test_the_token_limit_stops_between_requests_and_a_larger_one_goes_on(server: ModelServer, tmp_path: Path) -> None:
    groups, _ = groups_of(6)
    straight = label(server, groups, budget="full")
    most = straight.tokens // 2
    with CallStore(tmp_path / "calls.sqlite", {"k": K}) as calls:
        with pytest.raises(TokensSpentError, match=r"stopped: [\d,]+ tokens were generated, and max_tokens_total is"):
            label(server, groups, budget="full", calls=calls, limit=TokenLimit(most), concurrency=4)
        spent = tokens_of(calls)
        assert most <= spent <= most + 4 * K * 3 * simulated_policy.STEP_WORDS
        asked = len(server.requests)
        with pytest.raises(TokensSpentError):
            label(server, groups, budget="full", calls=calls, limit=TokenLimit(most, spent=spent))
        assert len(server.requests) == asked
        again = label(server, groups, budget="full", calls=calls, limit=TokenLimit(straight.tokens, spent=spent))
    assert again == straight


def test_the_price_that_is_said_before_is_that_of_the_run(server: ModelServer, tmp_path: Path) -> None:
    """180 responses of known first errors: the mean of three estimates, each from 16 problems, is within 10 % of the
    tokens that all take; and what an estimate drew is not drawn again."""
    budget, (groups, _) = "bisect", groups_of(60)
    done = label(server, groups, budget=budget)
    settings = {"splitter": split_on_blank_lines, "num_continuations": K, "budget": budget}
    said = []
    for seed in range(3):
        with CallStore(tmp_path / f"{seed}.sqlite", {"k": K}) as calls:
            first = partial(label, server, budget=budget, calls=calls)
            said.append(estimate_from_first(groups, label=first, seed=seed, **settings))
            if seed == 0:
                before = len(server.requests)
                assert first(groups) == done
                assert len(server.requests) - before < len(server.requests) / 2
    assert sum(cost.tokens for cost in said) / 3 == pytest.approx(done.tokens, rel=0.1)
    assert sum(cost.expected for cost in said) / 3 == pytest.approx(done.continuations, rel=0.1)
    assert all(done.continuations <= cost.at_most for cost in said)
