"""InternVL2/2.5/3 chat checkpoints and VisualPRM, as the hub has them → a folder of transformers' own classes.

No code of the checkpoint is run. Everything is checked against the tensors' headers before the first weight is read:
each source tensor is used exactly once, each native parameter is filled once, with its shape. Then the weights pass
through tensor by tensor, one output shard in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, InternVLForConditionalGeneration, InternVLProcessor

from mpo.multimodal.errors import ConfigError
from rewards.conversion.config import HEADS, INTERNLM2, NOT_A_MODEL, ChatLayout, chat_layout
from rewards.conversion.names import (
    INTERNLM2_LANGUAGE,
    NATIVE_LANGUAGE,
    VISION,
    Piece,
    native_names,
    pieces_of,
    take,
)
from rewards.conversion.processor import build_processor, system_message
from rewards.conversion.shards import SourceTensor, read_json, stream, tensors_of, write_shards
from rewards.conversion.tokenizer import IMAGE, TURN_END, load_tokenizer
from rewards.prm.formats import VISUALPRM, PRMFormat
from rewards.prm.model_prm import save_format

SHARD_BYTES = 2 * 1024**3
# As VisualPRM's released code writes it: the image stands inside the question.
FIRST_TURN = "### Question:\n{images}{question}\n\n### Solution Process:\n{step}"


@dataclass(frozen=True)
class Checkpoint:
    """A chat checkpoint that was read but for its weights, its conversion planned."""

    layout: ChatLayout
    processor: InternVLProcessor
    tensors: dict[str, SourceTensor]
    pieces: list[Piece]


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        tensors: tensors of the source, each used once.
        buffers: further tensors of the source that the configuration determines; not carried over.
        parameters: native ones, more than `tensors` where fused projections were split.
        shards: files of weights.
        prm_format: the contract, if it is a process reward model.
    """

    tensors: int
    buffers: int
    parameters: int
    shards: int
    prm_format: PRMFormat | None


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Read configuration, tokenizer and headers, and plan where each tensor goes.

    Raises:
        ConfigError: not a chat checkpoint in safetensors, an unsupported option, a tokenizer that would give other ids,
            a tensor without a place, a parameter without a tensor, or shapes that differ.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    tensors = tensors_of(folder)
    layout = chat_layout(config, tensors)
    table = VISION | (INTERNLM2_LANGUAGE if layout.llm == INTERNLM2 else NATIVE_LANGUAGE)
    pieces = [piece for name in tensors for piece in pieces_of(name, table)]
    _check_plan(layout, tensors, pieces)
    processor = build_processor(layout, load_tokenizer(folder, vocab_size=layout.text.vocab_size))
    return Checkpoint(layout, processor, tensors, pieces)


def convert_checkpoint(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    prm: bool = False,
    system: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Converted:
    """Write model, processor, generation settings and, for a process reward model, the contract `prm.json`.

    Args:
        checkpoint: from `open_checkpoint`.
        out: folder to write; made if missing.
        prm: the checkpoint is a VisualPRM. Its own architecture name says so too, but not in every release.
        system: system message of the contract; default is the one that the checkpoint's code uses.
        shard_bytes: largest file of weights; at most one is held in memory.
    """
    layout, processor, out = checkpoint.layout, checkpoint.processor, Path(out)
    tokenizer = processor.tokenizer
    prm_format = _contract(layout, tokenizer, system) if prm or layout.is_reward_model else None
    out.mkdir(parents=True, exist_ok=True)
    shards = _write_weights(checkpoint, out, shard_bytes)
    processor.save_pretrained(out)
    model = copy(layout.model)
    model.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    model.architectures = [InternVLForConditionalGeneration.__name__]
    model.dtype = _dtype(checkpoint.tensors)
    model.save_pretrained(out)
    GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    ).save_pretrained(out)
    if prm_format:
        save_format(out, prm_format)
    used = len({piece.source for piece in checkpoint.pieces})
    return Converted(used, len(checkpoint.tensors) - used, len(checkpoint.pieces), shards, prm_format)


def _contract(layout: ChatLayout, tokenizer: Any, system: str | None) -> PRMFormat:
    """VisualPRM's layout with this checkpoint's system message; both signs are one token each."""
    contract = replace(
        VISUALPRM,
        first_turn=FIRST_TURN,
        system=system_message(layout) if system is None else system,
    )
    contract.label_ids(tokenizer)
    return contract


def _check_plan(layout: ChatLayout, tensors: Mapping[str, SourceTensor], pieces: list[Piece]) -> None:
    expected = _expected_shapes(layout)
    for target, count in Counter(piece.target for piece in pieces).items():
        if count > 1:
            raise ConfigError(f"{count} tensors of the checkpoint would fill the one parameter {target!r}")
    for piece in pieces:
        if piece.target not in expected:
            raise ConfigError(
                f"tensor {piece.source!r} would fill {piece.target!r}, which the model of config.json does not have"
            )
        with torch.device("meta"):
            came = _taken(layout, piece, torch.empty(tensors[piece.source].shape)).shape
        if tuple(came) != expected[piece.target]:
            raise ConfigError(
                f"tensor {piece.source!r} gives {piece.target!r} the shape {tuple(came)}; "
                f"config.json asks for {expected[piece.target]}"
            )
    if missing := sorted(expected.keys() - {piece.target for piece in pieces}):
        raise ConfigError(f"no tensor of the checkpoint fills {missing[0]!r} ({len(missing)} such); fetch it again")


def _expected_shapes(layout: ChatLayout) -> dict[str, tuple[int, ...]]:
    """Saved name → shape of every parameter, from a model without storage."""
    try:
        with torch.device("meta"):
            state = InternVLForConditionalGeneration(layout.model).state_dict()
    except NOT_A_MODEL as error:  # e.g. an activation that transformers does not have
        raise ConfigError(f"config.json describes no model that transformers can build: {error!r}") from error
    shapes = {saved: tuple(state[name].shape) for saved, name in native_names(state).items()}
    if layout.model.tie_word_embeddings:
        del shapes[HEADS[0]]
    return shapes


def _taken(layout: ChatLayout, piece: Piece, tensor: Tensor) -> Tensor:
    text = layout.text
    fused_by_group = piece.source.startswith("language_model.")
    groups = text.num_key_value_heads if fused_by_group else 1
    queries = text.num_attention_heads // text.num_key_value_heads if fused_by_group else 1
    try:
        return take(tensor, piece.part, groups=groups, queries=queries)
    except RuntimeError as error:
        raise ConfigError(
            f"tensor {piece.source!r} of shape {tuple(tensor.shape)} does not split into {groups} groups of "
            f"{queries} queries, a key and a value: {error}"
        ) from error


def _write_weights(checkpoint: Checkpoint, out: Path, shard_bytes: int) -> int:
    parts: dict[str, list[Piece]] = {}
    for piece in checkpoint.pieces:
        parts.setdefault(piece.source, []).append(piece)
    wanted = {name: checkpoint.tensors[name] for name in parts}

    def native() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in stream(wanted):
            for piece in parts[name]:
                taken = _taken(checkpoint.layout, piece, tensor)
                yield piece.target, taken if piece.part == "whole" else taken.clone()

    total = sum(tensor.nbytes for tensor in wanted.values())
    return write_shards(out, native(), total_bytes=total, shard_bytes=shard_bytes)


def _dtype(tensors: Mapping[str, SourceTensor]) -> torch.dtype:
    """The number type of most parameters."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0]
