"""The sequences that the variable-length kernel is given; the kernel itself, which needs CUDA, is written out here."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mpo.layout import PromptSharing
from mpo.multimodal import agreement, shared_prefix, varlen
from mpo.multimodal.packing import LAYOUT, PackedLayout
from mpo.multimodal.passes import row_passes
from mpo.multimodal.scoring import response_logps
from mpo.multimodal.shared_prefix import shared_inputs
from mpo.multimodal.varlen import can_use_varlen, how, lacking, varlen_attention
from tests.mpo.tiny_models import SHARING, packed_batch, packed_row, prepared

Signatures = dict[str, Callable[..., Any]]


def _2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None): ...
def _2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
): ...
def _2_12(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
): ...


# `varlen_attn` as these releases of torch have it, in the arguments that matter here.
RECORDED: Signatures = {"2.10": _2_10, "2.11": _2_11, "2.12": _2_12}


def kernel(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
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


def top_left(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """A kernel that aligns the causal mask at the start of both, as cuDNN does: a response sees too little."""
    out = []
    for (q0, q1), (k0, k1) in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        keys = slice(k0, k0 + min(k1 - k0, q1 - q0))
        ends = [torch.tensor([0, number], dtype=torch.int32) for number in (q1 - q0, keys.stop - keys.start)]
        how = {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}
        out.append(kernel(query[q0:q1], key[keys], value[keys], *ends, q1 - q0, len(key[keys]), **how))
    return torch.cat(out)


def raising(error: BaseException) -> Callable[..., Any]:
    def broken(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        raise error

    return broken


FAILURES: dict[str, BaseException] = {
    "TypeError": TypeError("varlen_attn() got an unexpected keyword argument 'enable_gqa'"),
    "RuntimeError": RuntimeError("no kernel image is available"),
    "NotImplementedError": NotImplementedError("head size 288 is not supported"),
}


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(varlen, "_installed", lambda: kernel)
    varlen.why_not.cache_clear()
    yield
    varlen.why_not.cache_clear()


def let_a_cpu_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `can_use_varlen`, without asking for CUDA and half precision."""

    def usable(query: Tensor, key: Tensor, mask: Tensor | None, dropout: float) -> bool:
        heads = {"heads": query.shape[1], "key_heads": key.shape[1], "size": query.shape[-1]}
        return mask is None and varlen.why_not(query.device, query.dtype, **heads) is None

    monkeypatch.setattr(shared_prefix, "can_use_varlen", usable)
    for module in (varlen, agreement):
        monkeypatch.setattr(module, "why_no_kernel", lambda: None)


# The call, as torch's releases have it


def test_the_installed_kernel_takes_the_arguments() -> None:
    """Not a stub's signature: that of the torch that runs this test."""
    from torch.nn.attention.varlen import varlen_attn

    signature = inspect.signature(varlen_attn)
    assert lacking(signature) is None
    for window in (None, 7):
        for grouped in (False, True):
            said = how(signature, scale=0.125, window=window, grouped=grouped)
            bound = signature.bind(*[None] * 7, **said)
            assert bound.arguments["scale"] == 0.125
            assert bound.arguments["window_size"] == (-1 if window is None else 6, 0)
            assert bound.arguments.get("enable_gqa", grouped) == grouped


@pytest.mark.parametrize("version", ["2.11", "2.12"])
def test_recorded_signatures_take_the_arguments(version: str) -> None:
    signature = inspect.signature(RECORDED[version])
    assert lacking(signature) is None
    said = how(signature, scale=1.0, window=None, grouped=True)
    signature.bind(*[None] * 7, **said)
    assert ("enable_gqa" in said) == (version == "2.12")


def test_a_kernel_that_cannot_be_told_is_not_used() -> None:
    reason = lacking(inspect.signature(RECORDED["2.10"]))
    assert reason
    assert "takes no scale and no window_size" in reason


def test_a_cpu_says_why_it_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert varlen.why_no_kernel() == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert varlen.why_no_kernel() is None
    monkeypatch.setattr(varlen, "_installed", lambda: "torch 2.10.0 takes no scale")
    assert varlen.why_no_kernel() == "torch 2.10.0 takes no scale"


# The trial on a small row


def trial(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any], key_heads: int = 2) -> str | None:
    monkeypatch.setattr(varlen, "why_no_kernel", lambda: None)
    monkeypatch.setattr(varlen, "_installed", lambda: run)
    varlen.why_not.cache_clear()
    return varlen.why_not(torch.device("cpu"), torch.bfloat16, heads=4, key_heads=key_heads, size=16)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_a_right_kernel_passes_the_trial(monkeypatch: pytest.MonkeyPatch, key_heads: int) -> None:
    assert trial(monkeypatch, kernel, key_heads) is None


@pytest.mark.parametrize("name", FAILURES)
def test_a_kernel_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert trial(monkeypatch, raising(FAILURES[name])) == f"{name}: {FAILURES[name]}"


def test_a_mask_at_the_wrong_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "its values are off by" in (trial(monkeypatch, top_left) or "")


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def detached(
        query: Tensor, key: Tensor, value: Tensor, *rest: Any, scale: Any, window_size: Any, enable_gqa: Any
    ) -> Tensor:
        out = kernel(query, key, value, *rest, scale=scale, window_size=window_size, enable_gqa=enable_gqa)
        return out + 0.5 * (value.sum() - value.sum().detach())

    assert "its gradients of value are off by" in (trial(monkeypatch, detached) or "")


def test_too_little_memory_is_not_blamed_on_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trial(monkeypatch, raising(torch.OutOfMemoryError("CUDA out of memory")))
    assert trial(monkeypatch, kernel) is None


