"""Rows → tensors, as matrices that can be read; and one clear error for each way a row can be wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from PIL import Image

from mpo.collator import PreferenceCollator
from mpo.multimodal.errors import DataError, ImageError
from mpo.multimodal.loading import load_processor
from mpo.multimodal.packing import LAYOUT
from mpo.multimodal.vision import IMAGES
from tests.mpo.tiny import preference_row, preference_rows, tiny_internvl

BOS, EOT, PAD, __ = "<|im_start|>", "<|im_end|>", "<|endoftext|>", None  # __: label −100


@pytest.fixture(scope="module")
def collator() -> PreferenceCollator:
    return PreferenceCollator(load_processor(tiny_internvl()))


def spelled(collator: PreferenceCollator, ids: torch.Tensor) -> list[list[str | None]]:
    decode = collator.processor.tokenizer.decode
    return [[__ if i == -100 else decode([i]) for i in row] for row in ids.tolist()]


def text_row(**columns: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": "+"}], "chosen": "1 2", "rejected": "3", **columns}


def test_one_text_pair(collator: PreferenceCollator) -> None:
    batch = collator([text_row()])
    prompt = [BOS, "user", "\n", "+", EOT, "\n", BOS, "assistant", "\n"]
    assert spelled(collator, batch["input_ids"]) == [
        [*prompt, "1", " ", "2", EOT],
        [*prompt, "3", EOT, PAD, PAD],
    ]
    assert spelled(collator, batch["labels"]) == [
        [*[__] * 9, "1", " ", "2", EOT],
        [*[__] * 9, "3", EOT, __, __],
    ]
    assert batch["attention_mask"].tolist() == [
        [*[1] * 9, 1, 1, 1, 1],
        [*[1] * 9, 1, 1, 0, 0],
    ]
    pairs = {"pair_ids", "pair_index", "pair_lengths", "pair_prompts", "pair_rejected_share"}
    assert set(batch) == {"input_ids", "labels", "attention_mask", *pairs}


def test_a_placeholder_in_the_text_is_an_image(collator: PreferenceCollator) -> None:
    """LLaMA-Factory#8734: rows whose text says `<image>` got their image twice, once as text."""
    image = Image.new("RGB", (32, 32))
    texts = {"front": "<image>\n+", "middle": "1<image>2", "none": "+"}
    prompts = {}
    for name, text in texts.items():
        row = {"prompt": [{"role": "user", "content": text}], "chosen": "1", "rejected": "3", "images": [image]}
        prompts[name] = collator.check(row).prompt
        assert "<image>" not in prompts[name]
        assert prompts[name].count(collator.processor.image_token) == 1
    assert prompts["middle"].index("1") < prompts["middle"].index(collator.processor.image_token)
    with pytest.raises(DataError, match="expected one <image> per image, got 2 of them, 1 images"):
        collator.check({**row, "prompt": [{"role": "user", "content": "<image><image>"}]})
    plain = text_row(prompt=[{"role": "user", "content": "<image>"}])  # no image: it is a text
    assert collator.check(plain).images == []


@pytest.mark.parametrize("blank", ["", " ", "\n\n", "\t "])
def test_a_blank_response_is_no_response(collator: PreferenceCollator, blank: str) -> None:
    """ms-swift#3276."""
    for side in ("chosen", "rejected"):
        with pytest.raises(DataError) as caught:
            collator.check(text_row(**{side: blank}))
        assert caught.value.reason == "empty response"


def test_truncated_response_has_no_end_of_turn(collator: PreferenceCollator) -> None:
    batch = collator([text_row(rejected_truncated=True)])
    assert [row[9:] for row in spelled(collator, batch["labels"])] == [["1", " ", "2", EOT], ["3", __, __, __]]


def answers(collator: PreferenceCollator, batch: dict[str, Any]) -> list[str]:
    """The text of each response, in the order of the batch."""
    texts = collator.processor.tokenizer.batch_decode([[i for i in row if i >= 0] for row in batch["labels"].tolist()])
    return [part for text in texts for part in text.split(EOT) if part]


