"""One packed row in several passes, and the attention that scoring uses on a CPU: the same logits, the prompt once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from mpo.multimodal import shared_prefix
from mpo.multimodal.merged import can_merge, merged_attention
from mpo.multimodal.packing import LAYOUT, PackedLayout, paired_rows
from mpo.multimodal.passes import row_passes
from mpo.multimodal.scoring import logits_at
from mpo.multimodal.vision import encode_images_once
from tests.mpo.tiny_models import SHARING, packed_row, prepared

LENGTHS = (5, 1, 7, 3)  # of the responses


def last_of_each(layout: PackedLayout) -> list[int]:
    return [end - 1 for _, end in layout.segments(0)]


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("limit", [1, 35, 10_000])
@pytest.mark.parametrize("name", SHARING)
def test_logits_are_those_of_a_row_each(name: str, limit: int, inference: bool) -> None:
    model = prepared(name, "plain")
    packed = packed_row(name, model, LENGTHS)
    ends = last_of_each(packed[LAYOUT])
    with torch.inference_mode() if inference else torch.no_grad():
        read = logits_at(model, packed, [ends], [5, 6], max_tokens=limit)[0]
        paired = paired_rows(packed)
        each = [[int(length) - 1] for length in paired["attention_mask"].sum(dim=1)]
        expected = torch.cat(logits_at(model, paired, each, [5, 6]))
    torch.testing.assert_close(read, expected, atol=2e-5, rtol=0)


def test_each_token_goes_through_the_model_once_and_images_in_the_first_pass() -> None:
    model = prepared("internvl", "plain")
    encode_images_once(model)
    packed = packed_row("internvl", model, LENGTHS)
    prefix, ends = packed[LAYOUT].prefixes[0], packed[LAYOUT].ends[0]
    tokens: list[int] = []
    towers: list[int] = []
    hooks = [
        model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: tokens.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        ),
        model.model.vision_tower.register_forward_pre_hook(lambda *_: towers.append(len(tokens)), with_kwargs=True),
    ]
    with torch.inference_mode():
        logits_at(model, packed, [last_of_each(packed[LAYOUT])], [5], max_tokens=prefix + 8)
    assert tokens == [prefix + 8, 12]  # with p_last: 6 and 2 tokens; 8 and 4
    assert sum(tokens) == ends[-1]
    assert towers == [0]
    for hook in hooks:
        hook.remove()


def test_what_is_not_one_long_packed_row_is_one_pass() -> None:
    model = prepared("internvl", "plain")
    packed = packed_row("internvl", model, LENGTHS)
    assert [start for _, start in row_passes(packed, packed["input_ids"].shape[1])] == [0]
    assert [start for _, start in row_passes(paired_rows(packed), 1)] == [0]
    assert len([*row_passes(packed, 1)]) == len(LENGTHS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_merged_attention_is_that_of_the_segments(heads: tuple[int, int], dtype: torch.dtype) -> None:
    """Two rows of different lengths, so that one has padding; a prefix with a mask of its own."""
    generator = torch.Generator().manual_seed(0)
    layout = PackedLayout([5, 2], [(8, 12), (4, 6, 9)])
    query, key, value = (torch.randn(2, h, 12, 8, generator=generator).to(dtype) for h in (heads[0], *heads[1:] * 2))
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    mask[..., :4, :4] = True  # sees forward, as image blocks do
    for own in (None, mask):

        def run(own: Any = own) -> torch.Tensor:
            given = {LAYOUT: layout, "sliding_window": 64}
            return shared_prefix.shared_prefix_attention(torch.nn.Module(), query, key, value, own, **given)[0]

        split = run()
        with torch.inference_mode():
            merged = run()
        assert merged.shape == (2, 12, 4, 8)
        assert not merged[1, 9:].any()
        torch.testing.assert_close(merged, split, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)
        assert dtype == torch.bfloat16 or not torch.equal(merged, split)  # computed another way


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"dropout": 0.1}, False),
        ({"window": 6}, False),
        ({"window": 9}, True),
        ({"inference": False}, False),
    ],
)
def test_where_merging_is_not_for(change: dict[str, Any], expected: bool) -> None:
    given = {"dropout": 0.0, "window": None, "inference": True, **change}
    layout = PackedLayout([5], [(8, 12)])  # at most 9 tokens are seen
    x = torch.zeros(1, 1, 12, 8)
    with torch.inference_mode() if given.pop("inference") else nullcontext():
        assert can_merge(x, x, x, layout, **given) is expected
        assert not can_merge(x, x, x.transpose(1, 3).contiguous().transpose(1, 3), layout, **given)
        assert not can_merge(x, x, torch.zeros(1, 1, 12, 4), layout, **given)


def test_merging_weighs_by_what_each_part_adds_up_to() -> None:
    """By hand: one head of one number, a prefix of one token and a response of one; softmax of (0, ln 3)."""
    layout = PackedLayout([1], [(2,)])
    query = torch.tensor([[[[0.0], [1.0]]]])
    key = torch.tensor([[[[1.0], [3.0]]]]).log()
    value = torch.tensor([[[[8.0], [4.0]]]])
    with torch.inference_mode():
        out = merged_attention(query, key, value, None, layout, scale=1.0)
    torch.testing.assert_close(out.flatten(), torch.tensor([8.0, 0.25 * 8 + 0.75 * 4]))
