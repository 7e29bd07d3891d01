"""TRL vision-preference rows → one batch in which each prompt and each response of it stands once.

A row is `{images | image, prompt, chosen, rejected}` and may carry `chosen_truncated`, `rejected_truncated`,
`problem_id` and `weight`. Rows are never changed. A row that breaks the format raises a DataError that names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mpo.multimodal.errors import DataError
from mpo.multimodal.images import image_sha256, load_image
from mpo.multimodal.messages import Message, prompt_text, response_ids
from mpo.multimodal.packing import can_be_shared, pack_rows
from mpo.multimodal.prefix import EncodedPrompt, encode_prompt, stack_rows
from mpo.multimodal.vision import row_images
from mpo.reference import response_keys

Row = Mapping[str, Any]


@dataclass
class _Group:
    """One prompt and its distinct responses in a batch: token ids → place."""

    prompt: EncodedPrompt
    responses: dict[tuple[int, ...], int] = field(default_factory=dict)

    def place(self, response: list[int]) -> int:
        return self.responses.setdefault(tuple(response), len(self.responses))


class PreferenceCollator:
    """Rows → model inputs, `pair_index` (B, 2), `pair_ids`, `pair_prompts` (how many different prompts there are) and,
    if any row has a weight, `pair_weight` (B,).

    Pairs with the same prompt and pictures share them, and a response that stands in several pairs goes in once: the
    batch holds M ≤ 2B responses, and `pair_index` says which is the chosen and which the rejected one of each pair.
    Prompts come in the order of their first pair, responses row after row.

    Args:
        processor: of the model that is trained.
        image_root: folder that image paths must stay inside.
        with_keys: add `response_keys`, by which `mpo.reference` finds a response again.
        shared_prefix: packed rows (`mpo.multimodal.packing`), for a model that can read them, instead of a row a
            response. A batch with a prompt that cannot be shared, since it ends in an image still has a row a response.
        max_row_tokens: a packed row that would be longer is split, which repeats its prompt; a row always holds at
            least one response. None never splits.
    """

    def __init__(
        self,
        processor: Any,
        *,
        image_root: str | Path | None = None,
        with_keys: bool = False,
        shared_prefix: bool = False,
        max_row_tokens: int | None = None,
    ) -> None:
        self.processor, self.with_keys, self.shared_prefix = processor, with_keys, shared_prefix
        self.image_root, self.max_row_tokens = image_root, max_row_tokens
        tokenizer = processor.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if pad is None:
            raise DataError("the tokenizer has neither a pad nor an eos token: set processor.tokenizer.pad_token")
        self.pad_token_id = int(pad)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Collate B rows.

        Raises:
            DataError: naming the row: a missing column, an empty response, a control token in a response, images and
                placeholders that differ in number, two equal responses, a bad weight.
        """
        names = [_name(row, index) for index, row in enumerate(rows)]
        groups: dict[Any, _Group] = {}
        pairs: list[tuple[Any, int, int]] = []  # key of the prompt, places of chosen and rejected among its responses
        for row, name in zip(rows, names, strict=True):
            with _naming(name):
                key, text, images = self._prompt_of(row)
                if key not in groups:
                    groups[key] = _Group(encode_prompt(self.processor, text, images))
                chosen, rejected = (groups[key].place(self._response(row, side)) for side in ("chosen", "rejected"))
                if chosen == rejected:
                    raise DataError("chosen and rejected are the same response; drop the row")
                pairs.append((key, chosen, rejected))
        first = dict(zip(groups, _starts([len(group.responses) for group in groups.values()]), strict=True))
        batch = self._stacked([*groups.values()])
        batch["pair_index"] = torch.tensor(
            [[first[key] + chosen, first[key] + rejected] for key, chosen, rejected in pairs]
        )
        batch["pair_ids"], batch["pair_prompts"] = names, len(groups)
        if self.with_keys:
            batch["response_keys"] = [key for group in groups.values() for key in _keys_of(group)]
        if any(row.get("weight") is not None for row in rows):
            batch["pair_weight"] = torch.tensor([_weight(row, name) for row, name in zip(rows, names, strict=True)])
        return batch

    def _stacked(self, groups: list[_Group]) -> dict[str, Any]:
        image_token_id = getattr(self.processor, "image_token_id", None)
        shared = self.shared_prefix and all(can_be_shared(group.prompt, image_token_id) for group in groups)
        rows = [(group.prompt, some) for group in groups for some in self._row_responses(group, shared=shared)]
        prompts = [prompt for prompt, _ in rows]
        if shared:
            return pack_rows(prompts, [some for _, some in rows], pad_token_id=self.pad_token_id)
        single = [response for _, (response,) in rows]
        return {**stack_rows(prompts, single, pad_token_id=self.pad_token_id), **row_images(prompts)}

    def _row_responses(self, group: _Group, *, shared: bool) -> Iterator[list[tuple[int, ...]]]:
        """The group's responses, cut into rows: one a row, or as many as `max_row_tokens` allows."""
        limit = 0 if not shared else math.inf if self.max_row_tokens is None else self.max_row_tokens
        row: list[tuple[int, ...]] = []
        prefix = len(group.prompt.input_ids) - 1
        used = prefix
        for response in group.responses:
            if row and used + 1 + len(response) > limit:
                yield row
                row, used = [], prefix
            row.append(response)
            used += 1 + len(response)
        yield row

    def _prompt_of(self, row: Row) -> tuple[Any, str, list[Image.Image]]:
        """What the prompt is told apart by, its text, and its pictures."""
        for column in ("tools", "chat_template_kwargs"):
            if row.get(column):
                raise DataError(f"the column {column!r} is not supported; render it into the prompt's text")
        for column in ("video", "videos"):
            if row.get(column):
                raise DataError(f"the column {column!r} is not supported: MPO trains on images; drop the row")
        images = [load_image(image, root=self.image_root) for image in _images(row)]
        messages = _prompt_messages(_required(row, "prompt"), num_images=len(images))
        text = prompt_text(self.processor, messages)
        return (text, *map(image_sha256, images)), text, images

    def _response(self, row: Row, column: str) -> list[int]:
        with _naming(column):
            text = _response_text(_required(row, column))
            return response_ids(self.processor, text, truncated=bool(row.get(f"{column}_truncated")))


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:index]) for index in range(len(sizes))]


