"""Which rows are trained on: every fault is counted before step 0, the rest keeps its order, nothing is cut."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpo.admission import PairLength, admit, lengths
from mpo.collator import PreferenceCollator
from mpo.config import MPOConfig
from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.images import png_bytes
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.prompt_length import PromptLength
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import preference_row, preference_rows, tiny_config, tiny_internvl

ROOT = Path(__file__).resolve().parents[2]
EOT = "<|im_end|>"
IMAGE_BLOCK = {"type": "image"}

# reason → what makes a good row a bad one
FAULTS: dict[str, dict[str, Any]] = {
    "empty response": {"chosen": ""},
    "control token in a response": {"rejected": "a<IMG_CONTEXT>b"},
    "image block in a response": {"rejected": [{"role": "assistant", "content": [IMAGE_BLOCK]}]},
    "two equal responses": {"chosen": "three 1", "rejected": "three 1"},
    "video, and MPO trains on images": {"video": "a.mp4"},
    "column 'tools'": {"tools": [{"name": "f"}]},
    "no 'chosen'": {"chosen": None},
    "bad weight": {"weight": "heavy"},
    "image blocks and images differ in number": {"prompt": [{"role": "user", "content": [IMAGE_BLOCK, IMAGE_BLOCK]}]},
    "image that cannot be used": {"images": ["nope.png"]},
    "prompt that is a plain string": {"prompt": "a string"},
    "prompt that is no list of messages": {"prompt": []},
    "no user message for the images": {"prompt": [{"role": "system", "content": "Count."}]},
    "message or block without 'content'": {"prompt": [{"role": "user"}]},
    "content of a message": {"prompt": [{"role": "user", "content": 3}]},
    "block that is no text and no image": {"prompt": [{"role": "user", "content": [{"type": "audio"}]}]},
    "image block with an address": {"prompt": [{"role": "user", "content": [{"type": "image", "url": "http://a/b"}]}]},
    "response that is no text and no assistant message": {"chosen": [{"role": "user", "content": "x"}]},
    "no 'prompt'": {"prompt": None},
}


@pytest.fixture(scope="module")
def collator() -> PreferenceCollator:
    return PreferenceCollator(load_processor(tiny_internvl()))


def ids(rows: Any) -> list[str]:
    return [row["problem_id"] for row in rows]


def really(collator: PreferenceCollator, row: Any) -> int:
    """Tokens of the longer of the two rows that a model is given."""
    return int(collator([row])["attention_mask"].sum(dim=1).max())


@pytest.mark.parametrize("reason", FAULTS)
def test_a_fault_has_a_reason_and_the_collator_agrees(collator: PreferenceCollator, reason: str) -> None:
    rows = [*preference_rows(3), preference_row(3, **FAULTS[reason])]
    kept, report = admit(rows, collator, quiet=True)
    assert ids(kept) == ["pair-0", "pair-1", "pair-2"]
    assert report.rejected == {reason: 1}
    with pytest.raises(DataError) as caught:
        collator([rows[3]])
    assert str(caught.value) == f"pair-3: {report.rejections[0].message}"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([None, *FAULTS]), min_size=1, max_size=12))
def test_in_is_kept_plus_rejected(collator: PreferenceCollator, plan: list[str | None]) -> None:
    rows = [preference_row(i, **({} if fault is None else FAULTS[fault])) for i, fault in enumerate(plan)]
    good = [f"pair-{i}" for i, fault in enumerate(plan) if fault is None]
    if not good:
        with pytest.raises(DataError, match="no row is left"):
            admit(rows, collator, quiet=True)
        return
    kept, report = admit(rows, collator, quiet=True)
    assert ids(kept) == good
    assert report.rows == report.kept + sum(report.rejected.values()) == len(plan)
    assert report.rejected == {fault: plan.count(fault) for fault in FAULTS if fault in plan}
    collator(kept)


def test_a_good_dataset_is_the_same_object(collator: PreferenceCollator) -> None:
    for rows in (preference_rows(2), datasets.Dataset.from_list(preference_rows(2))):
        kept, report = admit(rows, collator, quiet=True)
        assert kept is rows
        assert (report.rows, report.rejections, len(report.chosen_tokens)) == (2, (), 2)


def test_a_dataset_is_indexed_not_copied_and_its_images_are_not_decoded(
    collator: PreferenceCollator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = datasets.Dataset.from_list([preference_row(0), preference_row(1, chosen=[{"role": "assistant", "content": ""}]), preference_row(2)])  # noqa: E501  # fmt: skip
    loads: list[Any] = []
    load = Image.Image.load
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: loads.append(self) or load(self))
    kept, report = admit(rows, collator, quiet=True)
    assert not loads
    assert report.rejected == {"empty response": 1}
    assert kept.data.num_rows == 3  # the table is whole; an index picks
    assert ids(kept) == ["pair-0", "pair-2"]


def test_images_that_only_the_dataset_can_decode_are_kept(collator: PreferenceCollator, tmp_path: Path) -> None:
    """`datasets.Image` opens a path itself; undecoded, such a row names a file that we never open."""
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    columns = {name: [preference_row(i)[name] for i in range(2)] for name in ("problem_id", "prompt", "chosen", "rejected")}  # noqa: E501  # fmt: skip
    rows = datasets.Dataset.from_dict(columns | {"image": [str(tmp_path / "a.png"), str(tmp_path / "b.png")]})
    rows = rows.cast_column("image", datasets.Image())
    kept, report = admit(rows, collator, quiet=True)
    assert ids(kept) == ["pair-0"]
    assert report.rejected == {"image that cannot be used": 1}


def test_control_characters_of_data_do_not_reach_the_log() -> None:
    row = preference_row(0, problem_id="\x1b[2J\n" + "x" * 99, chosen="")
    with pytest.raises(DataError) as caught:
        admit([row], PreferenceCollator(load_processor(tiny_internvl())), quiet=True)
    assert str(caught.value).isprintable()
    assert "x" * 50 not in str(caught.value)


# ---- length ----


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (32, 96), (200, 31)])
def test_max_length_counts_image_tokens_and_nothing_is_cut(collator: PreferenceCollator, size: tuple[int, int]) -> None:
    row = preference_row(2, images=[Image.new("RGB", size)])
    tokens = really(collator, row)
    kept, report = admit([row], collator, max_length=tokens, quiet=True)
    assert report.kept == 1
    assert really(collator, kept[0]) == tokens
    _, report = admit([row, preference_row(0)], collator, max_length=tokens - 1, quiet=True)
    assert report.rejected == {f"longer than max_length={tokens - 1}": 1}


def test_lengths_are_those_of_the_model_rows(collator: PreferenceCollator) -> None:
    rows = [
        *preference_rows(3),
        preference_row(3, images=[]),
        preference_row(4, images=[Image.new("RGB", (9, 99))] * 2),
    ]
    for rows_as in (rows, datasets.Dataset.from_list(rows)):
        measured = lengths(rows_as, collator, quiet=True)
        assert [length.longer for length in measured] == [really(collator, row) for row in rows]
    image_token = collator.processor.image_token_id
    for length, row in zip(measured, rows, strict=True):
        placeholders = int((collator([row])["input_ids"][0] == image_token).sum())
        assert length.image == placeholders + 2 * len(row["images"])  # <img> and </img> frame each
    assert measured[3] == PairLength(measured[3].prompt, 0, len(["o", "n", "e ", "t", "w", "o ", "3", EOT]), 6, 6)


def test_images_are_decoded_for_a_new_size_only(collator: PreferenceCollator, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    processor_type = type(collator.processor.image_processor)
    original = processor_type.__call__
    monkeypatch.setattr(processor_type, "__call__", lambda *a, **k: calls.append(1) or original(*a, **k))
    lengths(preference_rows(10), collator, quiet=True)  # 32 and 64 pixels wide, in turn
    assert len(calls) == 2


@pytest.mark.parametrize("fault", ["missing", "wrong", "raises"])
def test_a_count_that_cannot_be_trusted_is_replaced_by_encoding(
    collator: PreferenceCollator, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    expected = lengths(preference_rows(3), collator, quiet=True)
    kind = type(collator.processor)
    original: Callable[..., Any] = kind._get_num_multimodal_tokens
    if fault == "missing":
        monkeypatch.delattr(kind, "_get_num_multimodal_tokens")
        monkeypatch.delattr("transformers.processing_utils.ProcessorMixin._get_num_multimodal_tokens", raising=False)
    elif fault == "wrong":  # right for the first size, wrong for the second
        monkeypatch.setattr(kind, "_get_num_multimodal_tokens", lambda self, image_sizes: original(self, image_sizes=[(32, 32)] * len(image_sizes)))  # noqa: E501  # fmt: skip
    else:
        monkeypatch.setattr(kind, "_get_num_multimodal_tokens", lambda self, **sizes: {}["images"])
    assert lengths(preference_rows(3), collator, quiet=True) == expected
    count = PromptLength(collator.processor)
    for row in preference_rows(2):
        pair = collator.check(row)
        count(pair.prompt, pair.images)
    assert not count.trusts_count


# ---- in the trainer ----


def trainer_for(folder: Any, rows: Any, **changes: Any) -> MPOTrainer:
    own = {key: changes.pop(key) for key in ("eval_dataset", "data_collator") if key in changes}
    processor = load_processor(tiny_internvl())
    return MPOTrainer(
        tiny_internvl(),
        args=tiny_config(folder, **changes),
        train_dataset=rows,
        processing_class=processor,
        **own,
    )


def weights_of(trainer: MPOTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("make", [list, datasets.Dataset.from_list])
def test_bad_rows_change_nothing_but_the_account(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    """A run on a dirty dataset is bit by bit the run on its clean rows."""
    bad = [preference_row(9, chosen=[{"role": "assistant", "content": text}]) for text in ("", f"x{EOT}", "three 9")]
    good = preference_rows(5)
    dirty = trainer_for(tmp_path / "a", make([bad[0], *good[:3], bad[1], *good[3:], bad[2]]), max_steps=2)
    clean = trainer_for(tmp_path / "b", make(good), max_steps=2)
    assert dirty.admission["train"].rejected == {
        "empty response": 1,
        "control token in a response": 1,
        "two equal responses": 1,
    }
    assert clean.admission["train"].rejections == ()
    for trainer in (dirty, clean):
        trainer.train()
    assert torch.equal(weights_of(dirty), weights_of(clean))


def test_the_account_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")
    logger.propagate = True
    try:
        trainer_for(tmp_path, [*preference_rows(2), preference_row(2, videos=["a.mp4"])], max_length=1000)
    finally:
        logger.propagate = False
    (message,) = [record.getMessage() for record in caplog.records if "rows in" in record.getMessage()]
    first, second = message.splitlines()
    assert first == "train: 3 rows in = 2 kept + 1 rejected"
    assert second.startswith("    1 video, and MPO trains on images (pair-2); the first: the column 'videos'")


def test_evaluation_rows_are_admitted_too(tmp_path: Path) -> None:
    bad = preference_row(3, chosen="")
    one = trainer_for(tmp_path, preference_rows(2), eval_dataset=[*preference_rows(2), bad])
    assert one.admission["eval"].kept == len(one.eval_dataset) == 2
    several = trainer_for(tmp_path, preference_rows(2), eval_dataset={"a": preference_rows(1), "b": [bad, *preference_rows(3)]})  # noqa: E501  # fmt: skip
    assert {name: report.kept for name, report in several.admission.items()} == {"train": 2, "eval_a": 1, "eval_b": 3}
    with pytest.raises(DataError, match=r"no row is left to use: eval: 1 rows in = 0 kept"):
        trainer_for(tmp_path, preference_rows(2), eval_dataset=[bad])


def test_max_length_in_a_run(tmp_path: Path) -> None:
    """Rows with two tiles and a thumbnail are longer than those with one tile."""
    rows = preference_rows(6)
    collator = PreferenceCollator(load_processor(tiny_internvl()))
    limit = max(really(collator, row) for row in rows[::2])
    trainer = trainer_for(tmp_path, rows, max_length=limit, max_steps=1)
    assert ids(trainer.train_dataset) == [row["problem_id"] for row in rows if really(collator, row) <= limit]
    assert 0 < len(trainer.train_dataset) < 6
    trainer.train()
    with pytest.raises(DataError, match=r"pair-1: prompt and longer response have \d+ tokens .* max_length=3"):
        PreferenceCollator(collator.processor, max_length=3)([rows[1]])


def test_a_stream_meets_its_faults_in_training(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([preference_row(0), preference_row(1, chosen=[{"role": "assistant", "content": ""}])])  # noqa: E501  # fmt: skip
    trainer = trainer_for(tmp_path, rows.to_iterable_dataset(), max_steps=1)
    assert trainer.admission == {}
    with pytest.raises(DataError, match="pair-1: chosen: a response is empty"):
        trainer.train()


def test_rows_of_another_collator_are_its_own_business(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, [{"anything": 1}], data_collator=lambda rows: {})
    assert trainer.admission == {}
    with pytest.raises(ConfigError, match="max_length needs a PreferenceCollator"):
        trainer_for(tmp_path, [{"anything": 1}], data_collator=lambda rows: {}, max_length=9)


def test_a_collator_with_an_image_root_is_asked(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes(Image.new("RGB", (32, 32))))
    collator = PreferenceCollator(load_processor(tiny_internvl()), image_root=tmp_path)
    rows = [preference_row(0, images=["a.png"]), preference_row(1, images=["../a.png"])]
    trainer = trainer_for(tmp_path, rows, data_collator=collator)
    assert ids(trainer.train_dataset) == ["pair-0"]
    assert trainer.admission["train"].rejected == {"image that cannot be used": 1}


def test_max_length_is_documented_as_a_limit_that_never_cuts() -> None:
    assert "never cut" in " ".join(str(MPOConfig.__doc__).split())


# ---- ranks ----

RANKS = """
import json, sys
from pathlib import Path
import torch
from tests.mpo.tiny import preference_row, tiny_config
from mpo.admission import admit_all
from mpo.collator import PreferenceCollator
from mpo.multimodal.loading import load_model, load_processor

