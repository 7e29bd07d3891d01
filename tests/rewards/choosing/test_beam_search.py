"""Beam search against a tree that is searched by hand and by brute force, and with tiny real models."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model
from recipes.worlds.digits.world import scenes, to_problem
from rewards.choosing.beam_search import BeamSearch, cut_to_one_step
from rewards.prm.formats import STEP_END
from rewards.prm.model_prm import ModelPRM
from rewards.sampling.generator import Generator, Sample, SamplingParams
from rewards.sampling.openai_generator import OpenAIGenerator
from rewards.sampling.transformers_generator import TransformersGenerator
from rewards.types import Completion, FinishReason, Problem, StepScores
from tests.model_server import ModelServer
from tests.rewards.scripted import RulePRM

DEPTH = 3
WORDS = "abcd"
VALUE = {"a": 0.4, "b": 0.9, "c": 0.1, "d": 0.6}
PROBLEM = Problem("p", "?")


class TreeGenerator(Generator):
    """Sample i of a prefix takes branch i mod 4 at the next step, then branch 0; every path has DEPTH steps."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[str]]] = []

    def draw(self, problems: Any, n: int, *, prefixes: Any = None, seed: int, done: Any = ()) -> Iterator[list[Sample]]:
        self.calls.append((n, list(prefixes)))
        for place, prefix in enumerate(prefixes):
            left = DEPTH - prefix.count("\n\n")
            for index in range(n):
                text = "\n\n".join([WORDS[index % 4], *"a" * (left - 1)])
                yield [Sample(place, index, seed, Completion(text, FinishReason.STOP, left))]


class TreePRM(RulePRM):
    """As RulePRM, but a prefix that ends in a blank line has no empty step."""

    def outcomes(self, items: Any, *, describe: str = "") -> Any:
        return super().outcomes([(problem, text.strip()) for problem, text in items])


def test_a_tree_by_hand() -> None:
    """W = 1, m = 4: b (0.9), then bb, then bbb finished. Rounds of 4, tokens 4·3 + 4·2 + 4·1 = 24."""
    generator = TreeGenerator()
    (found,) = BeamSearch(generator, TreePRM(VALUE.__getitem__), width=1, expand=4).search([PROBLEM], seed=0)
    assert found.best is not None
    assert found.best.completion.text == "b\n\nb\n\nb"
    assert found.best.completion.finish_reason is FinishReason.STOP
    assert found.best.reward == pytest.approx(0.9)
    assert generator.calls == [(4, [""]), (4, ["b\n\n"]), (4, ["b\n\nb\n\n"])]
    assert (found.tokens, found.extensions, found.rounds, found.dropped) == (24, 12, 3, 0)
    assert len(found.finished) == 4  # the last round's four all ended


def test_a_full_width_is_exhaustive_search() -> None:
    """A PRM under which the greedy first step is wrong: only a wide enough beam finds the best path."""

    class LatePRM(TreePRM):
        def outcomes(self, items: Any, *, describe: str = "") -> Any:
            return [StepScores((late(text.strip().split("\n\n")),)) for _, text in items]

    def late(steps: list[str]) -> float:
        if steps[:2] == ["c", "d"]:
            return 1.0
        return VALUE[steps[0]] / 2

    paths = ["\n\n".join(path) for path in itertools.product(WORDS, repeat=DEPTH)]
    best = max(late(path.split("\n\n")) for path in paths)
    narrow, wide = (
        BeamSearch(TreeGenerator(), LatePRM(VALUE.__getitem__), width=width, expand=4).search([PROBLEM], seed=0)[0]
        for width in (1, 16)
    )
    assert narrow.best is not None
    assert wide.best is not None
    assert wide.best.reward == best == 1.0
    assert narrow.best.reward < best
    assert wide.best.completion.text.startswith("c\n\nd\n\n")


def test_equal_extensions_are_kept_once_and_problems_do_not_mix() -> None:
    other = Problem("q", "!")
    generator = TreeGenerator()
    searches = BeamSearch(generator, TreePRM(VALUE.__getitem__), width=2, expand=4).search([PROBLEM, other], seed=0)
    assert generator.calls[0] == (8, ["", ""])
    assert generator.calls[1] == (4, ["b\n\n", "d\n\n"] * 2)
    assert [search.dropped for search in searches] == [4, 4]  # of 8 first steps 4 are distinct
    assert [search.problem.id for search in searches] == ["p", "q"]
    assert searches[0].best == searches[1].best


def test_a_search_without_end_is_truncated() -> None:
    (found,) = BeamSearch(TreeGenerator(), TreePRM(VALUE.__getitem__), width=1, max_rounds=2).search([PROBLEM], seed=0)
    assert found.best is not None
    assert (found.best.completion.text, found.best.completion.finish_reason) == ("b\n\nb\n\n", FinishReason.LENGTH)
    assert found.finished == []


def test_cutting() -> None:
    """A blank line ends a step; a limit inside a step does not finish it; an end at once finishes the prefix."""
    stop, length = FinishReason.STOP, FinishReason.LENGTH
    cases = [
        ("", Completion("a\n\nb", stop), "a\n\n", length),
        ("a\n\n", Completion("b", stop), "a\n\nb", stop),
        ("a\n\n", Completion("b", length), "a\n\nb", length),
        ("a\n\n", Completion("", stop), "a\n\n", stop),
        ("a\n\n", Completion("b\n\n\n", stop), "a\n\nb\n\n\n", stop),
    ]
    for prefix, continuation, text, reason in cases:
        found = cut_to_one_step(prefix, continuation)
        assert (found.text, found.finish_reason) == (text, reason)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="width, expand and max_rounds"):
        BeamSearch(TreeGenerator(), TreePRM(VALUE.__getitem__), width=0)


def test_real_models_in_process_and_behind_a_server(policy_folder: Path, processor: Any) -> None:
    problems = [to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("test", 2, 3))]
    prm = ModelPRM(load_model(policy_folder).eval(), processor, STEP_END)  # prepared in place: not the policy itself
    generator = TransformersGenerator(load_model(policy_folder).eval(), processor, SamplingParams(max_new_tokens=6))
    search = BeamSearch(generator, prm, width=2, expand=3, max_rounds=3)
    found = search.search(problems, seed=1)
    assert [s.problem for s in found] == problems
    for one in found:
        assert one.best is not None
        assert one.rounds == 3 or len(one.finished) >= 2
        assert one.tokens <= 6 * one.extensions
        (again,) = prm.score(one.problem, [one.best.completion.text])
        assert one.best.step_scores is not None
        assert again.values == pytest.approx(one.best.step_scores.values, abs=1e-5)
    assert [s.best for s in search.search(problems, seed=1)] == [s.best for s in found]
    with ModelServer() as server:
        remote = OpenAIGenerator(server.base_url, "tiny", SamplingParams(max_new_tokens=6))
        answers = BeamSearch(remote, prm, width=2, expand=2, max_rounds=2).search([Problem("t", "What is 5?")], seed=0)
        assert answers[0].best is not None
        assert "choice" in answers[0].best.completion.text
        server.faults, server.then = ["refuse"], "ok"
        (refused,) = BeamSearch(remote, prm, width=2, expand=2).search([Problem("t", "What is 5?")], seed=0)
        assert refused.best is None
        assert refused.refused.startswith("the server")