def _keys_of(group: _Group) -> list[str]:
    features = {**group.prompt.token_features, **group.prompt.image_features}
    return response_keys([group.prompt.input_ids, *(features[name] for name in sorted(features))], [*group.responses])


def _required(row: Row, column: str) -> Any:
    if row.get(column) is None:
        raise DataError(f"expected a column {column!r}, got {sorted(row)}")
    return row[column]


def _images(row: Row) -> list[Image.Image | str]:
    """`images` (a list, maybe empty), else `image`, else none: a text-only row."""
    if row.get("images") is not None:
        return list(row["images"])
    return [row["image"]] if row.get("image") is not None else []


def _prompt_messages(prompt: Any, *, num_images: int) -> list[Message]:
    """Typed blocks throughout; without image blocks, all images stand before the first user turn's content."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        raise DataError(f"prompt: expected a list of messages {{role, content}}, got {prompt!r:.80}")
    messages = [{"role": _key(message, "role"), "content": _blocks(_key(message, "content"))} for message in prompt]
    placeholders = sum(block["type"] == "image" for message in messages for block in message["content"])
    if placeholders == 0 and num_images:
        first_user = next((message for message in messages if message["role"] == "user"), None)
        if first_user is None:
            raise DataError("prompt: expected a user message to put the images in")
        first_user["content"] = [{"type": "image"}] * num_images + first_user["content"]
    elif placeholders != num_images:
        raise DataError(f"prompt: expected one image block an image, got {placeholders} blocks, {num_images} images")
    return messages


def _blocks(content: Any) -> list[dict[str, str]]:
    """A message's content as new typed blocks, without the null keys that Arrow adds."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise DataError(f"expected a message's content to be a string or a list of blocks, got {content!r:.80}")
    return [_block(block) for block in content]


def _block(block: Any) -> dict[str, str]:
    kind = _key(block, "type")
    if kind == "image":
        return {"type": "image"}
    if kind == "text":
        return {"type": "text", "text": _key(block, "text")}
    raise DataError(f"expected a block of type 'text' or 'image', got {kind!r}")


def _key(mapping: Any, key: str) -> Any:
    if not isinstance(mapping, Mapping) or mapping.get(key) is None:
        raise DataError(f"expected a mapping with {key!r}, got {mapping!r:.80}")
    return mapping[key]


def _response_text(response: Any) -> str:
    """A plain string, or the text of exactly one assistant message."""
    if isinstance(response, str):
        return response
    if not isinstance(response, Sequence) or len(response) != 1 or _key(response[0], "role") != "assistant":
        raise DataError(f"expected a string or one assistant message, got {response!r:.80}")
    blocks = _blocks(_key(response[0], "content"))
    if any(block["type"] == "image" for block in blocks):
        raise DataError("a response contains an image block; images belong to the prompt")
    return "".join(block["text"] for block in blocks)


def _weight(row: Row, name: str) -> float:
    weight = 1.0 if row.get("weight") is None else float(row["weight"])
    if not math.isfinite(weight) or weight < 0:
        raise DataError(f"{name}: weight must be finite and >= 0, got {weight}")
    return weight


def _name(row: Row, index: int) -> str:
    """`problem_id`, or the row's place in its batch with the start of its prompt."""
    if row.get("problem_id") is not None:
        return str(row["problem_id"])
    return f"row {index} of its batch, prompt {row.get('prompt')!r:.80}"


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put `where` in front of a DataError's message."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{where}: {error}") from error