def test_responses_stand_row_after_row_and_pairs_point_at_them(collator: PreferenceCollator) -> None:
    batch = collator(preference_rows(2))
    assert batch["pair_ids"] == ["pair-0", "pair-1"]
    assert answers(collator, batch) == ["one two 0", "three 0", "one two one two 1", "three 1"]
    assert batch["pair_index"].tolist() == [[0, 1], [2, 3]]
    # pair 0: 1 tile, pair 1: 2 tiles and the thumbnail; 4 image tokens per tile
    assert batch["pixel_values"].shape == (2 * (1 + 3), 3, 32, 32)
    image_token = collator.processor.image_token_id
    assert (batch["input_ids"] == image_token).sum(dim=1).tolist() == [4, 4, 12, 12]
    assert (batch[IMAGES].sources, batch[IMAGES].counts) == ([0, 0, 1, 1], {"pixel_values": [1, 1, 3, 3]})


def one_prompt(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [preference_row(0, problem_id=f"p{i}", chosen=c, rejected=r) for i, (c, r) in enumerate(pairs)]


def test_pairs_of_one_prompt_share_it_and_their_responses(collator: PreferenceCollator) -> None:
    shared = PreferenceCollator(collator.processor, shared_prefix=True, with_keys=True)
    batch = shared([*one_prompt(("1", "2"), ("3", "2")), preference_row(1), *one_prompt(("1", "4"))])
    assert answers(collator, batch) == ["1", "2", "3", "4", "one two one two 1", "three 1"]
    assert batch["pair_index"].tolist() == [[0, 1], [2, 1], [4, 5], [0, 3]]
    assert batch["input_ids"].shape[0] == 2
    assert batch["pixel_values"].shape[0] == 1 + 3
    assert len(set(batch["response_keys"])) == 6
    alone = shared(one_prompt(("4", "3")))
    assert alone["response_keys"] == [batch["response_keys"][3], batch["response_keys"][2]]


def test_another_picture_is_another_prompt(collator: PreferenceCollator) -> None:
    red, blue = (preference_row(0, images=[Image.new("RGB", (32, 32), colour)]) for colour in ("red", "blue"))
    assert PreferenceCollator(collator.processor, shared_prefix=True)([red, blue])["input_ids"].shape[0] == 2


def test_a_long_row_is_split_and_repeats_its_prompt(collator: PreferenceCollator) -> None:
    rows = one_prompt(("1", "2"), ("3", "4"), ("5", "6"))
    whole = PreferenceCollator(collator.processor, shared_prefix=True)(rows)
    prefix = whole[LAYOUT].prefixes[0]
    # a response takes three tokens: p_last, the digit, the end of the turn
    for limit, sizes in ((None, [6]), (prefix + 18, [6]), (prefix + 17, [5, 1]), (prefix + 6, [2, 2, 2]), (1, [1] * 6)):
        batch = PreferenceCollator(collator.processor, shared_prefix=True, max_row_tokens=limit)(rows)
        assert [len(ends) for ends in batch[LAYOUT].ends] == sizes
        assert batch["pair_index"].tolist() == whole["pair_index"].tolist()
        assert answers(collator, batch) == ["1", "2", "3", "4", "5", "6"]
        assert batch["pixel_values"].shape[0] == len(sizes)
        assert batch[IMAGES].sources == [0] * len(sizes)


def test_an_image_is_preprocessed_once_a_pair(collator: PreferenceCollator, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    processor_type = type(collator.processor.image_processor)
    original = processor_type.__call__
    monkeypatch.setattr(processor_type, "__call__", lambda *a, **k: calls.append(1) or original(*a, **k))
    fresh = PreferenceCollator(collator.processor)
    fresh(preference_rows(3))
    assert len(calls) == 3
    fresh(preference_rows(3))  # another epoch
    assert len(calls) == 3


def test_images_and_text_rows_mix(collator: PreferenceCollator) -> None:
    batch = collator([preference_row(0), text_row(images=[]), text_row()])
    assert batch["pixel_values"].shape[0] == 2
    assert batch["input_ids"].shape[0] == 4  # the two text rows are one pair
    assert batch["pair_index"].tolist() == [[0, 1], [2, 3], [2, 3]]


@pytest.mark.parametrize("column", ["image", "images"])
def test_equivalent_spellings_of_a_row(collator: PreferenceCollator, column: str) -> None:
    row = preference_row(0)
    (image,) = row.pop("images")
    row[column] = [image] if column == "images" else image
    row["prompt"] = [
        {
            "role": "user",
            "content": [
                {"type": "image", "text": None},  # nulls as Arrow adds them
                {"type": "text", "text": "How many digits are 0?"},
            ],
        }
    ]
    row["chosen"], row["rejected"] = (
        "one two 0",
        [{"role": "assistant", "content": [{"type": "text", "text": "three 0"}]}],
    )
    expected, got = collator([preference_row(0)]), collator([row])
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[key], value)
        elif key != IMAGES:
            assert got[key] == value


def test_rows_are_not_changed(collator: PreferenceCollator) -> None:
    rows = preference_rows(2)
    before = copy.deepcopy(rows)
    collator(rows)
    assert rows == before


def test_weights(collator: PreferenceCollator) -> None:
    assert "pair_weight" not in collator(preference_rows(2))
    batch = collator([preference_row(0, weight=0.5), preference_row(1), preference_row(2, weight=None)])
    assert batch["pair_weight"].tolist() == [0.5, 1.0, 1.0]


def test_a_row_without_id_is_named_by_its_prompt(collator: PreferenceCollator) -> None:
    (name,) = collator([text_row()])["pair_ids"]
    assert name == "row 0 of its batch, prompt [{'role': 'user', 'content': '+'}]"


def test_control_tokens_of_a_question_are_broken_up(collator: PreferenceCollator) -> None:
    batch = collator([text_row(prompt=[{"role": "user", "content": f"a{EOT}{BOS}b"}])])
    assert spelled(collator, batch["input_ids"])[0].count(BOS) == 2


IMAGE_BLOCK = {"type": "image"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chosen": ""}, "pair-1: chosen: a response is empty"),
        ({"rejected": [{"role": "assistant", "content": ""}]}, "pair-1: rejected: a response is empty"),
        ({"chosen": "a<IMG_CONTEXT>b"}, "chosen: a response contains the control token '<IMG_CONTEXT>'"),
        ({"chosen": f"a{EOT}"}, r"chosen: a response contains the control token '<\|im_end\|>'"),
        ({"rejected": [{"role": "assistant", "content": [IMAGE_BLOCK]}]}, "rejected: a response contains an image"),
        ({"rejected": [{"role": "user", "content": "x"}]}, "rejected: expected a string or one assistant message"),
        ({"rejected": []}, "rejected: expected a string or one assistant message"),
        ({"chosen": "three 1"}, "chosen and rejected are the same response"),
        ({"chosen": None}, "chosen: expected a column 'chosen'"),
        ({"prompt": "a string"}, "prompt: expected a list of messages"),
        ({"prompt": [{"role": "user"}]}, "expected a mapping with 'content'"),
        ({"prompt": [{"role": "system", "content": "x"}]}, "expected a user message to put the images in"),
        ({"prompt": [{"role": "user", "content": [IMAGE_BLOCK, IMAGE_BLOCK]}]}, "got 2 blocks, 1 images"),
        ({"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "of type 'text' or 'image', got 'video'"),
        ({"tools": [{"name": "f"}]}, "the column 'tools' is not supported"),
        ({"weight": -1.0}, "pair-1: weight must be finite"),
        ({"weight": float("nan")}, "pair-1: weight must be finite"),
    ],
)
def test_a_bad_row_is_named(collator: PreferenceCollator, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        collator([preference_row(0), preference_row(1, **columns)])
    assert str(caught.value).startswith("pair-1: ")


def test_a_missing_image_is_an_image_error(collator: PreferenceCollator) -> None:
    with pytest.raises(ImageError, match=r"pair-1: image 'nope\.png' does not exist"):
        collator([preference_row(1, images=["nope.png"])])


def test_an_image_path_stays_inside_its_root(collator: PreferenceCollator, tmp_path: Any) -> None:
    inside = PreferenceCollator(collator.processor, image_root=tmp_path)
    preference_row(0)["images"][0].save(tmp_path / "a.png")
    assert inside([preference_row(1, images=["a.png"])])["pixel_values"].shape[0] == 2
    with pytest.raises(ImageError, match=r"pair-1: image path '\.\./a\.png' leaves"):
        inside([preference_row(1, images=["../a.png"])])
