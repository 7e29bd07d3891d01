"""`mpo split`: parts that share no image, the same whatever the order of the lines."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from mpo.multimodal.images import image_sha256, load_image
from recipes.cli import main
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_problems

PARTS = ("prm", "preference", "development", "test")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """20 problems over 12 images: two per image, one image in two files, some with two images, two without any."""
    rng, rows = random.Random(0), []
    (tmp_path / "own" / "photos").mkdir(parents=True)
    for index in range(12):
        shade = 20 * (index if index < 11 else 0)  # the last file has the pixels of the first
        image = Image.new("RGB", (40, 30), (shade, 0, 0))
        image.save(tmp_path / "own" / "photos" / f"{index}.{'png' if index < 11 else 'bmp'}")
    for index in range(18):
        names = [index % 12, *([(index + 1) % 12] if index in (3, 16) else [])]
        images = [f"photos/{name}.{'png' if name < 11 else 'bmp'}" for name in names]
        rows.append({"id": f"q{index}", "question": f"What is {index}?", "images": images, "answer": rng.randrange(9)})
    rows += [{"id": f"t{index}", "question": "What is 1 + 1?", "answer": 2} for index in range(2)]
    file = tmp_path / "own" / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def split(questions: Path, out: Path, *flags: str) -> dict[str, list[str]]:
    assert main(["split", str(questions), "--out", str(out), *flags]) == 0
    return {part: [*read_problems(out / f"{part}.jsonl")] for part in PARTS if (out / f"{part}.jsonl").exists()}


def pixels(file: Path) -> set[str]:
    problems = read_problems(file).values()
    return {image_sha256(load_image(image)) for problem in problems for image in problem.images}


def test_no_image_is_in_two_parts(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--prm", "0.3", "--preference", "0.3", "--development", "0.1", "--test", "0.3")
    found = split(questions, tmp_path / "out", *flags)
    assert sorted(id for ids in found.values() for id in ids) == sorted(read_problems(questions))
    assert list(found) == list(PARTS)
    assert all(abs(len(found[part]) - share * 20) <= 4 for part, share in zip(PARTS, (0.3, 0.3, 0.1, 0.3), strict=True))
    seen = [pixels(tmp_path / "out" / f"{part}.jsonl") for part in PARTS]
    assert all(not a & b for number, a in enumerate(seen) for b in seen[:number])
    assert sum(map(len, seen)) == 11
    part_of = {id: part for part, ids in found.items() for id in ids}
    assert part_of["q0"] == part_of["q11"] == part_of["q12"]  # the same pixels in two files
    assert part_of["t0"] == part_of["t1"]  # the same question without an image
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("split: 20 in, 20 out, nothing rejected; prm ")
    assert "11 different images, none in two parts" in line


def test_the_parts_depend_on_content_and_seed_alone(questions: Path, tmp_path: Path) -> None:
    found = split(questions, tmp_path / "a")
    lines = questions.read_text().splitlines()
    random.Random(1).shuffle(lines)
    questions.write_text("\n".join(lines))
    again = split(questions, tmp_path / "b")
    assert {part: sorted(ids) for part, ids in again.items()} == {part: sorted(ids) for part, ids in found.items()}
    other = split(questions, tmp_path / "c", "--seed", "1")
    assert {part: sorted(ids) for part, ids in other.items()} != {part: sorted(ids) for part, ids in found.items()}


def test_the_parts_lie_whole_in_their_folder(questions: Path, tmp_path: Path) -> None:
    """Nothing of the questions' folder is needed any more, and a problem is what it was."""
    before = read_problems(questions)
    split(questions, tmp_path / "out")
    images = {id: [image_sha256(load_image(image)) for image in problem.images] for id, problem in before.items()}
    questions.parent.rename(tmp_path / "gone")
    (tmp_path / "out").rename(tmp_path / "moved")
    for part in ("prm", "preference", "test"):
        for id, problem in read_problems(tmp_path / "moved" / f"{part}.jsonl").items():
            assert (problem.question, problem.answer) == (before[id].question, before[id].answer)
            assert [image_sha256(load_image(image)) for image in problem.images] == images[id]


def test_with_an_image_root_the_images_stay_where_they_are(questions: Path, tmp_path: Path) -> None:
    root = questions.parent
    split(questions, tmp_path / "out", "--image_root", str(root))
    assert not (tmp_path / "out" / "images").exists()
    problems = read_problems(tmp_path / "out" / "test.jsonl", image_root=root).values()
    assert all(image.is_relative_to(root.resolve()) for problem in problems for image in problem.images)


def test_bad_rows_are_counted(questions: Path, tmp_path: Path) -> None:
    (questions.parent / "photos" / "5.png").write_bytes(b"no image")
    questions.write_text(questions.read_text() + "{}\n")
    split(questions, tmp_path / "out")
    counts = manifest_of(tmp_path / "out")["counts"]
    assert counts["in"] == 21
    assert counts["rejected"] == {"bad row": 1, "unreadable image": 3}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prm", "0.5", "--preference", "0.4", "--test", "0.4"], "shares of 1.3 in all; expected 1"),
        (["--prm", "0", "--preference", "0", "--test", "1"], "expected at least two parts"),
    ],
)
def test_shares_that_cannot_be(
    flags: list[str], message: str, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["split", str(questions), "--out", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fewer_images_than_parts(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five questions about one image."""
    row = json.loads(questions.read_text().splitlines()[0])
    lines = [json.dumps({**row, "id": f"{index}", "question": f"{index}?"}) for index in range(5)]
    questions.write_text("\n".join(lines))
    assert main(["split", str(questions), "--out", str(tmp_path / "out")]) == 2
    assert "1 group of problems that share no image with another; expected at least 3" in capsys.readouterr().err
