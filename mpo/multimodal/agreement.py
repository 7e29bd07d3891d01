"""Whether a model reads a packed row as it reads its responses one by one, up to what rounding does there and then.

A run's first packed batch is read in both layouts, without gradients. How far two right ways may lie apart depends on
model, number type and kernels, so it is measured on the spot: each response is read alone twice, once with columns of
padding in front of it, which move every token to another tile and another angle of the rotary embedding. Values are
compared token by token, over the tokens of all these responses together, so that an answer of one word does not decide.

    mean |packed − alone| ≤ max(1e-3, ε, (2 + 4 / √n) · mean |padded − alone|)        n values; ε: 0.008 in bfloat16

Random models of 12 and 24 layers in bfloat16 had 0.63 to 1.06 times the noise, and 2.9 times where all that was
compared were four tokens (`docs/performance.md`): the two means of few values scatter, hence the second term. Padding
behind a row is no measure: it left the tiles of most kernels as they were. In float32 rounding is far below 1e-3, and
nothing is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from mpo.multimodal.packing import LAYOUT, PackedLayout, paired_rows
from mpo.multimodal.scoring import innermost
from mpo.multimodal.varlen import why_no_kernel
from mpo.multimodal.vision import IMAGES

logger = logging.get_logger(__name__)

# What a model gives for each response of a batch: values of its tokens, or of its steps. The second argument is the
# response's place in the packed batch where the inputs hold that one alone, else None.
Read = Callable[[Mapping[str, Any], int | None], Sequence[Tensor]]

TOLERANCE = 1e-3  # in nats
FACTOR, FEW = 2.0, 4.0  # times the noise, and more where few values were compared
PADDING = 8  # columns


class Found(NamedTuple):
    """How a packed batch may be read: through the kernel, by segments, or not at all; and why."""

    shares: bool
    kernel: bool
    reason: str


def check_first_batch(
    batch: Mapping[str, Any],
    reads: Sequence[Read],
    *,
    models: Sequence[Any],
    most: int = 4,
    fill: bool = False,
    summed: Callable[[Tensor], Tensor] = lambda values: values,
) -> Found:
    """Compare the packed batch with its responses one by one: first through the kernel where there is one.

    Every call makes the same forward passes whatever its batch, if `fill` is set: of several ranks, each pass of a
    wrapped model is a collective. Modes and random state stay.

    Args:
        batch: packed; or, where another rank's is, paired: it then agrees.
        reads: one for each model.
        models: whose number type counts, and whose mode.
        most: responses that are read alone.
        fill: read one several times rather than fewer.
        summed: over the ranks that decide together.

    Raises:
        torch.OutOfMemoryError: it is not blamed on the kernel.
    """
    device = batch["input_ids"].device
    dtype = computing_dtype(models[0], device)
    layout: PackedLayout | None = batch.get(LAYOUT)
    seen = batch[IMAGES].with_images() if IMAGES in batch else None
    which = telling_responses(layout, rows=seen, most=most, fill=fill) if layout else [0] * most
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            alone = [_alone(read, batch, which, with_noise=dtype != torch.float32) for read in reads]
            unusable = why_no_kernel()
            reasons = []
            for kernel in (True, False):
                if kernel and unusable is not None:
                    continue
                off = _difference(batch, reads, which, alone, kernel=kernel, summed=summed, eps=torch.finfo(dtype).eps)
                if off.agrees:
                    return Found(True, kernel, f"{off.words} on a first batch")
                reasons.append(off.words)
                if kernel:
                    logger.warning(
                        "attention runs segment by segment, not through the variable-length kernel: %s", off.words
                    )
            return Found(False, False, f"{reasons[-1]} on a first batch")
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def telling_responses(
    layout: PackedLayout, *, most: int, rows: Sequence[int] | None = None, fill: bool = False
) -> list[int]:
    """Places of the responses that tell most: those with others before them in their row first, the longest first.

    Args:
        layout: of the batch.
        most: how many.
        rows: whose responses may be taken, such as those that show an image: with sharded weights every rank has to
            run the vision tower equally often. None takes all.
        fill: repeat the last one rather than give fewer.

    Example:
        >>> telling_responses(PackedLayout([4], [(9, 11, 20)]), most=2)
        [2, 1]
    """
    segments = [(row, number, end - start) for row in range(len(layout.prefixes))
                for number, (start, end) in enumerate(layout.segments(row))]  # fmt: skip
    usable = [place for place, (row, *_) in enumerate(segments) if rows is None or row in rows]
    some = sorted(usable, key=lambda place: (segments[place][1] == 0, -segments[place][2]))[:most]
    return some + some[-1:] * (most - len(some)) if fill else some


def computing_dtype(model: Any, device: torch.device) -> torch.dtype:
    """The number type that a forward pass runs in, autocast included."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(innermost(model).parameters()).dtype


class _Off(NamedTuple):
    agrees: bool
    words: str


def _alone(
    read: Read, batch: Mapping[str, Any], which: Sequence[int], *, with_noise: bool
) -> list[tuple[Tensor, Tensor]]:
    """For each response its values read alone, and with padding behind it; of a paired batch, the batch again."""
    found = []
    for place in which:
        rows = [
            read(batch, None)[0] if LAYOUT not in batch
            else read(paired_rows(batch, responses=[place], padding=padding), place)[0]
            for padding in ((0, PADDING) if with_noise else (0,))
        ]  # fmt: skip
        found.append((rows[0], rows[-1]))
    return found


def _difference(
    batch: Mapping[str, Any],
    reads: Sequence[Read],
    which: Sequence[int],
    alone: Sequence[Sequence[tuple[Tensor, Tensor]]],
    *,
    kernel: bool,
    summed: Callable[[Tensor], Tensor],
    eps: float,
) -> _Off:
    """The model that is farthest off, over all ranks."""
    if LAYOUT in batch:
        batch[LAYOUT].varlen = kernel
    failure = ""
    try:
        packed = [read(batch, None) for read in reads]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not kernel:
            raise
        failure = f"it failed with {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        packed = [[values.new_full(values.shape, torch.nan) for values, _ in some] for some in alone]
        at = [*range(len(which))]
    else:
        at = [*which] if LAYOUT in batch else [0] * len(which)
    sums = torch.stack(
        [
            torch.stack([_sums(values[place], *some) for place, some in zip(at, own, strict=True)]).sum(dim=0)
            for values, own in zip(packed, alone, strict=True)
        ]
    )  # fmt: skip  (models, 3)
    worst = _Off(True, "")
    largest = -1.0
    for off, noise, tokens in summed(sums).tolist():
        tokens = max(tokens, 1)
        mean, limit = off / tokens, max(TOLERANCE, eps, (FACTOR + FEW / tokens**0.5) * noise / tokens)
        agrees = mean <= limit  # a NaN is no agreement
        if not mean / limit <= largest:
            largest = mean / limit
            said = f"its values differ from those of a row per response by {mean:.1e} a token (limit {limit:.1e})"
            worst = _Off(agrees and worst.agrees, failure or said)
    return worst


def _sums(packed: Tensor, alone: Tensor, padded: Tensor) -> Tensor:
    """Summed |packed − alone| and |padded − alone| of one response, and its number of values: (3,)."""
    number = alone.new_tensor(float(alone.numel()))
    return torch.stack([(packed - alone).abs().sum(), (padded - alone).abs().sum(), number])
