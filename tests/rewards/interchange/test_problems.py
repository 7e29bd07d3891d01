"""Problems from tables: each kind of file gives the same problems, and a bad row costs only itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from mpo.multimodal.errors import ConfigError, DataError, StageError
from mpo.multimodal.images import load_image
from rewards.interchange import embedded, tables
from rewards.interchange.problems import Rejected, read_problems
from rewards.sampling.prompts import messages_of
from rewards.types import Problem, Prompt
from tests.rewards.published_forms import BLUE, RED, encoded, in_base64, json_lines, picture

ROWS = [
    {"pid": "1", "query": "Which?", "image": RED, "choices": ["red", "blue"], "label": "A", "category": "colour"},
    {"pid": "2", "query": "How many?", "image": BLUE, "choices": None, "label": "7", "category": "number"},
]
COLUMNS = {"question": "query", "answer": "label"}


def table_of() -> datasets.Dataset:
    text = datasets.Value("string")
    features = dict.fromkeys(("pid", "query", "label", "category"), text)
    rows = [{**row, "image": {"bytes": encoded(row["image"]), "path": "/gone/1.png"}} for row in ROWS]
    more = {"image": datasets.Image(), "choices": datasets.List(text)}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features | more))


def saved(folder: Path) -> Path:
    table_of().save_to_disk(str(folder / "saved"))
    return folder / "saved"


def parquet(folder: Path) -> Path:
    table_of().to_parquet(folder / "test.parquet")
    return folder / "test.parquet"


def tsv(folder: Path) -> Path:
    """As VLMEvalKit writes it: an image in base64, options in columns of their own, a line break inside quotes."""
    lines = ["index\timage\tquestion\tA\tB\tanswer\tcategory"]
    for row in ROWS:
        options = "\t".join(row["choices"] or ("", ""))
        cells = (row["pid"], in_base64(row["image"]), f'"{row["query"]}"', options, row["label"], row["category"])
        lines.append("\t".join(cells))
    (folder / "toy.tsv").write_text("\n".join(lines) + "\n")
    return folder / "toy.tsv"


def lines(folder: Path) -> Path:
    for number, row in enumerate(ROWS):
        (folder / f"{number}.png").write_bytes(encoded(row["image"]))
    return json_lines(folder / "toy.jsonl", [{**row, "image": f"{n}.png"} for n, row in enumerate(ROWS)])


def by_id(folder: Path) -> Path:
    """MathVista's `testmini.json`: rows by their ids, with base64 images here."""
    rows = {row["pid"]: {**row, "image": in_base64(row["image"])} for row in ROWS}
    for row in rows.values():
        del row["pid"]
    (folder / "toy.json").write_text(json.dumps(rows, indent=1))
    return folder / "toy.json"


def good(source: Any, **given: Any) -> list[Problem]:
    found = list(read_problems(source, **given))
    assert not [item for item in found if isinstance(item, Rejected)]
    return found


@pytest.mark.parametrize("make", [parquet, saved, tsv, lines, by_id])
def test_every_kind_of_file_gives_the_same_problems(make, tmp_path: Path) -> None:
    problems = good(make(tmp_path), columns={} if make is tsv else COLUMNS)
    assert [(p.id, p.question, p.answer) for p in problems] == [
        ("1", "Which?\nA. red\nB. blue", "A"),
        ("2", "How many?", "7"),
    ]
    assert [dict(p.meta) for p in problems] == [
        {"choices": ["red", "blue"], "category": "colour"},
        {"category": "number"},
    ]
    for problem, row in zip(problems, ROWS, strict=True):
        (image,) = problem.images
        near = [abs(a - b) for a, b in zip(load_image(image).getpixel((9, 9)), row["image"], strict=True)]
        assert max(near) <= 3  # the TSV's images are JPEG


def test_images_stand_where_the_text_names_them(tmp_path: Path) -> None:
    """MMMU's numbered placeholders, in question and options; an image that is not named comes first."""
    row = {
        **{"id": "validation_1", "question": "Is <image 2> like <image 1>?", "options": "['<image 2>', 'no']"},
        **{f"image_{number}": {"bytes": encoded((number, 0, 0)), "path": None} for number in (1, 2, 3)},
        **{"image_4": None, "answer": "B"},
    }
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "a.parquet")
    (problem,) = good(tmp_path / "a.parquet")
    assert problem.placed
    assert problem.question == "<image>Is <image> like <image>?\nA. <image>\nB. no"
    assert [load_image(image).getpixel((0, 0))[0] for image in problem.images] == [3, 2, 1, 2]
    asked = Problem(
        problem.id, problem.question, problem.images, prompt=Prompt("Look. {question} Answer."), placed=True
    )
    content = messages_of(asked)[0]["content"]
    assert [block.get("text", "image") for block in content] == [
        *("Look. ", "image", "Is ", "image", " like ", "image", "?\nA. ", "image", "\nB. no Answer."),
    ]


