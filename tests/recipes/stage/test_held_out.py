"""Held-out problems: the same one is refused, a near one is said and listed before anything is trained."""

import json
import logging
import random

import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError
from recipes.stage.held_out import check_held_out
from tests.recipes.run_folders import make_problems

NAMES = ("own.test_problems", "own.preference_problems")


@pytest.fixture
def files(tmp_path):
    """Training problems, and test problems of another seed."""
    question = "How many of the bars in this chart are longer than the red one?"
    made = [
        make_problems(tmp_path / name, name, 5, random.Random(name), question=question) for name in ("train", "test")
    ]
    return made


def plant(files, *, change):
    """Put the third training problem among the test problems, its image changed."""
    row = json.loads(files[0].read_text().splitlines()[2])
    image = Image.open(files[0].parent / row["images"][0])
    change(image).save(files[1].parent / "images" / "planted.png")
    planted = {**row, "id": "planted", "images": ["images/planted.png"], "question": row["question"].upper()}
    with files[1].open("a") as file:
        file.write(json.dumps(planted) + "\n")


def test_nothing_is_said_of_fresh_problems(files, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    check_held_out(files[1], files[0], names=NAMES, run=tmp_path)
    assert not caplog.messages
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_resized_copy_is_said_and_listed(files, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    plant(files, change=lambda image: image.resize((48, 24)))
    check_held_out(files[1], files[0], names=NAMES, run=tmp_path / "run")
    (message,) = caplog.messages
    assert message.startswith("1 of 6 problems of own.test_problems are near-duplicates of problems of")
    (listed,) = (tmp_path / "run" / "own_preference_problems_near_duplicates.jsonl").read_text().splitlines()
    assert json.loads(listed)["test"] == "planted"
    assert json.loads(listed)["training"] == "train-002"


def test_the_same_problem_is_refused_as_before(files):
    row = json.loads(files[0].read_text().splitlines()[2])
    (files[1].parent / "images" / "same.png").write_bytes((files[0].parent / row["images"][0]).read_bytes())
    with files[1].open("a") as file:
        file.write(json.dumps({**row, "id": "same", "images": ["images/same.png"]}) + "\n")
    with pytest.raises(ConfigError, match=r"1 of 6 questions of own\.test_problems .* must be held out"):
        check_held_out(files[1], files[0], names=NAMES)
