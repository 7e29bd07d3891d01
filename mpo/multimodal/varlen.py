"""Split attention as one call of a variable-length kernel (`torch.nn.attention.varlen`), for CUDA in half precision.

Every part of a packed row becomes a sequence: the prefix, whose keys are its own, and each response, whose keys are the
prefix's and its own. The kernel aligns the causal mask at the end of both, so a response's first token sees the whole
prefix. Keys and values of a prefix are repeated for its responses, for as long as a layer runs; their gradients are
added up in float32.

The kernel is young and its signature moves: torch 2.10 has neither `scale` nor `window_size`, 2.11 no `enable_gqa`
(grouped heads pass through). So it is called as the installed function says, and tried once on a small row, forward and
backward, before a model of some shape may use it (`why_not`). Where it cannot run, attention runs segment by segment.

Dimension legend: B rows, T tokens of a row, K tokens of its keys, S keys of all sequences, H query heads, H' key heads,
D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers.utils import logging

from mpo.multimodal.packing import PackedLayout

logger = logging.get_logger(__name__)

NEEDED = ("scale", "window_size")  # arguments without which a model's attention cannot be said
TRIED_ROW = PackedLayout([37], [(54, 60)])  # on which the kernel is tried: 37 tokens, two responses of 17 and 6
TRIED_LIMIT = 0.05  # largest relative error there; bfloat16 rounds to 0.004, a causal mask at the wrong end is off by 1


def why_no_kernel() -> str | None:
    """Why no layer of this process can use the kernel; None where it is worth a try."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    found = _installed()
    return found if isinstance(found, str) else None


def can_use_varlen(query: Tensor, key: Tensor, attention_mask: Tensor | None, dropout: float) -> bool:
    """Whether the kernel computes this layer: CUDA, half precision, a plain causal prefix, no dropout, tried before.

    Args:
        query: (B, H, T, D).
        key: (B, H', K, D).
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    if not (query.is_cuda and half and attention_mask is None and dropout == 0.0):
        return False
    return (
        why_not(query.device, query.dtype, heads=query.shape[1], key_heads=key.shape[1], size=query.shape[-1]) is None
    )


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, scale: float | None, window: int | None
) -> Tensor:
    """(B, H, T, D) queries, (B, H', K, D) keys and values → (B, T, H, D); zero where a row is padded.

    Args:
        window: a token sees this many positions, itself included; None for all.
    """
    rows, heads, width, size = query.shape
    seen = key.shape[2]  # more than T where an earlier pass has read the prefix
    if "varlen" not in layout.derived:  # the same in every layer
        layout.derived["varlen"] = _sequences(layout, width, seen, query.device)
    queries, keys = layout.derived["varlen"]
    flat_keys, flat_values = (
        _Repeated.apply(x.transpose(1, 2).reshape(rows * seen, -1, size), keys) for x in (key, value)
    )
    flat = query.transpose(1, 2).reshape(rows * width, heads, size)
    whole = len(queries.places) == rows * width  # no padding: the tokens are the sequences, in their order
    kernel = _installed()
    assert not isinstance(kernel, str), kernel
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # cuDNN aligns a packed causal mask at its start
        attended = kernel(
            flat if whole else flat[queries.places],
            flat_keys,
            flat_values,
            queries.ends,
            keys.ends,
            queries.longest,
            keys.longest,
            **how(_signature(kernel), scale=scale, window=window, grouped=heads != key.shape[1]),
        )
    out = attended if whole else attended.new_zeros(rows * width, heads, size).index_copy(0, queries.places, attended)
    return out.view(rows, width, heads, size)


def how(signature: inspect.Signature, *, scale: float | None, window: int | None, grouped: bool) -> dict[str, Any]:
    """The keyword arguments that a kernel of this signature takes for a layer; it has those of `NEEDED`.

    Args:
        scale: of the scores; None for 1/√D.
        window: a token sees this many positions, itself included; None for all.
        grouped: whether several query heads share a key head.
    """
    said: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    return said | ({"enable_gqa": grouped} if "enable_gqa" in signature.parameters else {})


def lacking(signature: inspect.Signature) -> str | None:
    """Why a kernel of this signature cannot be told what a layer is; None where it can."""
    missing = [name for name in NEEDED if name not in signature.parameters]
    return f"varlen_attn of torch {torch.__version__} takes no {' and no '.join(missing)}" if missing else None


@cache
def why_not(device: torch.device, dtype: torch.dtype, *, heads: int, key_heads: int, size: int) -> str | None:
    """Why layers of such heads cannot use the kernel, tried once on a small row; None where they can.

    Raises:
        torch.OutOfMemoryError: there was no memory for it, which says nothing about the kernel.
    """
    reason = why_no_kernel()
    if reason is None:
        with ThreadPoolExecutor(1) as apart:  # where neither autocast nor inference mode nor hooks of the caller reach
            reason = apart.submit(_trial, device, dtype, heads, key_heads, size).result()
        if reason is not None:
            logger.warning("attention runs segment by segment, the variable-length kernel is not used: %s", reason)
    return reason


def _trial(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> str | None:
    """What is wrong with the kernel's values and gradients on `TRIED_ROW`, or how it failed."""
    width = TRIED_ROW.ends[0][-1]
    draw = torch.Generator(device).manual_seed(0)
    given = [
        torch.randn(1, number, width, size, generator=draw, device=device) for number in (heads, key_heads, key_heads)
    ]
    weights = torch.randn(1, width, heads, size, generator=draw, device=device)

    def run(attend: Callable[..., Tensor], number: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(number).requires_grad_() for tensor in given]
        out = attend(*leaves)
        return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), leaves)]

    try:
        for window in (None, 9):
            layout = PackedLayout(TRIED_ROW.prefixes, TRIED_ROW.ends)
            ours = run(lambda q, k, v: varlen_attention(q, k, v, layout, scale=size**-0.5, window=window), dtype)  # noqa: B023
            mask = _mask(layout, window).to(device)
            known = run(lambda q, k, v: _plain(q, k, v, mask), torch.float32)  # noqa: B023
            for name, one, other in zip(("values", "query", "key", "value"), ours, known, strict=True):
                error = float((one.float() - other).norm() / other.norm())
                if not error <= TRIED_LIMIT:
                    what = name if name == "values" else f"gradients of {name}"
                    return f"its {what} are off by {error:.2g} on a small row ({heads} and {key_heads} heads)"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def _mask(layout: PackedLayout, window: int | None) -> Tensor:
    """(T, T) bool: what each token of a one-row layout sees."""
    prefix, width = layout.prefixes[0], layout.ends[0][-1]
    places = torch.arange(width)
    position, owner = places.clone(), torch.full((width,), -1)
    for number, (start, end) in enumerate(layout.segments(0)):
        position[start:end] = places[prefix : prefix + end - start]
        owner[start:end] = number
    seen = (owner == -1) | (owner == owner[:, None])
    seen &= position <= position[:, None]
    return seen if window is None else seen & (position > position[:, None] - window)