def test_a_bad_row_costs_only_itself(tmp_path: Path) -> None:
    red = in_base64()
    rows = [
        f"1\t{red}\tWhat?\t3",
        f"2\t{red[:-7]}\tWhat?\t3",  # damaged base64
        "3\t1\tThe same image?\t3",  # the image of row 1, as VLMEvalKit writes it
        f"1\t{red}\tAgain?\t3",
        "5\t../../etc/passwd\tWhat?\t3",
        "6\thttp://host/a.png\tWhat?\t3",
        "7\t\t \t3",
        "8\tonly two",
        "9\t\tOf <image 2>?\t3",
        "10\t\tNo image?\t",
    ]
    (tmp_path / "toy.tsv").write_text("\n".join(["index\timage\tquestion\tanswer", *rows]))
    found = list(read_problems(tmp_path / "toy.tsv"))
    assert [item.id if isinstance(item, Problem) else item.reason for item in found] == [
        *("1", "unreadable image", "3", "id occurs twice", "unreadable image", "unreadable image"),
        *("question is empty", "wrong number of fields", "9", "10"),
    ]
    assert isinstance(found[2], Problem)
    assert len(found[2].images) == 1
    assert found[-1].answer is None


def test_what_is_too_large_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that never ends, an image of too many bytes, a row of too many images: counted, and the rest is read."""
    monkeypatch.setattr(tables, "MAX_FIELD", 5_000)
    monkeypatch.setattr(embedded, "MAX_BYTES", 1_000)
    big = in_base64() + "A" * 2_000
    many = json.dumps([in_base64()] * 3)
    monkeypatch.setattr(embedded, "MAX_IMAGES", 2)
    rows = [f"1\t{'x' * 20_000}\tWhat?", f"2\t{big}\tWhat?", f"3\t{many}\tWhat?".replace('"', "'"), "4\t\tWhat?"]
    (tmp_path / "toy.tsv").write_text("\n".join(["index\timage\tquestion", *rows]))
    found = list(read_problems(tmp_path / "toy.tsv"))
    assert isinstance(found[-1], Problem)
    assert found[-1].id == "4"
    reasons = {item.reason for item in found[:-1] if isinstance(item, Rejected)}
    assert reasons == {"unreadable row", "wrong number of fields", "unreadable image"} or reasons == {
        "unreadable row",
        "unreadable image",
    }


@pytest.mark.parametrize(
    ("name", "content", "columns", "error", "said"),
    [
        ("a.jsonl", b'{"id": 1, "text": "?"}', {}, ConfigError, "no column holds the question.*one of id, text"),
        (
            "a.jsonl",
            b'{"id": 1, "question": "?"}',
            {"answer": "label"},
            ConfigError,
            "'label', but a row has id, question",
        ),
        ("a.jsonl", b'{"id": 1, "question": "?"}', {"label": "x"}, ConfigError, "label=.*expected one of id, question"),
        ("a.csv", b"a,a\n1,2\n", {}, DataError, "different column names"),
        ("a.txt", b"?", {}, ConfigError, "cannot read 'a.txt'; expected one of"),
        ("a.parquet", b"PAR1", {}, DataError, "no readable Parquet"),
        ("a.arrow", b"x", {}, DataError, "no readable Arrow"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error(name, content, columns, error, said, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said):
        list(read_problems(tmp_path / name, columns=columns))


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no rows at"):
        list(read_problems(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="holds no file that can be read"):
        list(read_problems(tmp_path))
    datasets.DatasetDict({"test": table_of()}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(ConfigError, match=r"holds the splits test; name one: .*both/test"):
        list(read_problems(tmp_path / "both"))
    assert len(good(tmp_path / "both" / "test", columns=COLUMNS)) == 2
    state = tmp_path / "both" / "test" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    with pytest.raises(DataError, match="names no data files"):
        list(read_problems(tmp_path / "both" / "test"))


def test_a_problem_counts_its_placeholders() -> None:
    with pytest.raises(DataError, match="1 <image> in the question for 2 images"):
        Problem("p", "See <image>", (picture(), picture()), placed=True)
