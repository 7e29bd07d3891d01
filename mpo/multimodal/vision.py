"""An image goes through the vision tower once, however many rows show it and however many models read it.

`RowImages` records which rows of a batch hold the same images. `ImageEncoder` replaces a backbone's
`get_image_features`, so the sharing happens inside the model's own forward pass, where DDP and FSDP expect it: rows
with the same images share one encoding; two models whose vision parts are frozen and equal share it as well.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mpo.multimodal.prefix import EncodedPrompt

IMAGES = "row_images"  # key of a batch
BLANK = "blank_image"  # key of a batch without images: features of one, for ranks that must run the tower nevertheless


class RowImages:
    """Whose the image features of a batch are.

    A plain class, like `PackedLayout`: nothing that moves a batch between devices rebuilds it.

    Args:
        sources: for each of B rows a number; rows with one number show the same images.
        counts: name of an image feature → its entries on dim 0 for each row, 0 for a row without images.
    """

    def __init__(self, sources: Sequence[int], counts: Mapping[str, Sequence[int]]) -> None:
        self.sources, self.counts = list(sources), {name: list(some) for name, some in counts.items()}

    def of_rows(self, rows: Sequence[int]) -> RowImages:
        """The same for a batch of these rows; a row may occur more than once."""
        counts = {name: [some[row] for row in rows] for name, some in self.counts.items()}
        return RowImages([self.sources[row] for row in rows], counts)

    def select(self, batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Tensor]:
        """The image features of these rows, in this order."""
        selected = {}
        for name, counts in self.counts.items():
            parts = batch[name].split(counts)
            selected[name] = torch.cat([parts[row] for row in rows])
        return selected

    def with_images(self) -> list[int]:
        """The rows that show images."""
        return [row for row in range(len(self.sources)) if any(counts[row] for counts in self.counts.values())]


def row_images(prompts: Sequence[EncodedPrompt]) -> dict[str, RowImages]:
    """`{"row_images": …}` for rows that show these prompts, one after the other; empty without images."""
    names = list(dict.fromkeys(name for prompt in prompts for name in prompt.image_features))
    if not names:
        return {}
    number: dict[int, int] = {}
    sources = [number.setdefault(id(prompt), len(number)) for prompt in prompts]
    counts = {
        name: [len(prompt.image_features[name]) if name in prompt.image_features else 0 for prompt in prompts]
        for name in names
    }
    return {IMAGES: RowImages(sources, counts)}


class ImageEncoder:
    """A backbone's `get_image_features`, which encodes each image of a batch once, all of them in one call.

    One call whatever the rows: with sharded weights, every rank has to run the tower equally often.
    """

    def __init__(self, backbone: Any) -> None:
        self._encode = backbone.get_image_features
        # `generate` reads it to find out which inputs to encode beforehand
        self.__signature__ = inspect.signature(self._encode)
        self.images: RowImages | None = None  # of the batch that is being read
        self.tokens: list[int] = []  # image tokens of each of its rows
        self.memory: list[Any] | None = None  # [RowImages, features] of the last batch, shared between models

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the backbone's own method gives for the batch."""
        if self.images is None:
            return self._encode(*args, **kwargs)
        if self.memory is not None and self.memory[0] is self.images:
            return self.memory[1]
        features = self._each_once(self.images, args, kwargs)
        if self.memory is not None:
            self.memory[:] = [self.images, features]
        return features

    def nothing_of(self, blank: Mapping[str, Tensor]) -> Tensor | float:
        """0, as a function of the tower's weights: a blank image's features, each times 0."""
        if self.memory is not None and self.memory[0] is blank:
            return 0.0  # both models share what the first of them has run
        known = self.__signature__.parameters
        encoded = self._encode(**{name: value for name, value in blank.items() if name in known})
        if self.memory is not None:
            self.memory[:] = [blank, None]
        features = [encoded.pooler_output, *(getattr(encoded, "deepstack_features", None) or [])]
        parts = [part for some in features for part in ([some] if isinstance(some, Tensor) else some)]
        return torch.stack([(part * 0).sum() for part in parts]).sum()

    def _each_once(self, images: RowImages, args: Any, kwargs: Any) -> Any:
        rows = images.with_images()
        first = {images.sources[row]: row for row in reversed(rows)}  # source → first row that shows it
        if len(first) == len(rows):
            return self._encode(*args, **kwargs)
        given = self.__signature__.bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        distinct = sorted(first.values())
        own = images.select({name: given.get(name) for name in images.counts}, distinct)
        encoded = self._encode(**(given | own))
        place = {images.sources[row]: index for index, row in enumerate(distinct)}
        order = [place[images.sources[row]] for row in rows]
        return _rearranged(encoded, [self.tokens[row] for row in distinct], order)


