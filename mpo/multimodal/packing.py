"""One prompt and its responses in one row, so that the prompt goes through the model once.

Row: `prompt[:-1] | p_last, response 1 | p_last, response 2 | …`. The prompt's last token opens every response, at the
position that it has in the prompt, and is part of no prefix. So each position has one label, and the label shift of a
causal model works unchanged. `mpo/multimodal/shared_prefix.py` makes the model read such rows. Rows may hold different
numbers of responses; wherever responses are listed, it is row after row.

Dimension legend: B rows, T tokens of the longest row, M responses of all rows together, P prompt tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mpo.multimodal.errors import DataError
from mpo.multimodal.prefix import IGNORED, EncodedPrompt, stack_rows
from mpo.multimodal.vision import BLANK, IMAGES, RowImages, row_images

LAYOUT = "shared_prefix"  # key of the layout in a batch, and keyword argument of the model


class PackedLayout:
    """Where the parts of each packed row lie.

    A plain class: wrappers of a model (DDP, FSDP) rebuild tuples and dataclasses among its arguments, not this.

    Args:
        prefixes: for each of B rows, the number of tokens of `prompt[:-1]`, ≥ 1.
        ends: for each row, where its responses end, at least one; the first starts at the end of the prefix, each
            other one where the one before it ends.
        per_token: names of the batch's tensors that hold one value per token, beside ids, mask and labels.

    Attributes:
        varlen: let attention use the variable-length kernel where it can (`varlen.py`); False once a first batch has
            shown that it must not.
        derived: what attention has worked out from the layout, for the layers that follow.
        kept: keys and values of the prefix by layer, of a row that is read in several passes (`passes.py`); else None.
        begins: where each row begins if all of them are one row without padding (`unpadded.py`); else None.
    """

    def __init__(self, prefixes: Sequence[int], ends: Sequence[Sequence[int]], per_token: Iterable[str] = ()) -> None:
        self.prefixes, self.ends = tuple(prefixes), tuple(map(tuple, ends))
        self.per_token = {"input_ids", "attention_mask", "labels", *per_token}
        self.varlen = True
        self.derived: dict[Any, Any] = {}
        self.kept: dict[Any, tuple[Tensor, Tensor]] | None = None
        self.begins: tuple[int, ...] | None = None

    def row_of(self, tensor: Tensor, row: int) -> Tensor:
        """The queries, keys or values of one row, (1, H, T, D), of those of the batch."""
        if self.begins is None:
            return tensor[row : row + 1]
        return tensor[:, :, self.begins[row] : self.begins[row] + self.ends[row][-1]]

    def segments(self, row: int) -> Iterator[tuple[int, int]]:
        """(start, end) of each response of a row; its first token is p_last."""
        starts = (self.prefixes[row], *self.ends[row][:-1])
        yield from zip(starts, self.ends[row], strict=True)

    def prefix_mask(self, attention_mask: Tensor | None, row: int) -> Tensor | None:
        """(1, P, P): how a row's prefix attends to itself, of a model's mask (B or 1, 1, T, T); None for causal."""
        if attention_mask is None:
            return None
        prefix = self.prefixes[row]
        return attention_mask[min(row, len(attention_mask) - 1), :, :prefix, :prefix]


def can_be_shared(prompt: EncodedPrompt, image_token_id: int | None, *, length: int | None = None) -> bool:
    """Whether the first `length` tokens of a prompt (all by default) can precede several responses.

    At least two tokens; the last of them, which is repeated before each response, and all behind it are text: an
    image's token would lose its image.
    """
    length = len(prompt.input_ids) if length is None else length
    after = slice(length - 1, None)
    is_image = image_token_id is not None and bool((prompt.input_ids[after] == image_token_id).any())
    has_features = any(bool(feature[after].any()) for feature in prompt.token_features.values())
    return length > 1 and not is_image and not has_features


def within_limit(prefix: int, lengths: Sequence[int], limit: float, *, repeat_prefix: bool = True) -> Iterator[range]:
    """Cut a prompt's responses into rows of at most `limit` tokens, in their order; a row holds at least one.

    Args:
        prefix: tokens of `prompt[:-1]`.
        lengths: tokens of each response, p_last not counted.
        repeat_prefix: whether every row holds it, or only the first.

    Example:
        >>> list(within_limit(10, [4, 4, 4], 20))
        [range(0, 2), range(2, 3)]
    """
    start, used = 0, prefix
    for place, length in enumerate(lengths):
        if place > start and used + 1 + length > limit:
            yield range(start, place)
            start, used = place, prefix if repeat_prefix else 0
        used += 1 + length
    yield range(start, len(lengths))


def pack_rows(
    prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[Sequence[int]]], *, pad_token_id: int
) -> dict[str, Any]:
    """Row i = prompt i once and all its responses, padded on the right.

    Args:
        prompts: B prompts of at least two tokens that end in text: every per-token feature of the last is 0.
        responses: for each prompt, the ids of its responses, at least one.

    Returns:
        `input_ids`, `attention_mask` and `labels` (B, T) int64, per-token features (B, T), image features as in
        `stack_rows`, and `shared_prefix`, the `PackedLayout`. Labels are the responses' ids, -100 elsewhere; so the
        label of each p_last is -100. With images, `row_images` as well, which records whose they are.

    Raises:
        DataError: a prompt that is too short, or without responses.
    """
    if len(prompts) != len(responses) or not all(responses):
        raise DataError(f"expected responses for each of {len(prompts)} prompts, got {[*map(len, responses)]}")
    if short := [index for index, prompt in enumerate(prompts) if len(prompt.input_ids) < 2]:
        raise DataError(f"expected prompts of at least 2 tokens, got a shorter one at {short[0]}")
    last = [int(prompt.input_ids[-1]) for prompt in prompts]
    continuations = [
        [*some[0], *(token for response in some[1:] for token in (p_last, *response))]
        for p_last, some in zip(last, responses, strict=True)
    ]
    batch: dict[str, Any] = dict(stack_rows(prompts, continuations, pad_token_id=pad_token_id))
    prefixes = [len(prompt.input_ids) - 1 for prompt in prompts]
    ends = [
        [prefix + end for end in itertools.accumulate(len(response) + 1 for response in some)]
        for prefix, some in zip(prefixes, responses, strict=True)
    ]
    layout = PackedLayout(prefixes, ends, {name for prompt in prompts for name in prompt.token_features})
    for row in range(len(prompts)):
        for start, _ in layout.segments(row):
            batch["labels"][row, start] = IGNORED
    return {**batch, LAYOUT: layout, **row_images(prompts)}


def paired_rows(
    packed: Mapping[str, Any], *, responses: Sequence[int] | None = None, padding: int = 0, pad_token_id: int = 0
) -> dict[str, Any]:
    """The same batch as M rows `prompt ⊕ response`, without a layout; images are repeated with their prompts.

    Used where a model cannot share a prefix, and to check one that can. Position ids are left out: the model finds its
    own, so the check covers those that came with the packed rows.

    Args:
        packed: from `pack_rows`.
        responses: places of those to keep; None keeps all.
        padding: columns in front of every row.
        pad_token_id: fills them.
    """
    layout: PackedLayout = packed[LAYOUT]
    places = [  # of the tokens of each new row in its packed row
        (row, [*range(prefix), *range(start, end)])
        for row, prefix in enumerate(layout.prefixes)
        for start, end in layout.segments(row)
    ]
    places = places if responses is None else [places[place] for place in responses]
    width = max(len(tokens) for _, tokens in places)
    fill = {"input_ids": pad_token_id, "labels": IGNORED}
    images: RowImages | None = packed.get(IMAGES)
    batch: dict[str, Any] = {}
    for name, tensor in packed.items():
        if name in layout.per_token:
            parts = [tensor[row, tokens] for row, tokens in places]
            value = fill.get(name, 0)
            batch[name] = torch.stack([pad(part, (padding, width - len(part)), value=value) for part in parts])
    if images is not None:
        rows = [row for row, _ in places]
        batch |= images.select(packed, rows)
        batch[IMAGES] = images.of_rows(rows)
    # another object, as the images of the rows are: models share the features of one object, not of one image
    return batch | {name: dict(packed[name]) for name in (BLANK,) if name in packed}


def segment_sums(values: Tensor, layout: PackedLayout) -> Tensor:
    """Sum a (B, T) tensor over each response: (M,)."""
    return torch.stack(
        [values[row, start:end].sum() for row in range(len(values)) for start, end in layout.segments(row)]
    )


def packed_positions(prompt: Tensor, layout: PackedLayout, width: int) -> Tensor:
    """Position ids of packed rows, from those of their prompts.

    Args:
        prompt: (A, B, P) int64, positions of the prompts on A axes (3 for multimodal rotary embeddings), padded on
            the right to the longest.
        width: T.

    Returns:
        (A, B, T): the prefix keeps its positions, each response continues from p_last's on every axis.
    """
    positions = prompt.new_zeros(prompt.shape[0], prompt.shape[1], width)
    for row, prefix in enumerate(layout.prefixes):
        positions[:, row, :prefix] = prompt[:, row, :prefix]
        for start, end in layout.segments(row):
            steps = torch.arange(end - start, device=prompt.device)
            positions[:, row, start:end] = prompt[:, row, prefix, None] + steps
    return positions
