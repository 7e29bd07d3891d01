import hashlib
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mpo.multimodal.errors import DataError, ImageError, StageError
from mpo.multimodal.images import load_image
from rewards.interchange import parquet
from rewards.interchange.trl_rows import (
    from_trl_row,
    iter_trl_parquet,
    read_trl_parquet,
    to_trl_row,
    trl_features,
    write_trl_parquet,
)
from rewards.types import Completion, FinishReason, PreferencePair, Problem


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pair_of(id="p", *, images=(), question="How many?", rejected=FinishReason.STOP):
    problem = Problem(id, question, images=tuple(images))
    return PreferencePair(
        problem, Completion("two\n\nFinal answer: 2"), Completion("3 <image>", rejected), "correctness_and_prm"
    )


def test_row_has_trls_shape():
    image = Image.new("RGB", (2, 2))
    row = to_trl_row(pair_of(images=(image, "b.png"), rejected=FinishReason.LENGTH))
    assert row == {
        "images": [image, "b.png"],
        "prompt": [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "How many?"}],
            }
        ],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "two\n\nFinal answer: 2"}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "3 <image>"}]}],
        "chosen_truncated": False,
        "rejected_truncated": True,
        "rejected_span": None,
        "problem_id": "p",
        "source": "correctness_and_prm",
        "data_augment": False,
    }
    assert list(row) == list(trl_features())


def test_round_trip_keeps_pixels_texts_and_flags(tmp_path):
    red, file = Image.new("RGB", (3, 2), (255, 0, 0)), tmp_path / "blue.png"
    Image.new("RGBA", (1, 1), (0, 0, 255, 0)).save(file)
    pairs = [pair_of("a", images=(red, file)), pair_of("b"), pair_of("c", images=(red,), rejected=FinishReason.LENGTH)]
    assert write_trl_parquet(iter(pairs), tmp_path / "out" / "pairs.parquet") == 3
    rows = list(read_trl_parquet(tmp_path / "out" / "pairs.parquet"))
    assert [row["problem_id"] for row in rows] == ["a", "b", "c"]
    assert [len(row["images"]) for row in rows] == [2, 0, 1]
    assert load_image(rows[0]["images"][0]).tobytes() == red.tobytes()
    assert load_image(rows[0]["images"][1]).getpixel((0, 0)) == (255, 255, 255)  # transparent -> white
    assert rows[0]["prompt"][0]["content"][0]["type"] == "image"
    assert rows[0]["chosen"][0]["content"][0]["text"] == "two\n\nFinal answer: 2"
    assert [row["rejected_truncated"] for row in rows] == [False, False, True]


def test_rewriting_a_file_is_seen_by_the_reader(tmp_path):
    path = tmp_path / "pairs.parquet"
    write_trl_parquet([pair_of("old")], path)
    assert read_trl_parquet(path)["problem_id"][:] == ["old"]
    write_trl_parquet([pair_of("new"), pair_of("more")], path)
    assert read_trl_parquet(path)["problem_id"][:] == ["new", "more"]


