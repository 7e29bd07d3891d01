"""Packed rows by hand, and their paired form."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.multimodal.errors import DataError
from mpo.multimodal.packing import LAYOUT, PackedLayout, pack_rows, packed_positions, paired_rows, segment_sums
from mpo.multimodal.prefix import IGNORED, EncodedPrompt, stack_rows
from mpo.multimodal.vision import IMAGES, row_images


def prompt(*ids: int, images: int = 0) -> EncodedPrompt:
    tokens = torch.tensor(ids)
    features = {"pixel_values": torch.arange(images * 2.0).view(images, 2)} if images else {}
    return EncodedPrompt(tokens, {"types": (tokens == 9).long()}, features)


def test_two_rows_by_hand() -> None:
    packed = pack_rows([prompt(9, 1, 2, images=1), prompt(3, 4)], [[[5, 6], [7]], [[8], [5]]], pad_token_id=0)
    assert packed["input_ids"].tolist() == [[9, 1, 2, 5, 6, 2, 7], [3, 4, 8, 4, 5, 0, 0]]
    assert packed["attention_mask"].tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert packed["types"].tolist() == [[1, 0, 0, 0, 0, 0, 0], [0] * 7]
    no = IGNORED
    assert packed["labels"].tolist() == [[no, no, no, 5, 6, no, 7], [no, no, 8, no, 5, no, no]]
    layout = packed[LAYOUT]
    assert (layout.prefixes, layout.ends) == ((2, 1), ((5, 7), (3, 5)))
    assert [*layout.segments(0)] == [(2, 5), (5, 7)]
    assert packed["pixel_values"].shape == (1, 2)


def test_positions_go_on_from_the_last_prompt_token_on_every_axis() -> None:
    layout = PackedLayout([2, 1], [[5, 7], [3, 5]])
    axes = torch.tensor([[[0, 1, 2], [0, 1, 0]], [[0, 4, 9], [0, 1, 0]]])  # (A, B, P)
    assert packed_positions(axes, layout, 7).tolist() == [
        [[0, 1, 2, 3, 4, 2, 3], [0, 1, 2, 1, 2, 0, 0]],
        [[0, 4, 9, 10, 11, 9, 10], [0, 1, 2, 1, 2, 0, 0]],
    ]


@given(st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_the_paired_form_is_what_stacking_gives(rows: int, seed: int) -> None:
    draw = random.Random(seed)

    def ids(least: int) -> list[int]:
        return [draw.randrange(1, 20) for _ in range(draw.randrange(least, 6))]

    prompts = [prompt(*ids(1), 1, images=draw.randrange(3)) for _ in range(rows)]  # 9 has a feature, and ends none
    responses = [[ids(1) for _ in range(draw.randrange(1, 5))] for _ in range(rows)]
    packed = pack_rows(prompts, responses, pad_token_id=0)
    repeated = [prompt for prompt, some in zip(prompts, responses, strict=True) for _ in some]
    flat = [response for some in responses for response in some]
    expected = {**stack_rows(repeated, flat, pad_token_id=0), **row_images(repeated)}
    paired = paired_rows(packed)
    assert paired.keys() == expected.keys()
    for name, value in expected.items():
        if name == IMAGES:
            assert vars(paired[name]) == vars(value)
        else:
            assert torch.equal(paired[name], value), name
    lengths = segment_sums((packed["labels"] != IGNORED).long(), packed[LAYOUT])
    assert lengths.tolist() == [len(response) for response in flat]


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ([prompt(1)], [[[2], [3]]], "at least 2 tokens, got a shorter one at 0"),
        ([prompt(1, 2), prompt(1, 2)], [[[2], [3]], []], r"responses for each of 2 prompts, got \[2, 0\]"),
        ([prompt(1, 2)], [[[2]], [[3]]], "for each of 1 prompts"),
    ],
)
def test_rows_that_cannot_be_packed(prompts: Any, responses: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack_rows(prompts, responses, pad_token_id=0)
