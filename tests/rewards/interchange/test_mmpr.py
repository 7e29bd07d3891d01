"""MMPR in and out: round trips, the layouts that the released files have, and rows that try to break out."""

from __future__ import annotations

import io
import json
import stat
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpo.multimodal.errors import DataError, ImageError, StageError
from mpo.multimodal.images import png_bytes
from rewards.interchange.archives import ZipImages
from rewards.interchange.mmpr import read_mmpr, write_mmpr
from rewards.types import Completion, FinishReason, PreferencePair, Problem

LENGTH, STOP = FinishReason.LENGTH, FinishReason.STOP


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="PNG")
    return buffer.getvalue()


def read(path: Path) -> tuple[list[PreferencePair], list[tuple[str, str, str]]]:
    rejected: list[tuple[str, str, str]] = []
    return list(read_mmpr(path, on_reject=lambda *row: rejected.append(row))), rejected


def plain(pair: PreferencePair) -> tuple[object, ...]:
    """A pair with its images as pixels."""
    problem, images = pair.problem, [(i.size, i.tobytes()) for i in pair.problem.images]
    sides = [(side.text, side.finish_reason) for side in (pair.chosen, pair.rejected)]
    return problem.id, problem.question, problem.answer, images, *sides, pair.source


def folder_of(tmp: Path, *rows: object, root: str = "images", meta: object = None) -> Path:
    (tmp / "images").mkdir(parents=True, exist_ok=True)
    for seed in (1, 2):
        (tmp / "images" / f"{seed}.png").write_bytes(png(seed))
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (tmp / "rows.jsonl").write_bytes(b"\n".join(lines))
    entry = {"root": root, "annotation": "rows.jsonl", "data_augment": False, "repeat_time": 1, "length": len(rows)}
    (tmp / "meta.json").write_text(json.dumps({"set": entry} if meta is None else meta))
    return tmp


def row(**changes: object) -> dict[str, object]:
    return {"image": "1.png", "question": "<image>\nWhat?", "chosen": "7", "rejected": "8", "answer_gt": "7"} | changes


