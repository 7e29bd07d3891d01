"""N responses to one problem in one row: the question and its images go through the model once.

The shared prefix ends at the last token that all rows have in common, at or before the first position that is read.
In VisualPRM's layout that lies inside the first user turn, because it holds the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mpo.multimodal.agreement import Found, check_first_batch
from mpo.multimodal.packing import LAYOUT, can_be_shared, pack_rows, paired_rows
from mpo.multimodal.positions import RowPositions
from mpo.multimodal.prefix import IGNORED, EncodedPrompt, shared_length, stack_rows
from mpo.multimodal.scoring import logits_at
from mpo.multimodal.shared_prefix import enable_shared_prefix, why_not_shared
from mpo.multimodal.vision import encode_images_once, row_images
from rewards.prm.rendering import RenderedSolution


def prepare_sharing(model: Any) -> bool:
    """Prepare a model in place for `rows_of`: whether it can read packed rows; an image is encoded once either way."""
    encode_images_once(model)
    if why_not_shared(model) is not None:
        return False
    enable_shared_prefix(model)
    return True


def rows_of(
    problems: Sequence[Sequence[RenderedSolution]],
    processor: Any,
    *,
    shared: bool,
    positions: RowPositions | None = None,
) -> tuple[dict[str, Any], list[list[int]]]:
    """Model inputs for responses to several problems, and where to read them.

    Args:
        problems: for each problem its rendered responses, all with the same images.
        processor: of the model that will read them.
        shared: packed rows, for a model that can read them, wherever responses have a prefix in common.
        positions: adds the model's `position_ids`; None leaves them to the model.

    Returns:
        The inputs, and for each of their rows the positions to read, response after response.
    """
    flat = [solution for some in problems for solution in some]
    pad_token_id = processor.tokenizer.pad_token_id
    image_token_id = getattr(processor, "image_token_id", None)
    packs = [_pack(some, image_token_id) for some in problems] if shared else []
    if not shared or any(pack is None for pack in packs):
        prompts = [solution.prompt for solution in flat]
        rows = stack_rows(prompts, [solution.continuation for solution in flat], pad_token_id=pad_token_id)
        placed = {} if positions is None else positions(rows)
        stacked: dict[str, Any] = {**rows, **row_images(prompts), **placed}
        _mark_text(stacked, [(row, 0, solution.text) for row, solution in enumerate(flat)])
        return stacked, [list(solution.read_positions) for solution in flat]
    prefixes, solutions = zip(*(pack for pack in packs if pack is not None), strict=True)
    batch = pack_rows(prefixes, [[tail for tail, _ in some] for some in solutions], pad_token_id=pad_token_id)
    read = [
        [start + offset for (start, _), (_, offsets) in zip(batch[LAYOUT].segments(row), some, strict=True)
         for offset in offsets]
        for row, some in enumerate(solutions)
    ]  # fmt: skip
    moved = [(row, start - len(prefix.input_ids) + 1) for row, prefix in enumerate(prefixes)
             for start, _ in batch[LAYOUT].segments(row)]  # fmt: skip
    _mark_text(batch, [(*place, solution.text) for place, solution in zip(moved, flat, strict=True)])
    return batch | ({} if positions is None else positions(batch)), read


def _mark_text(batch: dict[str, Any], texts: Sequence[tuple[int, int, tuple[int, ...] | None]]) -> None:
    """Leave labels on the responses' own text alone: of each its row, how far it was moved there, its positions."""
    if any(positions is None for _, _, positions in texts):
        return  # nobody asked
    labels = torch.full_like(batch["labels"], IGNORED)
    for row, moved, positions in texts:
        columns = [moved + position for position in positions or ()]
        labels[row, columns] = batch["input_ids"][row, columns]
    batch["labels"] = labels


def spans_of(inputs: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """(row, start, end) of each response of `rows_of`, in its order."""
    if LAYOUT not in inputs:
        return [(row, 0, inputs["input_ids"].shape[1]) for row in range(len(inputs["input_ids"]))]
    layout = inputs[LAYOUT]
    return [(row, *span) for row in range(len(layout.prefixes)) for span in layout.segments(row)]


def unshared(inputs: Mapping[str, Any], positions: Sequence[Sequence[int]]) -> tuple[dict[str, Any], list[list[int]]]:
    """Packed rows and their positions as a row for each response, for a model that misreads the former."""
    layout, rows = inputs[LAYOUT], []
    for row, prefix in enumerate(layout.prefixes):
        for start, end in layout.segments(row):
            rows.append([prefix + p - start for p in positions[row] if start <= p < end])
    return paired_rows(inputs), rows


def check_sharing(
    model: Any,
    inputs: Mapping[str, Any],
    positions: Sequence[Sequence[int]],
    label_ids: Sequence[int],
    *,
    fill: bool = False,
    summed: Callable[[Tensor], Tensor] = lambda values: values,
) -> Found:
    """Whether a model scores the responses of a packed batch as it scores two of them alone (`agreement.py`).

    Args:
        model: as it is called (wrapped).
        inputs, positions: from `rows_of`, on the model's device; packed, or another rank's batch is.
        label_ids: that are read.
        fill, summed: as in `check_first_batch`.
    """
    alone = unshared(inputs, positions)[1] if LAYOUT in inputs else None

    def read(given: Mapping[str, Any], place: int | None) -> list[Tensor]:
        """Log-probabilities of the labels at the steps of each response."""
        if place is None or alone is None:
            found = logits_at(model, given, positions, label_ids)
            whole = [logits.log_softmax(dim=-1) for logits in found]
            if alone is None:
                return whole
            sizes = iter(map(len, alone))
            return [part for row, values in enumerate(whole)
                    for part in values.split([next(sizes) for _ in inputs[LAYOUT].ends[row]])]  # fmt: skip
        padding = int((given["attention_mask"][0] == 0).sum())
        moved = [[padding + position for position in alone[place]]]
        return [logits_at(model, given, moved, label_ids)[0].log_softmax(dim=-1)]

    return check_first_batch(inputs, [read], models=[model], most=2, fill=fill, summed=summed)


Tail = tuple[list[int], list[int]]  # ids after the shared prefix, and the read positions counted from its last token


def _pack(solutions: Sequence[RenderedSolution], image_token_id: int | None) -> tuple[EncodedPrompt, list[Tail]] | None:
    """The responses to one problem as shared prefix and tails; None: nothing can be shared."""
    ids = [[*solution.prompt.input_ids.tolist(), *solution.continuation] for solution in solutions]
    length = min(1 + min(solution.read_positions[0] for solution in solutions), *(len(row) - 1 for row in ids))
    prompt = solutions[0].prompt
    length = min(length, len(prompt.input_ids), shared_length(ids))
    length = min([length, *(solution.text[0] for solution in solutions if solution.text)])  # each has its whole text
    if not can_be_shared(prompt, image_token_id, length=length):
        return None
    prefix = EncodedPrompt(
        prompt.input_ids[:length],
        {name: feature[:length] for name, feature in prompt.token_features.items()},
        prompt.image_features,
    )
    tails: list[Tail] = [
        (tokens[length:], [position - (length - 1) for position in solution.read_positions])
        for tokens, solution in zip(ids, solutions, strict=True)
    ]
    return prefix, tails
