"""TRL vision-preference rows → one batch that holds each of its prompts and responses once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mpo.multimodal.errors import DataError
from mpo.multimodal.images import image_sha256, load_image
from mpo.multimodal.jpeg import JpegAugmentation, compressed
from mpo.multimodal.memory_bound import KEPT_BYTES, Kept
from mpo.multimodal.packing import LAYOUT, can_be_shared, pack_rows, within_limit
from mpo.multimodal.positions import RowPositions
from mpo.multimodal.prefix import IGNORED, EncodedPrompt, encode_prompt, stack_rows
from mpo.multimodal.vision import row_images
from mpo.reference import prompt_key, response_keys
from mpo.rows import CheckedPair, Row, check_row, naming, row_name
from mpo.spans import Span


class _Response(NamedTuple):
    """Token ids, and the range of them that counts; None: all. Other parts of one text are responses of their own."""

    ids: tuple[int, ...]
    counted: Span | None = None


@dataclass
class _Group:
    """One prompt, its key if that is asked for, and its distinct responses in a batch → place."""

    prompt: EncodedPrompt
    key: str = ""
    responses: dict[_Response, int] = field(default_factory=dict)

    def place(self, response: list[int], counted: Span | None = None) -> int:
        return self.responses.setdefault(_Response(tuple(response), counted), len(self.responses))


class PreferenceCollator:
    """Rows → model inputs, `pair_index` (B, 2), `pair_ids`, `pair_lengths` (tokens of the chosen responses),
    `pair_prompts` (how many different prompts there are), `pair_rejected_share` (B,), the share of the rejected tokens
    that count, and, if any row has a weight, `pair_weight` (B,).

    Pairs with the same prompt and images share them, and a response that is part of several pairs is held once: the
    batch holds M ≤ 2B responses, and `pair_index` gives the chosen and the rejected one of each pair.
    Prompts come in the order of their first pair, responses row after row. Encoded prompts are kept from epoch to
    epoch, as many as fit.

    A row's `rejected_span` (`mpo/spans.py`) leaves labels on the tokens of that part alone. A response has one sum of
    log-probs per part that counts: a text that is rejected with two different spans, or chosen in one pair and
    rejected with a span in another, goes in once for each.

    Args:
        processor: of the model that is trained.
        image_root: folder that image paths must stay inside.
        with_keys: add `response_keys`, by which `mpo.reference` finds a response again.
        shared_prefix: packed rows (`mpo.multimodal.packing`), for a model that can read them, instead of one row
            per response. If a prompt cannot be shared because it ends in an image, its whole batch falls back to one
            row per response.
        max_row_tokens: a packed row that would be longer is split, which repeats its prompt; a row always holds at
            least one response. None never splits.
        max_length: most tokens of prompt (with its images) and longer response; a longer row is an error, never cut.
        jpeg: compresses images at random (`mpo/multimodal/jpeg.py`); None leaves all as they are.
        positions: adds the model's `position_ids` to each batch; None leaves them to the model.
    """

    def __init__(
        self,
        processor: Any,
        *,
        image_root: str | Path | None = None,
        with_keys: bool = False,
        shared_prefix: bool = False,
        max_row_tokens: int | None = None,
        max_length: int | None = None,
        jpeg: JpegAugmentation | None = None,
        positions: RowPositions | None = None,
    ) -> None:
        self.jpeg, self.positions = jpeg, positions
        self.processor, self.with_keys, self.shared_prefix = processor, with_keys, shared_prefix
        self._prompts: Kept[tuple[EncodedPrompt, str]] = Kept(KEPT_BYTES)
        self.image_root, self.max_row_tokens, self.max_length = image_root, max_row_tokens, max_length
        tokenizer = processor.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if pad is None:
            raise DataError("the tokenizer has neither a pad nor an eos token: set processor.tokenizer.pad_token")
        self.pad_token_id = int(pad)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Collate B rows.

        Raises:
            DataError: naming the row: a missing column, an empty response, a control token in a response, images and
                placeholders that differ in number, two equal responses, a bad weight, more than `max_length` tokens.
        """
        names = [row_name(row, index) for index, row in enumerate(rows)]
        groups: dict[Any, _Group] = {}
        pairs: list[tuple[Any, int, int]] = []  # key of the prompt, places of chosen and rejected among its responses
        weights, lengths, shares = [], [], []
        for row, name in zip(rows, names, strict=True):
            with naming(name):
                pair = self.check(row)
                images = [load_image(image, root=self.image_root) for image in pair.images]
                identity = (pair.prompt, *map(image_sha256, images))
                quality = self.jpeg.quality(row.get("data_augment"), "\0".join(identity)) if self.jpeg else 0
                key = (*identity, quality)
                if key not in groups:
                    groups[key] = _Group(*self._prompts(key, partial(self._encoded, pair.prompt, images, quality)))
                pair.check_length(len(groups[key].prompt.input_ids), self.max_length)
                pairs.append((key, groups[key].place(pair.chosen), groups[key].place(pair.rejected, pair.counted)))
                weights.append(pair.weight)
                lengths.append(len(pair.chosen))
                shares.append(pair.rejected_tokens / len(pair.rejected))
        first = dict(zip(groups, _starts([len(group.responses) for group in groups.values()]), strict=True))
        batch = self._stacked([*groups.values()])
        if self.positions is not None:
            batch |= self.positions(batch)
        batch["pair_index"] = torch.tensor(
            [[first[key] + chosen, first[key] + rejected] for key, chosen, rejected in pairs]
        )
        batch["pair_ids"], batch["pair_prompts"], batch["pair_lengths"] = names, len(groups), lengths
        batch["pair_rejected_share"] = torch.tensor(shares)
        if self.with_keys:
            batch["response_keys"] = [
                key for group in groups.values() for key in response_keys(group.key, [*group.responses])
            ]
        if any(row.get("weight") is not None for row in rows):
            batch["pair_weight"] = torch.tensor(weights)
        return batch

    def _encoded(self, text: str, images: list[Any], quality: int) -> tuple[EncodedPrompt, str]:
        shown = [compressed(image, quality) for image in images] if quality else images
        prompt = encode_prompt(self.processor, text, shown)
        if not self.with_keys:
            return prompt, ""
        features = {**prompt.token_features, **prompt.image_features}
        return prompt, prompt_key([prompt.input_ids, *(features[name] for name in sorted(features))])

    def check(self, row: Row) -> CheckedPair:
        """What `mpo.rows.check_row` finds with this processor; images are not opened."""
        return check_row(self.processor, row)

    def _stacked(self, groups: list[_Group]) -> dict[str, Any]:
        image_token_id = getattr(self.processor, "image_token_id", None)
        shared = self.shared_prefix and all(can_be_shared(group.prompt, image_token_id) for group in groups)
        rows = [(group.prompt, some) for group in groups for some in self._row_responses(group, shared=shared)]
        prompts = [prompt for prompt, _ in rows]
        ids = [[response.ids for response in some] for _, some in rows]
        if shared:
            batch = pack_rows(prompts, ids, pad_token_id=self.pad_token_id)
            starts = [(row, start + 1) for row in range(len(rows)) for start, _ in batch[LAYOUT].segments(row)]
        else:
            stacked = stack_rows(prompts, [only for (only,) in ids], pad_token_id=self.pad_token_id)
            batch = {**stacked, **row_images(prompts)}
            starts = [(row, len(prompt.input_ids)) for row, prompt in enumerate(prompts)]
        for (row, start), response in zip(starts, (one for _, some in rows for one in some), strict=True):
            if response.counted is not None:
                first, last = response.counted
                own = batch["labels"][row, start : start + len(response.ids)]  # a view
                own[:first] = own[last:] = IGNORED
        return batch

    def _row_responses(self, group: _Group, *, shared: bool) -> Iterator[list[_Response]]:
        """The group's responses, cut into rows: one per row, or as many as `max_row_tokens` allows."""
        limit = 0 if not shared else math.inf if self.max_row_tokens is None else self.max_row_tokens
        responses = [*group.responses]
        for row in within_limit(len(group.prompt.input_ids) - 1, [len(response.ids) for response in responses], limit):
            yield [responses[place] for place in row]


