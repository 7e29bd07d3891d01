"""Images inside a question: a PRM reads them where they are, in every layout, and nothing loses their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recipes.stage.groups import read_problems, write_problems
from rewards.interchange.trl_rows import from_trl_row, read_trl_parquet, write_trl_parquet
from rewards.kept.keys import problem_key
from rewards.prm.formats import PRMFormat
from rewards.prm.rendering import conversations, render, row_length
from rewards.steps import split_on_blank_lines
from rewards.types import Completion, PreferencePair, Problem, Prompt

RED, BLUE = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
QUESTION = "Is <image> 1 or <image> 2?"
FORMATS = [
    PRMFormat("after", "turns", "+", "-"),
    PRMFormat("own place", "turns", "+", "-", first_turn="Look. {images}Question: {question}\n\nStart:\n{step}"),
    PRMFormat("end", "end", "+", "-"),
]


def problem(*, placed: bool = True) -> Problem:
    return Problem("p", QUESTION, (RED, BLUE), "1", placed=placed)


@pytest.mark.parametrize("prm_format", FORMATS, ids=lambda prm_format: prm_format.name)
def test_the_images_are_between_the_words(processor: Any, prm_format: PRMFormat) -> None:
    """What the model reads, image tokens as one sign; every row is checked against its steps by `render` itself."""
    steps = [split_on_blank_lines("1 + 1\n\n2"), split_on_blank_lines("3")]
    rendered = render(processor, prm_format, problem(), steps, [RED, BLUE])
    image = processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)
    text = processor.tokenizer.decode(rendered[0].prompt.input_ids)
    pieces = [piece for piece in text.split(image) if piece]
    assert len(pieces) == 3
    assert "Is" in pieces[0]
    assert "or" in pieces[1]
    assert "2" in pieces[2]
    assert rendered[0].prompt.input_ids.tolist().count(processor.image_token_id) > 2
    apart = render(processor, prm_format, problem(placed=False), steps, [RED, BLUE])
    assert rendered[0].prompt.input_ids.tolist() != apart[0].prompt.input_ids.tolist()


def test_a_row_is_as_long_as_it_was_counted(processor: Any) -> None:
    from mpo.multimodal.prompt_length import PromptLength

    steps = split_on_blank_lines("1 + 1\n\n2")
    (made,) = render(processor, FORMATS[0], problem(), [steps], [RED, BLUE])
    counted = row_length(processor, FORMATS[0], problem(), steps, PromptLength(processor))
    assert counted == len(made.prompt.input_ids) + len(made.continuation)


def test_a_server_is_asked_in_the_same_order(processor: Any) -> None:
    steps = split_on_blank_lines("1 + 1\n\n2")
    first, *_ = conversations(processor, FORMATS[1], problem(), steps, 2)
    content = next(message for message in first if message["role"] == "user")["content"]
    assert [block["type"] for block in content] == ["text", "image", "text", "image", "text"]
    assert content[0]["text"] == "Look. Question: Is "
    assert content[-1]["text"] == " 2?\n\nStart:\n1 + 1"


def test_no_file_loses_the_places(tmp_path: Path) -> None:
    for name, image in (("a.png", RED), ("b.png", BLUE)):
        image.save(tmp_path / name)
    given = Problem("p", QUESTION, (tmp_path / "a.png", tmp_path / "b.png"), "1", placed=True)
    write_problems(tmp_path / "p.jsonl", [given])
    assert read_problems(tmp_path / "p.jsonl") == {"p": given}
    prompted = Problem("p", QUESTION, (RED, BLUE), prompt=Prompt("{question} Think.", system="Be brief."), placed=True)
    write_trl_parquet([PreferencePair(prompted, Completion("1"), Completion("2"), "s")], tmp_path / "pairs.parquet")
    (row,) = read_trl_parquet(tmp_path / "pairs.parquet")
    again = from_trl_row(row).problem
    assert (again.question, again.placed, again.prompt.system) == (f"{QUESTION} Think.", True, "Be brief.")
    assert problem_key(problem(), ["a", "b"]) != problem_key(problem(placed=False), ["a", "b"])
