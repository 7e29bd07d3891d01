"""TRL's row forms give the batch of the plain form, or are refused with what to do; TRL itself is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from trl.data_utils import apply_chat_template, extract_prompt, prepare_multimodal_messages

from mpo.admission import admit
from mpo.collator import PreferenceCollator
from mpo.multimodal.errors import DataError
from mpo.multimodal.loading import load_processor
from mpo.multimodal.messages import response_ids
from mpo.rows import WRITTEN_IMAGE, check_row
from mpo.sampler import PromptGroupSampler
from tests.mpo.test_turn import FORMS, processor_of
from tests.mpo.tiny import preference_row, tiny_internvl

RED, BLUE = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
ASKED = "How many digits are 0?"


@pytest.fixture(scope="module")
def collator() -> PreferenceCollator:
    return PreferenceCollator(load_processor(tiny_internvl()))


def plain(**columns: Any) -> dict[str, Any]:
    return preference_row(0, images=[RED], **columns)


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def user(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def implicit() -> dict[str, Any]:
    row = plain()
    whole = {side: [*row["prompt"], *row[side]] for side in ("chosen", "rejected")}
    return without(row, "prompt") | whole


FORMS_OF_A_ROW: dict[str, Any] = {
    "one image in images": lambda: plain() | {"images": RED},
    "a list in image": lambda: without(plain(), "images") | {"image": [RED]},
    "one image in image": lambda: without(plain(), "images") | {"image": RED},
    "implicit prompt": implicit,
    "image in its block": lambda: without(plain(), "images")
    | {"prompt": user({"type": "image", "image": RED}, text(ASKED))},
    "image in its block, nulls of Arrow": lambda: plain()
    | {"images": [], "prompt": user({"type": "image", "image": RED, "text": None}, text(ASKED) | {"image": None})},
    "strings as responses": lambda: plain() | {"chosen": "one two 0", "rejected": "three 0"},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS_OF_A_ROW)
def test_a_form_is_read_as_the_plain_row(collator: PreferenceCollator, form: str) -> None:
    expected, got = collator([plain()]), collator([FORMS_OF_A_ROW[form]()])
    for name in ("input_ids", "labels", "attention_mask", "pixel_values", "pair_index"):
        assert torch.equal(expected[name], got[name])


def test_blocks_with_and_without_an_image_of_their_own(collator: PreferenceCollator) -> None:
    """As in TRL's prepare_multimodal_messages, only blocks without one take the column's, in order."""
    row = without(plain(), "images") | {
        "images": [BLUE],
        "prompt": user({"type": "image", "image": RED}, {"type": "image"}, text(ASKED)),
    }
    theirs = prepare_multimodal_messages(row["prompt"], images=[BLUE])
    filled = [block["image"] for block in theirs[0]["content"] if block["type"] == "image"]
    assert collator.check(row).images == filled == [RED, BLUE]
    with pytest.raises(DataError, match="got 1 blocks, 2 images, besides 1 blocks that hold their image"):
        collator([row | {"images": [BLUE, BLUE]}])
    with pytest.raises(DataError, match="got 0 blocks, 1 images, besides 1 blocks"):
        collator([row | {"prompt": user({"type": "image", "image": RED}, text(ASKED))}])


def test_an_image_in_a_block_may_be_a_path_or_come_from_arrow(collator: PreferenceCollator, tmp_path: Path) -> None:
    RED.save(tmp_path / "a.png")
    inside = PreferenceCollator(collator.processor, image_root=tmp_path)
    rows = [without(plain(), "images") | {"prompt": user({"type": "image", "image": "a.png"}, text(ASKED))}]
    assert torch.equal(inside(rows)["pixel_values"], collator([plain()])["pixel_values"])
    kept, report = admit(datasets.Dataset.from_list(rows), inside, quiet=True)
    assert report.kept == 1
    assert torch.equal(inside([kept[0]])["pixel_values"], collator([plain()])["pixel_values"])


def test_an_implicit_prompt_is_trls(collator: PreferenceCollator) -> None:
    row = implicit()
    theirs = extract_prompt({side: row[side] for side in ("chosen", "rejected")})
    assert theirs == {name: plain()[name] for name in ("prompt", "chosen", "rejected")}
    for chosen, message in (("a string", "as whole conversations"), ([{"role": "user", "content": "other"}] * 2, "begin with different messages")):  # noqa: E501  # fmt: skip
        with pytest.raises(DataError, match=message) as caught:
            collator([row | {"chosen": chosen}])
        assert caught.value.reason == "no 'prompt'"


@pytest.mark.parametrize("name", ["qwen2.5", "idefics3"])
def test_a_prompt_that_ends_in_an_opening_is_trls_and_is_continued(name: str) -> None:
    """The prompt is TRL's (`continue_final_message`); prompt ⊕ y is the template's one turn with both texts."""
    processor = processor_of(FORMS[name][0])
    messages = [*user(text("What?")), {"role": "assistant", "content": [text("There are")]}]
    pair = check_row(processor, {"prompt": messages, "chosen": " two cats.", "rejected": " none."})
    assert pair.prompt == apply_chat_template({"prompt": messages}, processor)["prompt"]
    whole = [*messages[:1], {"role": "assistant", "content": [text("There are two cats.")]}]
    written = processor.apply_chat_template(whole, tokenize=False)
    assert written.startswith(pair.prompt + processor.tokenizer.decode(pair.chosen[:-1]))
    assert pair.chosen == response_ids(processor, " two cats.")
    assert pair.notes == ()


def test_control_tokens_of_an_opening_are_broken_up(collator: PreferenceCollator) -> None:
    opening = {"role": "assistant", "content": "a<|im_end|>"}
    assert collator.check(plain() | {"prompt": [*plain()["prompt"], opening]}).prompt.endswith(
        "assistant\na< |im_end|>"
    )


def test_a_literal_image_mark_beside_an_image_is_noted_and_counted(collator: PreferenceCollator) -> None:
    """LLaVA's, MMPR's and swift's `<image>` is where the image goes; beside an image's block it would be a text."""
    marked = plain(prompt=[{"role": "user", "content": "<image>\nHow many?"}], problem_id="marked")
    rows = [
        plain(),
        marked,
        marked | {"images": []},
        marked | {"prompt": user({"type": "image"}, text("<image_1> a?"))},
    ]
    kept, report = admit(rows, collator, quiet=True)
    assert len(kept) == 4
    assert report.noted == {WRITTEN_IMAGE: 1}
    assert report.lines("train")[1] == f"    1 kept with a note (marked): {WRITTEN_IMAGE}"


def test_responses_that_a_template_rewrites_are_counted() -> None:
    processor = processor_of(FORMS["qwen2.5"][0].replace("{{ b['text'] }}", "{{ b['text'] | replace('cat', 'dog') }}"))
    rows = [{"prompt": user(text("What?")), "chosen": word, "rejected": "none"} for word in ("a cat", "a dog", "cats")]
    _, report = admit(rows, PreferenceCollator(processor), quiet=True)
    assert report.noted == {"response kept as it is: the chat template rewrites it": 2}


@pytest.mark.parametrize("form", FORMS_OF_A_ROW)
def test_rows_of_any_form_are_grouped_by_their_prompt(form: str) -> None:
    """Two prompts, two pairs each, without ids: the pairs of one prompt come together."""
    rows = [without(FORMS_OF_A_ROW[form](), "problem_id") for _ in range(2)]
    others = [without(preference_row(1), "problem_id") for _ in range(2)]
    mixed = [rows[0], others[0], rows[1], others[1]]
    assert sorted(map(sorted, PromptGroupSampler(mixed, seed=0).groups)) == [[0, 2], [1, 3]]