def test_same_pairs_give_the_same_bytes_and_leave_nothing_behind(tmp_path):
    pairs = [pair_of(f"p{i}", images=(Image.new("RGB", (4, 4), (i, 0, 0)),)) for i in range(130)]
    digests = set()
    for name in ("a.parquet", "b.parquet"):
        write_trl_parquet(pairs, tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
    assert sorted(path.name for path in tmp_path.glob("*parquet*")) == ["a.parquet", "b.parquet"]
    rows = read_trl_parquet(tmp_path / "a.parquet")
    assert [load_image(row["images"][0]).getpixel((0, 0))[0] for row in rows] == list(range(130))


def test_images_of_a_generator_are_never_mixed_up(tmp_path):
    pairs = (pair_of(f"p{i}", images=(Image.new("RGB", (1, 1), (i, 0, 0)),)) for i in range(200))
    write_trl_parquet(pairs, tmp_path / "pairs.parquet")
    rows = read_trl_parquet(tmp_path / "pairs.parquet")
    assert [load_image(row["images"][0]).getpixel((0, 0))[0] for row in rows] == list(range(200))


def test_a_bad_image_leaves_the_old_file_untouched(tmp_path):
    path, secret = tmp_path / "pairs.parquet", tmp_path / "secret.png"
    write_trl_parquet([pair_of("old")], path)
    before = path.read_bytes()
    secret.write_text("token=hunter2")
    with pytest.raises(ImageError, match=r"secret\.png"):
        write_trl_parquet([pair_of("a"), pair_of("b", images=(secret,))], path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*partial*"))


def test_no_path_and_only_png_bytes_are_stored(tmp_path):
    import pyarrow.parquet as pq

    file = tmp_path / "picture.jpg"
    Image.new("RGB", (8, 8)).save(file)
    write_trl_parquet([pair_of(images=(file,))], tmp_path / "pairs.parquet")
    (stored,) = pq.read_table(tmp_path / "pairs.parquet")["images"].to_pylist()[0]
    assert stored["path"] is None
    assert stored["bytes"].startswith(b"\x89PNG")


def test_zero_rows_and_missing_file(tmp_path):
    assert write_trl_parquet([], tmp_path / "empty.parquet") == 0
    empty = read_trl_parquet(tmp_path / "empty.parquet")
    assert (len(empty), empty.column_names) == (0, list(trl_features()))
    with pytest.raises(StageError, match="mpo pairs"):
        read_trl_parquet(tmp_path / "nothing.parquet")


def test_a_file_is_replaced_not_rewritten_in_place(tmp_path):
    path, reader = tmp_path / "pairs.parquet", tmp_path / "someone_reading"
    write_trl_parquet([pair_of("old")], path)
    before = path.read_bytes()
    reader.hardlink_to(path)
    write_trl_parquet([pair_of("new")], path)
    assert reader.read_bytes() == before != path.read_bytes()


def test_a_foreign_file_is_not_decoded_and_its_paths_are_not_opened(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    secret = tmp_path / "secret.png"
    Image.new("RGB", (1, 1)).save(secret)
    row = to_trl_row(pair_of("a")) | {"images": [{"bytes": None, "path": str(secret)}]}
    schema = trl_features().arrow_schema
    pq.write_table(pa.Table.from_pylist([row], schema=schema), tmp_path / "foreign.parquet")
    (read,) = read_trl_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(ImageError, match="a path inside a data file is not opened"):
        load_image(read["images"][0])


@pytest.mark.parametrize("mapped", [False, True])
def test_other_rows_at_the_same_path_and_time_are_other_rows(tmp_path, monkeypatch, mapped):
    """As `rsync -t`, tar and restored backups leave them; nothing is left in the home folder either."""
    home, kept = tmp_path / "home", tmp_path / "kept"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home)
    path = tmp_path / "pairs.parquet"
    for name in ("old", "new"):
        write_trl_parquet([pair_of(name)], path)
        os.utime(path, (1e9, 1e9))
        assert read_trl_parquet(path, kept_in=kept if mapped else None)["problem_id"][:] == [name]
    assert not home.exists()
    assert len(list(kept.glob("*.arrow"))) == 2 * mapped


def _written(tmp_path, table):
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "foreign.parquet")
    return tmp_path / "foreign.parquet"


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected", "images", "problem_id", "source"])
@pytest.mark.parametrize("how", ["null", "missing"])
def test_a_null_or_a_missing_column_costs_rows_and_no_traceback(tmp_path, column, how):
    import pyarrow as pa

    rows = [to_trl_row(pair_of("a", images=())), to_trl_row(pair_of("b", images=()))]
    table = pa.Table.from_pylist(rows, schema=trl_features().arrow_schema)
    place = table.column_names.index(column)
    field = table.schema.field(column)
    if how == "null":
        gone = pa.array([None, rows[1][column]], field.type)
        table = table.set_column(place, field, gone)
    else:
        table = table.drop_columns([column])
    fine, bad = [], []
    for row in iter_trl_parquet(_written(tmp_path, table)):
        try:
            fine.append(from_trl_row(row))
        except DataError as error:
            bad.append(str(error))
    optional = column in ("images", "source")  # no image, and no source
    assert (len(fine), len(bad)) == ((2, 0) if optional else (1, 1) if how == "null" else (0, 2))


@pytest.mark.parametrize("column", ["prompt", "chosen", "images"])
def test_a_column_of_another_type_is_one_error_that_names_it(tmp_path, column):
    import pyarrow as pa

    table = pa.Table.from_pylist([to_trl_row(pair_of("a", images=()))], schema=trl_features().arrow_schema)
    place = table.column_names.index(column)
    path = _written(tmp_path, table.set_column(place, column, pa.array([7])))
    for read in (read_trl_parquet, lambda path: list(iter_trl_parquet(path))):
        with pytest.raises(DataError, match=f"column '{column}' is of type int64; expected list"):
            read(path)


@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "text"])
def test_a_damaged_file_is_one_error(tmp_path, damage):
    path = tmp_path / "pairs.parquet"
    write_trl_parquet([pair_of(f"p{i}") for i in range(100)], path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    zeros = whole[:4] + bytes(middle) + whole[middle + 4 :]
    path.write_bytes({"empty": b"", "cut": whole[:-9], "text": b"rows", "zeros": zeros}[damage])
    for kept in (None, tmp_path / "kept"):
        with pytest.raises(DataError, match="is no readable Parquet file"):
            read_trl_parquet(path, kept_in=kept)


def test_the_footer_holds_no_image_and_no_response(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held until the end, so its size is what `mpo pairs` grows by."""
    noise = Image.effect_noise((64, 64), 50)
    pairs = [
        PreferencePair(Problem(f"p{i}", "What is it?", (noise,)), Completion(f"{i} " * 500), Completion("no"), "made")
        for i in range(640)
    ]
    write_trl_parquet(pairs, tmp_path / "pairs.parquet")
    found = pq.ParquetFile(tmp_path / "pairs.parquet").metadata
    assert found.num_row_groups == 1
    monkeypatch.setattr(parquet, "_BYTES_A_GROUP", 1)  # so many bytes at the most, whatever the rows
    write_trl_parquet(pairs, tmp_path / "parts.parquet")
    parts = pq.ParquetFile(tmp_path / "parts.parquet").metadata
    assert parts.num_row_groups == 10
    assert parts.serialized_size - found.serialized_size < 9 * 2048
    assert list(iter_trl_parquet(tmp_path / "parts.parquet")) == list(iter_trl_parquet(tmp_path / "pairs.parquet"))
