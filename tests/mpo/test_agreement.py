"""A first batch in half precision: the limit is what rounding does here, and a wrong mask is far beyond it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mpo.multimodal import agreement, shared_prefix
from mpo.multimodal.agreement import check_first_batch, telling_responses
from mpo.multimodal.packing import LAYOUT, PackedLayout, pack_rows, paired_rows
from mpo.multimodal.prefix import EncodedPrompt
from mpo.multimodal.scoring import token_logps
from mpo.multimodal.shared_prefix import NAME
from tests.mpo.tiny_models import packed_batch, prepared


def text_batch(lengths: tuple[int, ...], prompt: int = 40) -> dict[str, Any]:
    draw = random.Random(1)
    ids = torch.tensor([draw.randrange(5, 90) for _ in range(prompt)])
    responses = [[draw.randrange(5, 90) for _ in range(n)] for n in lengths]
    return pack_rows([EncodedPrompt(ids, {}, {})], [responses], pad_token_id=0)


def check(model: Any, batch: dict[str, Any], **more: Any) -> agreement.Found:
    return check_first_batch(batch, [lambda inputs, place: token_logps(model, inputs)], models=[model], **more)


def lose_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = shared_prefix.shared_prefix_attention

    def leaking(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(LAYOUT, None)
        return attention(*args, **kwargs)

    monkeypatch.setitem(shared_prefix.AttentionInterface._global_mapping, NAME, leaking)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl", "gemma3"])
def test_half_precision_is_read_right_or_found_wrong(
    monkeypatch: pytest.MonkeyPatch, name: str, autocast: bool
) -> None:
    model = prepared(name, "plain")
    model = model if autocast else model.bfloat16()
    batch = packed_batch(name, model)
    if not autocast:
        batch["pixel_values"] = batch["pixel_values"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert check(model, batch).shares
        lose_the_layout(monkeypatch)
        found = check(model, batch)
    assert not found.shares
    assert "differ from those of a row per response" in found.reason


def test_one_word_does_not_decide() -> None:
    """The difference is a mean over tokens: an answer of one token that is off by a nat is one token of sixty."""
    batch = text_batch((1, 60))

    def read(inputs: Mapping[str, Any], place: int | None) -> list[Tensor]:
        values = [torch.zeros(1), torch.zeros(60)]
        if place is None:
            values[0] = torch.full((1,), 0.05)
            return values
        return [values[place]]

    model = prepared("internvl", "plain")
    assert check_first_batch(batch, [read], models=[model]).shares
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "TOLERANCE", 0.04 / 61)
        assert not check_first_batch(batch, [read], models=[model]).shares


def off_by(difference: float, noise: float, lengths: tuple[int, int]) -> agreement.Found:
    """A first batch whose packed values differ by `difference`, and padded ones by `noise`."""

    def read(inputs: Mapping[str, Any], place: int | None) -> list[Tensor]:
        if place is None:
            return [torch.full((n,), difference) for n in lengths]
        padded = int(inputs["attention_mask"][0, 0]) == 0
        return [torch.full((lengths[place],), noise if padded else 0.0)]

    model = prepared("internvl", "plain").bfloat16()
    return check_first_batch(text_batch(lengths), [read], models=[model])


def test_the_limit_is_the_noise_of_two_paddings() -> None:
    """In half precision a difference passes if padding alone makes about half of it, and not if it makes none."""
    found = {noise: off_by(0.1, noise, (40, 60)) for noise in (0.0, 0.03, 0.06)}
    assert [some.shares for some in found.values()] == [False, False, True]
    assert "1.0e-01 a token (limit 7.8e-03)" in found[0.0].reason


def test_four_words_may_differ_more_than_four_hundred() -> None:
    """On an H200 four responses of one token were off by 2.9 times their noise, and long ones by 0.5 to 1.1 times."""
    assert off_by(0.0159, 0.0055, (2, 2)).shares
    assert not off_by(0.0159, 0.0055, (200, 200)).shares
    assert not off_by(0.15, 0.0055, (2, 2)).shares  # the least that a lost mask does


def test_a_nan_is_no_agreement() -> None:
    model = prepared("internvl", "plain")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    assert not check(model, text_batch((3, 4))).shares


def test_only_a_few_responses_are_read_alone() -> None:
    """Sixteen responses of a prompt: the check reads four rows one by one, never sixteen at once."""
    model = prepared("internvl", "plain")
    rows: list[int] = []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    assert check(model, text_batch((7,) * 16)).shares
    assert rows == [1] * 5


def test_the_check_leaves_mode_and_random_state() -> None:
    model, state = prepared("internvl", "plain").train(), torch.get_rng_state()
    assert check(model, text_batch((3, 4))).shares
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_which_responses_tell_most() -> None:
    layout = PackedLayout([3, 3], [(9, 11, 20), (6, 30)])
    assert telling_responses(layout, most=3) == [4, 2, 1]
    assert telling_responses(layout, most=3, rows=[0]) == [2, 1, 0]
    assert telling_responses(layout, most=7, fill=True) == [4, 2, 1, 0, 3, 3, 3]


def test_rows_read_alone_are_those_of_the_paired_layout() -> None:
    batch = packed_batch("qwen2_5_vl", prepared("qwen2_5_vl", "plain"))
    whole = paired_rows(batch)
    for place in range(6):
        alone = paired_rows(batch, responses=[place], padding=3)
        kept = whole["attention_mask"][place].bool()
        assert torch.equal(alone["input_ids"][0, 3:], whole["input_ids"][place, kept])
        assert torch.equal(alone["labels"][0, 3:], whole["labels"][place, kept])
        assert not alone["attention_mask"][0, :3].any()
