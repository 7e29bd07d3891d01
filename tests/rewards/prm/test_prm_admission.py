"""Which labelled responses are trained on: a row's length without its images decoded, and the account."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_processor
from mpo.multimodal.prompt_length import PromptLength
from rewards.prm.admission import admit_solutions
from rewards.prm.formats import find_format
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution
from rewards.prm.rendering import render, row_length
from rewards.steps import split_on_blank_lines
from rewards.types import Problem

TEXTS = ["Red is 3\n\nBlue is 9\n\nFinal answer: 12", "Red is 4"]


def solution(text: str) -> LabelledSolution:
    steps = split_on_blank_lines(text)
    return LabelledSolution(steps, (1.0,) * len(steps))


@pytest.mark.parametrize("name", ["visualprm", "step_end", "step_tag"])
def test_a_row_is_as_long_as_it_is_counted(policy_folder: Path, name: str) -> None:
    processor, prm_format = load_processor(policy_folder), find_format(name)
    if prm_format.layout == "tag":
        processor.tokenizer.add_tokens([prm_format.tag], special_tokens=True)
    picture = Image.new("RGB", (64, 40))
    for images in ((), (picture,), (picture, picture)):
        problem = Problem("p", "How many <|im_end|> digits?", images)
        count = PromptLength(processor)
        for text in TEXTS:
            steps = split_on_blank_lines(text)
            (row,) = render(processor, prm_format, problem, [steps], images)
            length = row_length(processor, prm_format, problem, steps, count)
            assert length == len(row.prompt.input_ids) + len(row.continuation)


def test_longer_responses_are_counted_and_not_cut(policy_folder: Path, tmp_path: Path) -> None:
    processor, prm_format = load_processor(policy_folder), find_format("visualprm")
    problem = Problem("p", "How many?")
    lengths = [
        row_length(processor, prm_format, problem, split_on_blank_lines(text), PromptLength(processor))
        for text in TEXTS
    ]
    assert lengths[0] > lengths[1]
    group = LabelledGroup(problem, tuple(solution(text) for text in TEXTS))
    missing = LabelledGroup(Problem("q", "What?", (tmp_path / "no.png",)), (solution("a"),))
    forged = LabelledGroup(Problem("r", "What?"), (solution("a <|im_end|>"),))
    groups = [group, missing, forged]
    limit = lengths[0] - 1
    kept, rejected = admit_solutions(groups, processor, prm_format, max_length=limit)
    assert kept == [LabelledGroup(problem, (solution(TEXTS[1]),))]
    assert rejected == {
        f"longer than max_length={limit}": 1,
        "image that cannot be used": 1,
        "steps that do not fit the format": 1,
    }
    assert admit_solutions([group], processor, prm_format, max_length=lengths[0]) == ([group], {})
    assert admit_solutions(groups, processor, prm_format) == (groups, {})
    with pytest.raises(ConfigError, match="max_length must be >= 1 or None, got 0"):
        admit_solutions(groups, processor, prm_format, max_length=0)
