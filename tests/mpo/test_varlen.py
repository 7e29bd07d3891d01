"""The sequences that the variable-length kernel is given; the kernel itself, which needs CUDA, is written out here."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mpo.layout import PromptSharing
from mpo.multimodal import shared_prefix, varlen
from mpo.multimodal.packing import LAYOUT, PackedLayout
from mpo.multimodal.scoring import response_logps
from mpo.multimodal.varlen import can_use_varlen, varlen_attention
from tests.mpo.tiny_models import SHARING, packed_batch, prepared


def kernel(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """`torch.nn.attention.varlen.varlen_attn` as documented: causal from the end, `left` keys before one's own."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    lengths = [(cu[1:] - cu[:-1]).max().item() for cu in (cu_seq_q, cu_seq_k)]
    assert lengths == [max_q, max_k]
    left, right = window_size
    assert right == 0
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out = []
    for (q0, q1), (k0, k1) in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1]) * (scale or query.shape[-1] ** -0.5)
        last = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)  # a query's own key
        keys = torch.arange(k1 - k0)
        seen = (keys <= last) & (keys >= (last - left if left >= 0 else 0))
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value[k0:k1]))
    return torch.cat(out)


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "_kernel", lambda: kernel)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_one_call_is_the_attention_of_the_segments(window: int | None, heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    layout = PackedLayout([5, 2], [(8, 12), (4, 6, 9)])
    query, key, value = (
        torch.randn(2, h, 12, 8, generator=generator).requires_grad_() for h in (heads[0], heads[1], heads[1])
    )

    class Module:
        training = False

    def run(attend: Any) -> list[Tensor]:
        out = attend()
        (out * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
        gradients = [x.grad for x in (query, key, value)]
        for x in (query, key, value):
            x.grad = None
        return [out.detach(), *gradients]

    # The model's mask has the window inside the prefix; where the kernel may run there is none.
    positions = torch.arange(12)
    own = None
    if window is not None:
        own = ((positions <= positions[:, None]) & (positions > positions[:, None] - window))[None, None]
    given = {LAYOUT: layout, "sliding_window": window}
    split = run(lambda: shared_prefix.shared_prefix_attention(Module(), query, key, value, own, **given)[0])
    one = run(lambda: varlen_attention(query, key, value, layout, scale=None, window=window))
    for ours, theirs in zip(one, split, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SHARING)
def test_a_model_reads_the_same_through_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a layer's prefix has a mask of its own (Gemma3's images), that layer stays with the segments."""
    calls: list[int] = []
    monkeypatch.setattr(shared_prefix, "can_use_varlen", lambda q, mask, dropout: mask is None)
    monkeypatch.setattr(varlen, "_kernel", lambda: lambda *args, **kwargs: calls.append(1) or kernel(*args, **kwargs))
    model = prepared(name, "plain")
    packed = packed_batch(name, model)
    split, _ = response_logps(model, packed)
    assert not calls
    packed[LAYOUT].varlen = True
    one, _ = response_logps(model, packed)
    torch.testing.assert_close(one, split, atol=2e-5, rtol=0)
    assert bool(calls) == (name != "gemma3")


def test_where_the_kernel_is_not_for() -> None:
    query = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16)
    assert not can_use_varlen(query, None, 0.0)  # a CPU
    assert not can_use_varlen(query.float(), None, 0.0)


@pytest.mark.parametrize("fault", ["raises", "is wrong"])
def test_a_kernel_that_fails_at_the_first_batch_is_left_out(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def broken(*args: Any, **kwargs: Any) -> Tensor:
        if fault == "raises":
            raise RuntimeError("no kernel image is available")
        return kernel(*args, **kwargs) * 0.5

    monkeypatch.setattr(shared_prefix, "can_use_varlen", lambda q, mask, dropout: mask is None)
    model = prepared("internvl", "plain")
    packed = packed_batch("internvl", model)
    expected, _ = response_logps(model, packed)
    for run, works in ((kernel, True), (broken, False)):
        monkeypatch.setattr(varlen, "_kernel", lambda run=run: run)
        sharing = PromptSharing("shared", [model])
        sharing.varlen = True
        admitted = sharing.admit(packed, [model])
        assert (sharing.on, sharing.varlen, admitted[LAYOUT].varlen) == (True, works, works)
        torch.testing.assert_close(response_logps(model, admitted)[0], expected, atol=2e-5, rtol=0)