@cache
def _installed() -> Callable[..., Any] | str:
    """The kernel of the installed torch, or why there is none that can be told what a layer is."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        return f"torch {torch.__version__} has no variable-length attention ({error})"
    return lacking(inspect.signature(varlen_attn)) or varlen_attn


_signature = cache(inspect.signature)


@dataclass(frozen=True)
class _Flat:
    """Sequences, one behind the other."""

    places: Tensor  # of their tokens in the B·T or B·K of the batch, int64
    ends: Tensor  # where each sequence ends, from 0, int32
    longest: int


@dataclass(frozen=True)
class _Keys(_Flat):
    """The keys of the sequences, S in all; what only gradients need is worked out when they are."""

    prefixes: list[
        tuple[int, int, list[int]]
    ]  # where it begins in the B·K, its tokens, where its copies begin in the S

    @cached_property
    def copies(self) -> list[tuple[slice, Tensor]]:
        """Each prefix in the B·K, and the places of its copies among the S, (copies, tokens) int64."""
        return [
            (
                slice(first, first + length),
                (torch.tensor(starts)[:, None] + torch.arange(length)).to(self.places.device),
            )
            for first, length, starts in self.prefixes
        ]

    @cached_property
    def once(self) -> Tensor:
        """Which of the S are of no prefix and so belong to one sequence alone, int64."""
        alone = torch.ones(len(self.places), dtype=torch.bool)
        for _, length, starts in self.prefixes:
            for start in starts:
                alone[start : start + length] = False
        return alone.nonzero().flatten().to(self.places.device)


class _Repeated(torch.autograd.Function):
    """(B·K, H', D) keys or values → those of all sequences, (S, H', D); the gradients of copies add up in float32."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, keys: _Keys) -> Tensor:
        ctx.keys, ctx.shape = keys, flat.shape
        return flat[keys.places]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), keys = gradients, ctx.keys
        out = gradient.new_zeros(ctx.shape)
        out[keys.places[keys.once]] = gradient[keys.once]
        for prefix, copies in keys.copies:
            out[prefix] = gradient[copies].sum(dim=0, dtype=torch.float32)
        return out, None


def _sequences(layout: PackedLayout, width: int, seen: int, device: torch.device) -> tuple[_Flat, _Keys]:
    """The queries of each sequence, and its keys.

    Where the prefix stands before the tokens, read by an earlier pass, it has keys and no queries.
    """
    left_out = seen - width
    queries: list[list[Tensor]] = []
    keys: list[list[Tensor]] = []
    prefixes, behind = [], 0
    begins = layout.begins or [row * width for row in range(len(layout.prefixes))]  # of the queries
    for row, (prefix, begin) in enumerate(zip(layout.prefixes, begins, strict=True)):
        first = begin + row * left_out  # of the keys
        before = torch.arange(first, first + prefix)
        starts = []
        if not left_out:
            queries.append([before])
            keys.append([before])
            starts.append(behind)
            behind += prefix
        for start, end in layout.segments(row):
            queries.append([torch.arange(begin + start - left_out, begin + end - left_out)])
            keys.append([before, torch.arange(first + start, first + end)])
            starts.append(behind)
            behind += prefix + end - start
        prefixes.append((first, prefix, starts))
    return _Flat(*_flat(queries, device)), _Keys(*_flat(keys, device), prefixes)


def _flat(sequences: list[list[Tensor]], device: torch.device) -> tuple[Tensor, Tensor, int]:
    """All places in one tensor, int64; where each sequence ends, from 0, int32; the longest one's length."""
    lengths = [sum(map(len, parts)) for parts in sequences]
    places = torch.cat([part for parts in sequences for part in parts])
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return places.to(device), ends.to(device), max(lengths)