args = tiny_config(sys.argv[1])
rows = [preference_row(i, chosen="" if i % 3 == 0 else f"one {i}") for i in range(11)]
collator = PreferenceCollator(load_processor(sys.argv[2]))
train, _, reports = admit_all(collator, train=rows, evaluation=None, args=args)
kept = [row["problem_id"] for row in train]
found = {"kept": kept, "rejections": reports["train"].rejections, "ranks": args.world_size}
Path(sys.argv[1], f"{args.process_index}.json").write_text(json.dumps(found))
torch.distributed.barrier()
torch.distributed.destroy_process_group()  # else gloo's threads may abort a rank that ends after the other
"""


@pytest.mark.timeout(180)
def test_all_ranks_keep_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(tmp_path / "script.py"), str(tmp_path), tiny_internvl()]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'mpo'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["ranks"] == 2
    assert first["kept"] == [f"pair-{i}" for i in range(11) if i % 3]
    assert [row for row, *_ in first["rejections"]] == [0, 3, 6, 9]
    assert done.stderr.count("rows in = ") == 1  # logged once


def test_a_response_beyond_what_the_model_reads_is_not_admitted(tmp_path: Path) -> None:
    """A response of 6 MB asked for 36 TB at the first step; no max_length was given."""
    rows = [preference_row(0), preference_row(1, chosen=[{"role": "assistant", "content": "two " * 100_000}])]
    trainer = MPOTrainer(load_model(tiny_internvl()), args=tiny_config(tmp_path), train_dataset=rows,
                         processing_class=load_processor(tiny_internvl()))  # fmt: skip
    assert trainer.admission["train"].rejected == {"longer than the model reads": 1}