def encode_images_once(model: Any) -> ImageEncoder | None:
    """Give a model's backbone an `ImageEncoder`, once; None for a text-only model.

    Args:
        model: without PEFT around it.
    """
    backbone = model.base_model
    if not hasattr(backbone, "get_image_features"):
        return None
    if not isinstance(backbone.get_image_features, ImageEncoder):
        backbone.get_image_features = ImageEncoder(backbone)
    return backbone.get_image_features


def share_frozen_vision(policy: Any, reference: Any | None = None) -> bool:
    """Let policy and reference share features where nothing in the policy's vision part is trained.

    Args:
        policy: without PEFT around it; adapters inside are found.
        reference: None means the policy with its adapters disabled.

    Returns:
        Whether they share: every parameter outside the language model is frozen and equal in both.
    """
    parts = _vision_parameters(policy)
    if any(parameter.requires_grad for parameter in parts.values()):
        return False
    if reference is not None:
        other = _vision_parameters(reference)
        if parts.keys() != other.keys() or not all(torch.equal(value, other[name]) for name, value in parts.items()):
            return False
    memory: list[Any] = [None, None]
    for model in (policy, reference):
        if model is not None and (encoder := encode_images_once(model)):
            encoder.memory = memory
    return True


@contextmanager
def reading(
    model: Any, images: RowImages | None, input_ids: Tensor, blank: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """While the model reads a batch with these images and ids (B, T); nothing for a model without an `ImageEncoder`.

    With a blank image, 0 times its features is added to the embeddings of the tokens: behind them is where the tower
    runs for batches with images.
    """
    encoder = getattr(model.base_model, "get_image_features", None)
    if blank is not None and isinstance(encoder, ImageEncoder):
        embeddings = model.base_model.get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda module, given, out: out + encoder.nothing_of(blank))
        try:
            yield
        finally:
            hook.remove()
        return
    image_token_id = getattr(model.config, "image_token_id", None)
    if images is None or image_token_id is None or not isinstance(encoder, ImageEncoder):
        yield
        return
    encoder.images, encoder.tokens = images, (input_ids == image_token_id).sum(dim=1).tolist()
    try:
        yield
    finally:
        encoder.images = None


def _vision_parameters(model: Any) -> dict[str, Tensor]:
    """Everything but the language model and its head: tower, projector, adapters on them."""
    language = {id(parameter) for part in (model.get_decoder(), model.get_output_embeddings()) if part is not None
                for parameter in part.parameters()}  # fmt: skip
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in language}


def _rearranged(output: Any, tokens: Sequence[int], order: Sequence[int]) -> Any:
    """The features of some prompts' images, which fill `tokens[i]` image tokens each, in another order, repeated.

    Only what the language model reads is kept.
    """

    def ordered(features: Any) -> Any:
        parts = _parts(features, tokens)
        return _chained([parts[index] for index in order])

    fields = {"pooler_output": ordered(output.pooler_output)}
    if deep := getattr(output, "deepstack_features", None):
        fields["deepstack_features"] = [ordered(layer) for layer in deep]
    return type(output)(**fields)


def _parts(features: Any, tokens: Sequence[int]) -> list[Any]:
    """Cut features into one part per prompt.

    Args:
        features: (images, tokens per image, D), (all tokens, D), or a sequence of (tokens of an image, D).
        tokens: of each prompt, as many together as the features have.
    """
    if isinstance(features, Tensor):
        each = features.shape[1] if features.dim() == 3 else 1
        return list(features.split([number // each for number in tokens]))
    left = iter(features)
    parts = []
    for number in tokens:
        part: list[Tensor] = []
        while sum(map(len, part)) < number:
            part.append(next(left))
        parts.append(type(features)(part))
    return parts


def _chained(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat([*values])
    return type(values[0])(itertools.chain.from_iterable(values))
