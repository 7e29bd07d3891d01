"""Prompts: what is asked, where it goes, and what stays bare."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpo.multimodal.errors import ConfigError, FingerprintError
from recipes.config import SampleConfig
from recipes.data.sample import sample
from recipes.stage.groups import GROUPS, read_groups, write_problems
from rewards.interchange.mmpr import write_mmpr
from rewards.interchange.trl_rows import from_trl_row, to_trl_row
from rewards.kept.keys import derived_seed
from rewards.prm.formats import FORMATS
from rewards.prm.rendering import conversations
from rewards.sampling.generator import SamplingParams
from rewards.sampling.openai_generator import OpenAIGenerator
from rewards.sampling.prompts import PROMPTS, messages_of, prompt_of
from rewards.steps import split_on_blank_lines
from rewards.types import Completion, FinishReason, PreferencePair, Problem, Prompt
from rewards.verifying.reading import read_answer
from tests.model_server import ModelServer

PROBLEM = Problem("p", "What is {question}? {0} \\boxed{x}", answer="4")


def pair_of(prompt: Prompt) -> PreferencePair:
    return PreferencePair(replace(PROBLEM, prompt=prompt), Completion("4"), Completion("5"), "by hand")


@pytest.mark.parametrize("name", PROMPTS)
def test_the_question_stands_in_every_prompt_as_it_is(name: str) -> None:
    turns = messages_of(replace(PROBLEM, prompt=PROMPTS[name]))
    assert PROBLEM.question in turns[-1]["content"][-1]["text"]
    assert turns[-1]["role"] == "user"


def test_what_the_prompts_ask_for_is_what_is_read() -> None:
    """A response that follows the default, the boxed or the thinking prompt is split and read as it should be."""
    for name, last in (("cot", "Final answer: 4"), ("cot_boxed", "\\boxed{4}"), ("r1", "Final answer: 4")):
        asked = PROMPTS[name].text("?") + PROMPTS[name].system
        assert "blank line between" in asked
        assert last.partition("4")[0].strip("{ ") in asked
        answer = read_answer(f"2 + 2 is asked.\n\nIt is four.\n\n{last}")
        assert answer is not None
        assert answer.value == "4"
    assert len(split_on_blank_lines("2 + 2 is asked.\n\nIt is four.\n\nFinal answer: 4")) == 3


def test_a_file_is_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Q: {question}\nUse {braces}.\n", encoding="utf-8")
    prompt = prompt_of(str(tmp_path / "mine.txt"), system="Be brief.")
    assert prompt == Prompt("Q: {question}\nUse {braces}.", "Be brief.")
    assert prompt.text("1?") == "Q: 1?\nUse {braces}."


@pytest.mark.parametrize(
    "content", [b"no question", b"{question} {question}", b"\xff{question}", b"{question}" + b"x" * 70_000]
)
def test_files_that_are_no_prompt_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"p\.txt"):
        prompt_of(str(tmp_path / "p.txt"))
    with pytest.raises(ConfigError, match="unknown prompt 'nonsense': expected one of direct, cot, cot_boxed, r1"):
        prompt_of("nonsense")


def test_the_prm_is_shown_the_bare_question_and_training_what_was_asked(processor: Any, tmp_path: Path) -> None:
    asked = replace(PROBLEM, prompt=PROMPTS["r1"])
    turns = conversations(processor, FORMATS["visualprm"], asked, split_on_blank_lines("one\n\ntwo"), 0)
    shown = json.dumps(turns)
    assert "Final answer" not in shown
    assert "think" not in shown
    row = to_trl_row(pair_of(PROMPTS["r1"]))
    assert row["prompt"] == messages_of(asked)
    back = from_trl_row({**row, "images": []})
    assert messages_of(back.problem) == row["prompt"]
    written, rejected = write_mmpr([pair_of(PROMPTS["cot"]), pair_of(PROMPTS["r1"])], tmp_path)
    assert (written, rejected) == (1, {"a system message, for which MMPR has no place": 1})
    (line,) = next(tmp_path.glob("*.jsonl")).read_text().splitlines()
    assert json.loads(line)["question"] == PROMPTS["cot"].text(PROBLEM.question)


def test_random_numbers_do_not_depend_on_the_prompt() -> None:
    assert derived_seed(0, PROBLEM, 1) == derived_seed(0, replace(PROBLEM, prompt=PROMPTS["r1"]), 1)


def test_the_prompt_is_part_of_a_samples_key_and_goes_with_the_groups(tmp_path: Path) -> None:
    """Asked otherwise it is another sample: refused in the same folder, drawn beside the others with on_change."""
    write_problems(tmp_path / "p.jsonl", [Problem("a", "1 + 1?", answer="2")])
    mine = tmp_path / "mine.txt"
    mine.write_text("{question} Briefly.")
    with ModelServer() as server:
        settings: dict[str, Any] = {"base_url": [server.base_url], "model": "m", "num_samples": 2}
        first = SampleConfig(tmp_path / "p.jsonl", tmp_path / "out", prompt=str(mine), **settings)
        sample(first)
        assert server.requests[0]["messages"][0]["content"][0]["text"] == "1 + 1? Briefly."
        assert read_groups(tmp_path / "out")[0].problem.prompt == Prompt("{question} Briefly.")
        asked = len(server.requests)
        sample(first)
        assert len(server.requests) == asked
        mine.write_text("{question} At length.")
        with pytest.raises(FingerprintError, match=r"other prompt"):
            sample(first)
        with pytest.raises(FingerprintError, match="prompt"):
            sample(replace(first, prompt="direct"))
        sample(replace(first, prompt="direct", on_change="segment"))
        assert len(server.requests) == asked + 1
        assert server.requests[-1]["messages"][0]["content"][0]["text"] == "1 + 1?"
    assert "prompt" not in (tmp_path / "out" / GROUPS).read_text()


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_apart_is_put_back(name: str) -> None:
    def reply(body: dict[str, Any]) -> dict[str, Any]:
        messages = [
            ({name: "3?\n", "content": "\n\nFinal answer: 4"}, "stop"),
            ({name: "3? or", "content": None}, "length"),
            ({name: "only thought", "content": ""}, "stop"),
            ({name: None, "content": "4"}, "stop"),
        ]
        choices = [
            {"index": index, "message": message, "finish_reason": reason}
            for index, (message, reason) in enumerate(messages)
        ]
        return {"choices": choices}

    with ModelServer(reply=reply) as server:
        (found,) = OpenAIGenerator(server.base_url, "m", SamplingParams()).generate([PROBLEM], 4, seed=0)
    assert [completion.text for completion in found] == [
        "<think>\n3?\n</think>\n\nFinal answer: 4",
        "<think>\n3? or",
        "<think>\nonly thought\n</think>\n\n",
        "4",
    ]
    assert found[1].finish_reason is FinishReason.LENGTH
