"""A thinking policy behind a real server, through sample, verify, score, pairs and best-of-n: nothing is lost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.answering.best_of_n import best_of_n
from recipes.config import BestOfNConfig, PairsConfig, SampleConfig, ScoreConfig, VerifyConfig
from recipes.data.pairs import pairs
from recipes.data.sample import sample
from recipes.data.score import score
from recipes.data.verify import verify
from recipes.stage.folder import PAIRS, manifest_of
from recipes.stage.groups import read_groups
from rewards.interchange.trl_rows import problems_in_rows, read_trl_parquet
from rewards.prm.formats import STEP_END
from rewards.prm.model_prm import save_format
from rewards.sampling.prompts import PROMPTS
from rewards.steps import split_on_blank_lines
from rewards.types import FinishReason, Verdict
from rewards.verifying.degeneration import degeneration_faults
from tests.model_server import ModelServer
from tests.recipes.run_folders import make_problems

C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE
THOUGHT = "Is it \\boxed{3}? Red is 3.\n\nBlue is 9.\n\nFinal answer: 3, no wait."
SAMPLES = [  # thought, solution, whether it ended; "{}" is the reference
    (THOUGHT, "Red is 3.\n\nBlue is 9.\n\nFinal answer: {}", True),
    (THOUGHT, "Red is 4.\n\nFinal answer: 1", True),
    (THOUGHT, "", False),
    ("Blue first.", "Blue is 9.\n\nFinal answer: {}.0", True),
]
STEPS = {"solution": [3, 2, None, 2], "thought": [3, 3, 3, 1], "both": [6, 5, 3, 3]}


def in_field(name: str) -> Callable[[str, str, bool], dict[str, Any]]:
    return lambda thought, solution, ended: {"content": solution or None, name: thought}


def in_text(thought: str, solution: str, ended: bool) -> dict[str, Any]:
    return {"content": f"<think>\n{thought}\n</think>\n\n{solution}" if ended else f"<think>\n{thought}"}


FORMS = {"text": in_text, "reasoning_content": in_field("reasoning_content"), "reasoning": in_field("reasoning")}


def thinking(form: Callable[[str, str, bool], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def reply(body: dict[str, Any]) -> dict[str, Any]:
        reference = body["messages"][-1]["content"][-1]["text"].rsplit(" ", 1)[1]
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", **form(thought, solution.format(reference), ended)},
                "finish_reason": "stop" if ended else "length",
            }
            for index, (thought, solution, ended) in enumerate(SAMPLES[: body["n"]])
        ]
        return {"choices": choices, "usage": {"completion_tokens": 9}}

    return reply


@pytest.fixture
def prm_folder(policy: Any, processor: Any, tmp_path: Path) -> Path:
    policy.save_pretrained(tmp_path / "prm")
    processor.save_pretrained(tmp_path / "prm")
    save_format(tmp_path / "prm", STEP_END)
    return tmp_path / "prm"


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Three questions that end with their reference, so that a server without images can answer them."""
    path = make_problems(tmp_path / "data", "p", 3, random.Random(0), question="Q")
    lines = path.read_text().replace('"question": "Q"', '"question": "The sum? 1{}"').splitlines()
    path.write_text("".join(line.replace("1{}", f"1{index}") + "\n" for index, line in enumerate(lines)))
    return path


def drawn(problems: Path, out: Path, form: str) -> Path:
    with ModelServer(reply=thinking(FORMS[form])) as server:
        config = SampleConfig(problems, out, base_url=[server.base_url], model="m", num_samples=4, prompt="r1")
        sample(config)
        systems = {body["messages"][0]["content"][0]["text"] for body in server.requests}
        assert systems == {PROMPTS["r1"].system}
    return out


def texts(folder: Path) -> list[list[str]]:
    return [[rollout.completion.text for rollout in group.rollouts] for group in read_groups(folder)]


def test_a_thinking_policy_through_the_whole_loop(problems: Path, prm_folder: Path, tmp_path: Path) -> None:
    folders = {form: drawn(problems, tmp_path / form, form) for form in FORMS}
    assert texts(folders["text"]) == texts(folders["reasoning_content"]) == texts(folders["reasoning"])
    for group in read_groups(folders["reasoning"]):
        assert group.problem.prompt == PROMPTS["r1"]
        cut = group.rollouts[2].completion
        assert (cut.text, cut.finish_reason) == (f"<think>\n{THOUGHT}", FinishReason.LENGTH)
        assert degeneration_faults(cut)[0] == "truncated"
        assert all(THOUGHT.split("\n")[0] in r.completion.text for r in group.rollouts[:3])

    verified = verify(VerifyConfig(folders["reasoning"], tmp_path / "verified"))
    for group in read_groups(verified):
        assert [rollout.verdict for rollout in group.rollouts] == [C, W, U, C]  # no box of a thought is read
        assert [rollout.vote for rollout in group.rollouts] == [0, 1, -1, 0]
    assert manifest_of(verified)["counts"]["unparsable"] == {"cut at the token limit": 3}

    scored = score(ScoreConfig(verified, prm_folder, tmp_path / "scored"))
    assert manifest_of(scored)["counts"]["unscored"] == {"no solution after its thought": 3}
    for group in read_groups(scored):
        numbers = [len(r.step_scores.values) if r.step_scores else None for r in group.rollouts]
        assert numbers == STEPS["solution"]
        assert [step.text for step in split_on_blank_lines(group.rollouts[1].completion.text)] == [
            "Red is 4.",
            "Final answer: 1",
        ]

    made = pairs(PairsConfig(scored, tmp_path / "pairs", max_pairs=4, rule="correctness"))
    rows = list(read_trl_parquet(made / PAIRS))
    assert len(rows) == 6  # 2 right x 1 wrong in each of 3 problems; the cut thought is on no side
    for row in rows:
        assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
        assert all(row[side][0]["content"][0]["text"].startswith("<think>\n") for side in ("chosen", "rejected"))
    assert problems_in_rows(rows, 1)[0].prompt.system == PROMPTS["r1"].system

    results = best_of_n(BestOfNConfig(scored, tmp_path / "best", ks=[1, 4]))
    assert manifest_of(results)["counts"]["unscored"] == 3
    values = json.loads((results / "results.json").read_text())["values"]
    assert values["majority"] == {"1": [0.5] * 3, "4": [1.0] * 3}  # two right ones in two spellings, one wrong, one cut


@pytest.mark.parametrize("part", ["thought", "both"])
def test_the_thought_is_scored_where_it_is_asked_for(
    problems: Path, prm_folder: Path, tmp_path: Path, part: str
) -> None:
    samples = drawn(problems, tmp_path / "samples", "reasoning_content")
    scored = score(ScoreConfig(samples, prm_folder, tmp_path / "scored", score=part))
    assert manifest_of(scored)["counts"]["unscored"] == {}
    for group in read_groups(scored):
        assert [len(r.step_scores.values) for r in group.rollouts if r.step_scores] == STEPS[part]
        assert {r.step_scores.part for r in group.rollouts if r.step_scores} == {part}