def test_the_trial_is_apart_from_what_its_caller_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference mode, autocast and hooks on saved tensors are the caller's own; its random state stays."""
    state = torch.get_rng_state()

    def refused(saved: Any) -> Any:
        raise AssertionError("a tensor of the trial went through the caller's hooks")

    hooks = torch.autograd.graph.saved_tensors_hooks(refused, refused)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), hooks:
        assert trial(monkeypatch, kernel) is None
    assert torch.equal(state, torch.get_rng_state())


# Attention through the kernel


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


def test_gradients_of_a_prefix_add_up_in_float32() -> None:
    """With 33 sequences that share it; added up in bfloat16 they were off by 1.6 % on an H200."""
    ends = tuple(range(8, 8 + 4 * 32, 4))
    layout = PackedLayout([4], [ends])
    _, keys = varlen._sequences(layout, ends[-1], ends[-1], torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    value = torch.randn(ends[-1], 2, 8, generator=draw)
    weights = torch.randn(len(keys.places), 2, 8, generator=draw).bfloat16()

    def gradient(dtype: torch.dtype, gather: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = value.to(dtype).requires_grad_()
        (found,) = torch.autograd.grad((gather(leaf) * weights.to(dtype)).sum(), leaf)
        return found.double()

    exact = gradient(torch.float64, lambda leaf: leaf[keys.places])
    ours = gradient(torch.bfloat16, lambda leaf: varlen._Repeated.apply(leaf, keys))
    assert (ours - exact).norm() <= 2e-3 * exact.norm()  # bfloat16 rounds once, to 2^-9


@pytest.mark.parametrize("name", SHARING)
def test_a_model_reads_the_same_through_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a layer's prefix has a mask of its own (Gemma3's images), that layer stays with the segments."""
    calls: list[int] = []
    let_a_cpu_use_it(monkeypatch)
    model = prepared(name, "plain")
    packed = packed_batch(name, model)
    packed[LAYOUT].varlen = False
    split, _ = response_logps(model, packed)
    packed[LAYOUT].varlen = True
    response_logps(model, packed)  # the trial is over

    def counted(
        query: Tensor, key: Tensor, value: Tensor, *rest: Any, scale: Any, window_size: Any, enable_gqa: Any
    ) -> Tensor:
        calls.append(1)
        return kernel(query, key, value, *rest, scale=scale, window_size=window_size, enable_gqa=enable_gqa)

    monkeypatch.setattr(varlen, "_installed", lambda: counted)
    one, _ = response_logps(model, packed)
    torch.testing.assert_close(one, split, atol=2e-5, rtol=0)
    assert bool(calls) == (name != "gemma3")


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl"])
def test_a_row_in_several_passes_goes_through_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later passes read responses alone, behind the kept keys and values of the prefix."""
    let_a_cpu_use_it(monkeypatch)
    model = prepared(name, "plain")
    packed = packed_row(name, model, (5, 9, 3, 12))
    packed.pop("labels")
    inputs = shared_inputs(model, packed)

    def hidden(limit: float) -> Tensor:
        parts = [model(**{k: v for k, v in part.items() if k != "row_images"}, use_cache=False).logits
                 for part, _ in row_passes(inputs, limit)]  # fmt: skip
        return torch.cat(parts, dim=1)

    with torch.inference_mode():
        whole, passes = hidden(10_000), hidden(1)
    torch.testing.assert_close(passes, whole, atol=2e-5, rtol=0)


def test_where_the_kernel_is_not_for() -> None:
    query = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16)
    assert not can_use_varlen(query, query, None, 0.0)  # a CPU
    assert not can_use_varlen(query.float(), query.float(), None, 0.0)


# A run's first batch


def admitted(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any], *, tried: bool
) -> tuple[PromptSharing, Any, Any]:
    """A first batch with this kernel, which the trial lets pass if `tried`."""
    model = prepared("internvl", "plain")
    packed = packed_batch("internvl", model)
    expected, _ = response_logps(model, packed)
    let_a_cpu_use_it(monkeypatch)
    if tried:
        monkeypatch.setattr(shared_prefix, "can_use_varlen", lambda query, key, mask, dropout: mask is None)
    monkeypatch.setattr(varlen, "_installed", lambda: run)
    sharing = PromptSharing("shared", [model], all_ranks=False)
    batch = sharing.admit(packed, [model])
    torch.testing.assert_close(response_logps(model, batch)[0], expected, atol=2e-5, rtol=0)
    return sharing, batch, model


def test_a_kernel_that_is_right_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    sharing, batch, _ = admitted(monkeypatch, kernel, tried=False)
    assert (sharing.on, sharing.kernel, batch[LAYOUT].varlen) == (True, True, True)


@pytest.mark.parametrize("tried", [False, True])
@pytest.mark.parametrize("name", [*FAILURES, "is wrong"])
def test_a_kernel_that_fails_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, tried: bool
) -> None:
    """By the trial, or, if only a whole model shows it, by the first batch."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    sharing, batch, _ = admitted(monkeypatch, raising(FAILURES[name]) if name in FAILURES else top_left, tried=tried)
    assert sharing.on
    assert sharing.kernel == batch[LAYOUT].varlen == (not tried)
    said = caplog.text
    assert "segment by segment" in said
    assert (name if name in FAILURES else "differ" if tried else "off by") in said


@pytest.mark.parametrize("tried", [False, True])
def test_a_first_batch_without_memory_stops_the_run(monkeypatch: pytest.MonkeyPatch, tried: bool) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        admitted(monkeypatch, raising(torch.OutOfMemoryError("CUDA out of memory")), tried=tried)
