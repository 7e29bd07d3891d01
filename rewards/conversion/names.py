"""Where each tensor of the InternVL chat layout goes: a table of names, and the split of fused projections.

Names on the right are those that transformers writes for `InternVLForConditionalGeneration`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mpo.multimodal.errors import ConfigError

Part = Literal["whole", "q", "k", "v"]
FUSED_PARTS: tuple[Part, ...] = ("q", "k", "v")
PART = "{part}"
COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")  # a buffer that older versions saved; the config determines it

VISION: dict[str, str] = {
    r"vision_model\.embeddings\.class_embedding": r"vision_tower.embeddings.cls_token",
    r"vision_model\.embeddings\.position_embedding": r"vision_tower.embeddings.position_embeddings",
    r"vision_model\.embeddings\.patch_embedding\.(weight|bias)": (
        r"vision_tower.embeddings.patch_embeddings.projection.\1"
    ),
    r"vision_model\.encoder\.layers\.(\d+)\.ls([12])": r"vision_tower.encoder.layer.\1.lambda_\2",
    r"vision_model\.encoder\.layers\.(\d+)\.norm1\.(weight|bias)": (
        r"vision_tower.encoder.layer.\1.layernorm_before.\2"
    ),
    r"vision_model\.encoder\.layers\.(\d+)\.norm2\.(weight|bias)": r"vision_tower.encoder.layer.\1.layernorm_after.\2",
    r"vision_model\.encoder\.layers\.(\d+)\.(mlp\.fc[12]\.\w+)": r"vision_tower.encoder.layer.\1.\2",
    r"vision_model\.encoder\.layers\.(\d+)\.attn\.([qk]_norm\.weight)": r"vision_tower.encoder.layer.\1.attention.\2",
    r"vision_model\.encoder\.layers\.(\d+)\.attn\.proj\.(weight|bias)": (
        r"vision_tower.encoder.layer.\1.attention.projection_layer.\2"
    ),
    r"vision_model\.encoder\.layers\.(\d+)\.attn\.qkv\.(weight|bias)": (
        r"vision_tower.encoder.layer.\1.attention.{part}_proj.\2"
    ),
    r"mlp1\.0\.(weight|bias)": r"multi_modal_projector.layer_norm.\1",
    r"mlp1\.1\.(weight|bias)": r"multi_modal_projector.linear_1.\1",
    r"mlp1\.3\.(weight|bias)": r"multi_modal_projector.linear_2.\1",
}
NATIVE_LANGUAGE: dict[str, str] = {
    r"language_model\.(model\..+\.(?:weight|bias))": r"language_model.\1",
    r"language_model\.lm_head\.weight": r"language_model.lm_head.weight",
}
INTERNLM2_LANGUAGE: dict[str, str] = {
    r"language_model\.model\.tok_embeddings\.weight": r"language_model.model.embed_tokens.weight",
    r"language_model\.model\.norm\.weight": r"language_model.model.norm.weight",
    r"language_model\.output\.weight": r"language_model.lm_head.weight",
    r"language_model\.model\.layers\.(\d+)\.attention_norm\.weight": (
        r"language_model.model.layers.\1.input_layernorm.weight"
    ),
    r"language_model\.model\.layers\.(\d+)\.ffn_norm\.weight": (
        r"language_model.model.layers.\1.post_attention_layernorm.weight"
    ),
    r"language_model\.model\.layers\.(\d+)\.attention\.wqkv\.(weight|bias)": (
        r"language_model.model.layers.\1.self_attn.{part}_proj.\2"
    ),
    r"language_model\.model\.layers\.(\d+)\.attention\.wo\.(weight|bias)": (
        r"language_model.model.layers.\1.self_attn.o_proj.\2"
    ),
    r"language_model\.model\.layers\.(\d+)\.feed_forward\.w1\.weight": (
        r"language_model.model.layers.\1.mlp.gate_proj.weight"
    ),
    r"language_model\.model\.layers\.(\d+)\.feed_forward\.w2\.weight": (
        r"language_model.model.layers.\1.mlp.down_proj.weight"
    ),
    r"language_model\.model\.layers\.(\d+)\.feed_forward\.w3\.weight": (
        r"language_model.model.layers.\1.mlp.up_proj.weight"
    ),
}


@dataclass(frozen=True)
class Piece:
    """One native parameter: which part of which source tensor it is."""

    target: str
    source: str
    part: Part


def pieces_of(source: str, table: Mapping[str, str]) -> list[Piece]:
    """The native parameters that one source tensor holds; none for a buffer that the configuration determines.

    Raises:
        ConfigError: the table does not know the name.

    Example:
        >>> [piece.target for piece in pieces_of("vision_model.encoder.layers.3.attn.qkv.bias", VISION)][:2]
        ['vision_tower.encoder.layer.3.attention.q_proj.bias', 'vision_tower.encoder.layer.3.attention.k_proj.bias']
    """
    if COMPUTED.fullmatch(source):
        return []
    for pattern, replacement in table.items():
        if match := re.fullmatch(pattern, source):
            target = match.expand(replacement)
            if PART in target:
                return [Piece(target.replace(PART, part), source, part) for part in FUSED_PARTS]
            return [Piece(target, source, "whole")]
    raise ConfigError(f"tensor {source!r} has no place in the native model; expected the names of the chat layout")


def take(tensor: Tensor, part: Part, *, groups: int, queries: int) -> Tensor:
    """Rows of one projection out of a fused one, or the whole tensor.

    Fused rows lie as (G, Q + 2, D): for each of G key-value heads its Q query heads, its key, its value
    (InternLM2's `wqkv`). InternViT's `qkv` is the case G = Q = 1, D = its width.

    Args:
        tensor: (G · (Q + 2) · D, …), or anything for "whole".
        part: which rows.
        groups, queries: G and Q.
    """
    if part == "whole":
        return tensor
    blocks = tensor.unflatten(0, (groups, queries + 2, -1))  # (G, Q + 2, D, …)
    chosen = {"q": slice(queries), "k": slice(queries, queries + 1), "v": slice(queries + 1, None)}[part]
    return blocks[:, chosen].flatten(0, 2)


def native_names(parameters: Iterable[str]) -> dict[str, str]:
    """Saved name → name inside the model, for parameters of `InternVLForConditionalGeneration`.

    transformers saves the layout that its InternVL had first (`language_model.model.…`) and renames on loading.
    """
    renamed = {}
    for name in parameters:
        saved = name.removeprefix("model.")
        if saved.startswith("language_model."):
            saved = saved.replace("language_model.", "language_model.model.", 1)
        if name.startswith("lm_head."):
            saved = f"language_model.{name}"
        renamed[saved] = name
    return renamed