TEXT = st.text(max_size=20).filter(lambda text: "<image>" not in text)
SIDES = st.tuples(TEXT, TEXT).filter(lambda t: t[0].strip() and t[1].strip() and t[0].strip() != t[1].strip())
PAIRS = st.builds(
    lambda seeds, question, answer, sides, ends, id, source: PreferencePair(
        Problem(id, question, tuple(picture(seed) for seed in seeds), answer),
        Completion(sides[0], ends[0]),
        Completion(sides[1], ends[1]),
        source,
    ),
    st.lists(st.integers(0, 3), max_size=3),
    TEXT,
    st.none() | st.text(max_size=5),
    SIDES,
    st.tuples(st.sampled_from(FinishReason), st.sampled_from(FinishReason)),
    st.text(min_size=1, max_size=5),
    st.sampled_from(["correctness", "dropout_ntp"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PAIRS, max_size=4))
def test_round_trip(pairs: list[PreferencePair]) -> None:
    with tempfile.TemporaryDirectory() as name:
        assert write_mmpr(iter(pairs), name) == (len(pairs), {})
        found, rejected = read(Path(name))
        assert rejected == []
        assert [plain(pair) for pair in found] == [plain(pair) for pair in pairs]
        assert json.loads((Path(name) / "meta.json").read_text())["pairs"]["length"] == len(pairs)


def test_what_is_written(tmp_path: Path) -> None:
    """One image is a path, several are a list, none is no key; equal images are stored once."""
    one, two = picture(1), picture(2)
    problems = [Problem("a", "q", (one,), "7"), Problem("b", "q", (one, two)), Problem("c", "q")]
    write_mmpr([PreferencePair(p, Completion("x"), Completion("y", LENGTH), "r") for p in problems], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [type(r.get("image")).__name__ for r in rows] == ["str", "list", "NoneType"]
    assert [r["question"] for r in rows] == ["<image>\nq", "<image>\n<image>\nq", "q"]
    assert rows[0] | {"image": ""} == {
        "image": "", "question": "<image>\nq", "chosen": "x", "rejected": "y", "answer_gt": "7", "problem_id": "a",
        "source": "r", "chosen_truncated": False, "rejected_truncated": True,
    }  # fmt: skip
    assert "answer_gt" not in rows[1]
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert json.loads((tmp_path / "meta.json").read_text()) == {
        "pairs": {"root": "images", "annotation": "pairs.jsonl", "data_augment": False, "repeat_time": 1, "length": 3}
    }


def test_a_text_that_claims_a_picture_is_left_out_and_counted(tmp_path: Path) -> None:
    pairs = [PreferencePair(Problem("a", "q <image>"), Completion("x"), Completion("y"), "r"),
             PreferencePair(Problem("b", "q"), Completion("x"), Completion("<image> y"), "r")]  # fmt: skip
    assert write_mmpr(pairs, tmp_path) == (0, {"image placeholder in a text": 2})


def test_a_bad_image_leaves_no_meta(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_text("token=hunter2")
    pair = PreferencePair(Problem("a", "q", (tmp_path / "secret.png",)), Completion("x"), Completion("y"), "r")
    with pytest.raises(ImageError, match=r"secret\.png"):
        write_mmpr([pair], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_released_layouts(tmp_path: Path) -> None:
    """Paths that repeat the folder's name, several images, text only, no ids: one question keeps one id."""
    base = folder_of(
        tmp_path / "MMPR-v1.2",
        row(),
        row(rejected="9"),
        row(image=["1.png", "2.png"], question="<image>\n<image>\nWhich?"),
        row(image=None, question="2 + 2?", answer_gt=4),
        row(question="What?"),
        meta={"set": {"root": "MMPR-v1.2/images", "annotation": "MMPR-v1.2/rows.jsonl", "repeat_time": 1}},
    )
    pairs, rejected = read(base / "meta.json")
    assert rejected == []
    assert [len(pair.problem.images) for pair in pairs] == [1, 1, 2, 0, 1]
    assert pairs[0].problem is pairs[1].problem
    assert [pair.problem.question for pair in pairs] == ["What?", "What?", "Which?", "2 + 2?", "What?"]
    assert pairs[3].problem.answer == "4"
    assert len({pair.problem.id for pair in pairs}) == 3
    assert {pair.source for pair in pairs} == {"set"}


@pytest.mark.parametrize(
    ("bad", "kind", "said"),
    [
        (b"{", "not a pair of MMPR", "not JSON"),
        (b"\xff\xfe{}", "not a pair of MMPR", "not JSON"),
        (b"[" * 100_000, "not a pair of MMPR", "not JSON"),
        (b"[]", "not a pair of MMPR", "the line"),
        (row(chosen=None), "not a pair of MMPR", "chosen: "),
        (row(image=7), "not a pair of MMPR", "image: "),
        (row(image=["1.png"] * 2), "not a pair of MMPR", "1 <image> for 2 images"),
        (row(question="See <image> here <image>"), "not a pair of MMPR", "2 <image> for 1 images"),
        (row(chosen="<image>"), "not a pair of MMPR", "inside a response"),
        (row(chosen="8"), "not a pair of MMPR", "chosen equal to rejected"),
        (row(rejected=" "), "not a pair of MMPR", "empty side"),
        (row(video="a.mp4"), "not a pair of MMPR", "video"),
        (row(image="3.png"), "unreadable image", "does not exist"),
        (row(image="../secret.png"), "unreadable image", "leaves the image root"),
        (row(image="/etc/passwd"), "unreadable image", "leaves the image root"),
        (row(image="http://host/x.png"), "unreadable image", "nothing is fetched"),
        (row(image="__import__('os').system('touch pwned')"), "unreadable image", "does not exist"),
        (row(image="text.png"), "unreadable image", "cannot be decoded"),
    ],
)
def test_a_bad_row_is_named_and_the_rest_goes_on(tmp_path: Path, bad: object, kind: str, said: str) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "secret.png")
    base = folder_of(tmp_path / "data", row(), bad, row(rejected="9"))
    (base / "images" / "text.png").write_text("token=hunter2")
    pairs, rejected = read(base)
    assert len(pairs) == 2
    ((where, found, detail),) = rejected
    assert (where, found) == ("set:2", kind)
    assert said in detail
    assert "hunter2" not in detail


@pytest.mark.parametrize(
    ("meta", "error", "said"),
    [
        ([], DataError, "expected an object of data sets, got list"),
        ({"set": {"root": "images"}}, DataError, "annotation"),
        ({"set": {"root": "../..", "annotation": "rows.jsonl"}}, DataError, "leaves"),
        ({"set": {"root": "images", "annotation": "../secret.jsonl"}}, DataError, "leaves"),
        ({"set": {"root": "images", "annotation": "gone.jsonl"}}, StageError, "annotation of 'set' is not a file"),
    ],
)
def test_a_bad_meta_is_refused(tmp_path: Path, meta: object, error: type[Exception], said: str) -> None:
    (tmp_path / "secret.jsonl").write_text(json.dumps(row()))
    base = folder_of(tmp_path / "data", row())
    (base / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(error, match=said):
        read(base)
    (base / "meta.json").write_text("{")
    with pytest.raises(DataError, match=r"not a meta\.json"):
        read(base)
    with pytest.raises(StageError, match=r"no meta\.json"):
        read(tmp_path)


# --- zip archives ---


def archive(path: Path, members: dict[str, bytes], *, links: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            zipped.writestr(info, target)
    return path


def test_zipped_images_are_read_where_they_are(tmp_path: Path) -> None:
    base = folder_of(
        tmp_path, row(), row(image=["1.png", "2.png"], question="q"), row(image="gone.png"), root="pictures"
    )
    archive(base / "images.zip", {"pictures/1.png": png(1), "pictures/2.png": png(2)})
    before = sorted(tmp_path.rglob("*"))
    pairs, rejected = read(base)
    assert [[i.tobytes() for i in p.problem.images] for p in pairs] == [
        [picture(1).tobytes()],
        [picture(1).tobytes(), picture(2).tobytes()],
    ]
    assert [(where, kind) for where, kind, _ in rejected] == [("set:3", "unreadable image")]
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


@pytest.mark.parametrize(
    "image", ["../../secret.png", "/etc/passwd", "a/../../../secret.png", "..\\secret.png", "link.png"]
)
def test_zip_slip(tmp_path: Path, image: str) -> None:
    """Members with hostile names and a symlink member: nothing outside is read, nothing is written."""
    (tmp_path / "secret.png").write_bytes(png(1))
    base = folder_of(tmp_path / "data", row(image=image), root="pictures")
    hostile = {"../../secret.png": png(2), "/etc/passwd": png(2), "..\\secret.png": png(2)}
    archive(base / "images.zip", hostile, links={"pictures/link.png": str(tmp_path / "secret.png")})
    before = sorted(tmp_path.rglob("*"))
    pairs, rejected = read(base)
    assert pairs == []
    assert rejected[0][1] == "unreadable image"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_bomb_stops_at_the_cap_whatever_its_header_says(tmp_path: Path) -> None:
    path = archive(tmp_path / "images.zip", {"a": bytes(50_000_000)})
    data = bytearray(path.read_bytes())
    assert len(data) < 100_000
    tracemalloc.start()
    with ZipImages(path, max_member_bytes=1_000_000) as images, pytest.raises(ImageError, match="over 1000000 bytes"):
        images.read("a")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000  # the rest was never unpacked
    tracemalloc.stop()
    size = (50_000_000).to_bytes(4, "little")
    path.write_bytes(data.replace(size, (10).to_bytes(4, "little")))  # both headers lie
    with ZipImages(path, max_member_bytes=1_000_000) as images, pytest.raises(ImageError, match=r"over|cannot be read"):
        images.read("a")


def test_damaged_archives(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("no zip")
    with pytest.raises(ImageError, match="not a readable zip archive"):
        ZipImages(tmp_path / "a.zip")
    path = archive(tmp_path / "b.zip", {"a": png(1) * 50})
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    with ZipImages(path) as images, pytest.raises(ImageError, match="cannot be read"):
        images.read("a")


@pytest.mark.parametrize("field", ["question", "chosen", "source", "image"])
def test_half_a_surrogate_costs_its_own_row(tmp_path, field):
    good = {"question": "How many?", "chosen": "1", "rejected": "2", "source": "s"}
    bad = json.dumps({**good, field: "\ud800"})
    (tmp_path / "a.jsonl").write_text(json.dumps(good) + "\n" + bad + "\n")
    (tmp_path / "meta.json").write_text(json.dumps({"set": {"root": "images", "annotation": "a.jsonl", "length": 2}}))
    rejected = []
    assert len(list(read_mmpr(tmp_path, on_reject=lambda *row: rejected.append(row)))) == 1
    assert [(row, kind) for row, kind, _ in rejected] == [("set:2", "not a pair of MMPR")]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_byte_of_an_archive_may_be_damaged(tmp_path, method):
    """One byte after the other: an image that is read, or one that cannot be, and never a traceback."""
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", method) as zipped:
        zipped.writestr("images/a.png", png_bytes(Image.new("RGB", (8, 8))))
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        for bit in (0x01, 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                with ZipImages(path) as images:
                    images.read("images", "a.png")
            except ImageError:
                refused += 1
    assert refused > len(whole) // 2