def collators(
    processor: Any, policy: Any, args: Any, *, shared_prefix: bool
) -> tuple[PreferenceCollator, PreferenceCollator, JpegAugmentation]:
    """What makes the batches of training and of evaluation, which shows images as they are; and what compresses them.

    Args:
        processor: of the policy.
        policy: the model, without wrappers around it.
        args: `MPOConfig`.
        shared_prefix: see `PreferenceCollator`.
    """
    jpeg = JpegAugmentation("none" if args.precompute_ref_log_probs else args.jpeg_augmentation, seed=args.seed)
    made = partial(
        PreferenceCollator,
        processor,
        with_keys=args.precompute_ref_log_probs,
        shared_prefix=shared_prefix,
        max_row_tokens=args.max_row_tokens,
        max_length=args.max_length,
        positions=RowPositions.without_weights(policy),
    )
    return made(jpeg=jpeg), made(), jpeg


def first_pairs(batch: dict[str, Any], pairs: int) -> dict[str, Any]:
    """The batch with only its first pairs; the responses of the others still run, but count nowhere.

    Args:
        batch: of `PreferenceCollator`.
        pairs: how many to keep, 0 or more; there may be fewer.
    """
    per_pair = ("pair_index", "pair_ids", "pair_lengths", "pair_weight", "pair_rejected_share")
    return {name: value[:pairs] if name in per_pair else value for name, value in batch.items()}


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:index]) for index in range(len(sizes))]
