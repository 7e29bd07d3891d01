"""One prompt, many continuations: the rows that a model is given.

A prompt is encoded once (its images are decoded, cut into tiles and normalised once) and then joined with each
of its continuations. Rows are the paired layout: the prompt precedes every continuation
(`mpo/multimodal/packing.py` has the layout that shares it). The same function serves policy, reference and PRM.

Dimension legend: P prompt tokens, C continuation tokens, B rows, T tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from mpo.multimodal.errors import DataError
from mpo.multimodal.messages import control_tokens

IGNORED = -100  # label of a position that is not scored


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as its processor made it.

    Attributes:
        input_ids: (P,) int64, image placeholders expanded.
        token_features: other per-token tensors, each (P,), e.g. `token_type_ids`.
        image_features: everything else (`pixel_values`, `image_grid_thw`, …), concatenated over rows on dim 0.
    """

    input_ids: Tensor
    token_features: Mapping[str, Tensor]
    image_features: Mapping[str, Tensor]


def encode_prompt(processor: Any, text: str, images: Sequence[Image.Image] = ()) -> EncodedPrompt:
    """Tokenise one rendered prompt and preprocess its images; a prompt that opens with BOS gets no second one.

    Raises:
        DataError: the processor refused it, e.g. because placeholders and images differ in number.
    """
    once = one_bos(processor, text)
    try:
        encoded = processor(text=[text], images=[list(images)] if images else None, return_tensors="pt", **once)
    except (ValueError, IndexError) as error:
        message = f"the processor refused a prompt with {len(images)} image(s): {error}"
        raise DataError(message, reason="prompt that the processor refuses") from error
    input_ids = encoded["input_ids"]
    others = {key: value for key, value in encoded.items() if key not in ("input_ids", "attention_mask")}
    per_token = {k: v[0] for k, v in others.items() if v.shape == input_ids.shape}
    per_image = {k: v for k, v in others.items() if v.shape != input_ids.shape}
    return EncodedPrompt(input_ids[0], per_token, per_image)


def encode_prompts(processor: Any, texts: Sequence[str], images: Sequence[Image.Image] = ()) -> list[EncodedPrompt]:
    """Several rendered prompts about the same images, which are preprocessed and tokenised once.

    No token reaches over a control token, such as an image's placeholder. So behind the last one that all texts begin
    with, each text is tokenised alone, and joined with the first prompt's tokens before it. Where that does not give
    the first prompt again, every prompt is encoded for itself.
    """
    first = encode_prompt(processor, texts[0], images)
    if len(texts) == 1:
        return [first]
    prompts = _joined(processor, first, texts)
    rest = prompts or [first, *(encode_prompt(processor, text, images) for text in texts[1:])]
    return [replace(prompt, image_features=first.image_features) for prompt in rest]


def _joined(processor: Any, first: EncodedPrompt, texts: Sequence[str]) -> list[EncodedPrompt] | None:
    """The first prompt with the ends of all texts; None where its own end does not give it again."""
    common = texts[0][: shared_length(texts)]
    found = [(common.rfind(token), token) for token in control_tokens(processor)]
    cut = max((place + len(token) for place, token in found if place >= 0), default=0)
    image = getattr(processor, "image_token", None)
    if cut in (0, len(common)) or (image and any(image in text[cut:] for text in texts)):
        return None
    ends = processor.tokenizer([text[cut:] for text in texts], add_special_tokens=False)["input_ids"]
    kept = len(first.input_ids) - len(ends[0])
    same = kept > 0 and first.input_ids[kept:].tolist() == list(ends[0])
    if not same or any(bool(feature[kept:].any()) for feature in first.token_features.values()):
        return None
    before = first.input_ids[:kept]
    return [
        EncodedPrompt(
            torch.cat([before, before.new_tensor(end)]),
            {name: _extended(value[:kept], kept + len(end)) for name, value in first.token_features.items()},
            first.image_features,
        )
        for end in ends
    ]


def shared_length(sequences: Sequence[Any]) -> int:
    """How many items all sequences begin with.

    Example:
        >>> shared_length(["image, a", "image, b", "image, abc"]), shared_length([[1, 2], [1, 2]])
        (7, 2)
    """
    first, last = min(sequences), max(sequences)  # all others lie between them
    return next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def one_bos(processor: Any, text: str) -> dict[str, bool]:
    """Keyword arguments for the tokenizer: a text that opens with BOS gets no second one."""
    bos = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if bos and text.startswith(bos) else {}


def stack_rows(
    prompts: Sequence[EncodedPrompt],
    continuations: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """Row i = prompt i ⊕ continuation i, padded on the right (on the left for generation).

    Returns:
        `input_ids`, `attention_mask` and `labels` (B, T): labels are the continuation's ids, -100 elsewhere;
        per-token features padded with 0 (B, T); image features concatenated over rows, their other dimensions padded
        with 0 (processors that pad an image's tiles, e.g. Idefics3's, read a tile of zeros as no tile).
    """
    if len(prompts) != len(continuations):
        raise DataError(
            f"expected one continuation per prompt, got {len(prompts)} prompts, {len(continuations)} continuations"
        )
    rows = [
        torch.cat([p.input_ids, torch.tensor(c, dtype=torch.long)]) for p, c in zip(prompts, continuations, strict=True)
    ]
    width = max(len(row) for row in rows)
    batch: dict[str, Tensor] = {
        "input_ids": torch.stack([_pad(row, width, pad_token_id, side) for row in rows]),
        "attention_mask": torch.stack([_pad(torch.ones_like(row), width, 0, side) for row in rows]),
        "labels": torch.stack(
            [
                _pad(row.clone().index_fill_(0, torch.arange(len(p.input_ids)), IGNORED), width, IGNORED, side)
                for row, p in zip(rows, prompts, strict=True)
            ]
        ),
    }
    for key in {k: None for prompt in prompts for k in prompt.token_features}:
        features = [p.token_features.get(key, torch.zeros_like(p.input_ids)) for p in prompts]
        batch[key] = torch.stack(
            [_pad(_extended(f, len(row)), width, 0, side) for f, row in zip(features, rows, strict=True)]
        )
    for key in {k: None for prompt in prompts for k in prompt.image_features}:
        batch[key] = _concatenated([prompt.image_features[key] for prompt in prompts if key in prompt.image_features])
    return batch


def _concatenated(features: Sequence[Tensor]) -> Tensor:
    """On dim 0; the other dimensions are padded with 0 at their end to the largest."""
    shape = [max(sizes) for sizes in zip(*(feature.shape[1:] for feature in features), strict=True)]
    padded = []
    for feature in features:
        missing = [(0, most - size) for size, most in zip(feature.shape[1:], shape, strict=True)]
        flat = [number for pair in reversed(missing) for number in pair]  # torch pads the last dimension first
        padded.append(torch.nn.functional.pad(feature, flat) if any(flat) else feature)
    return torch.cat(padded)


def _extended(feature: Tensor, length: int) -> Tensor:
    """A per-token feature of a prompt, 0 on the continuation (0 means "text" in every processor that has one)."""
    return torch.nn.functional.pad(feature, (0, length - len(feature)))


def _pad(row: Tensor, width: int, value: int, side: str) -> Tensor:
    missing = width - len(row)
    return torch.nn.functional.pad(row, (missing, 0) if side == "left" else (0, missing), value=value)
