import hashlib

import pytest
from PIL import Image

from mpo.multimodal.errors import ImageError, StageError
from mpo.multimodal.images import load_image
from rewards.interchange.trl_rows import read_trl_parquet, to_trl_row, trl_features, write_trl_parquet
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
