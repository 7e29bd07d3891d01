"""Random models, processors and images of a chosen width, for the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

PATCH = 14


@dataclass(frozen=True)
class Width:
    """A model's sizes; `tile` in pixels."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    intermediate: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vocabulary: int = 151_936
    tile: int = 448

    @property
    def tokens_a_tile(self) -> int:
        return (self.tile // PATCH) ** 2 // 4


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def internvl(width: Width, *, dtype: torch.dtype = torch.float32) -> Any:
    """A random InternVL of this width on the device."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    processor = processor_of(width)
    tokenizer = processor.tokenizer
    config = InternVLConfig(
        vision_config={
            **{"hidden_size": width.vision_hidden, "num_hidden_layers": width.vision_layers},
            **{"num_attention_heads": width.vision_heads, "intermediate_size": 4 * width.vision_hidden},
            **{"image_size": [width.tile, width.tile], "patch_size": [PATCH, PATCH]},
        },
        text_config={
            **{"model_type": "qwen2", "vocab_size": width.vocabulary, "hidden_size": width.hidden},
            **{"num_hidden_layers": width.layers, "num_attention_heads": width.heads},
            **{"num_key_value_heads": width.key_heads, "intermediate_size": width.intermediate},
            **{"max_position_embeddings": 32_768, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id},
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=processor.image_token_id,
        image_seq_length=width.tokens_a_tile,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device():
            return InternVLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)


def processor_of(width: Width, tiles: int = 13) -> Any:
    """A processor of such tiles; its tokenizer is the digit world's, whose ids any vocabulary holds."""
    from transformers import GotOcr2ImageProcessor

    from recipes.worlds.digits.policy import build_processor

    processor = build_processor()
    processor.image_seq_length = width.tokens_a_tile
    processor.image_processor = GotOcr2ImageProcessor(
        size={"height": width.tile, "width": width.tile},
        crop_to_patches=True,
        min_patches=1,
        max_patches=max(1, tiles - 1),
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return processor


def image_of(width: Width, tiles: int) -> Image.Image:
    """Noise whose shape makes the processor cut it into that many tiles, thumbnail included."""
    shape = (width.tile, width.tile * max(1, tiles - 1), 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def parameters(model: Any) -> dict[str, int]:
    """How many a model has: in the layers of the language model, in the tower, and in all."""
    return {
        "text": sum(p.numel() for p in model.model.language_model.layers.parameters()),
        "vision": sum(p.numel() for p in model.model.vision_tower.encoder.parameters()),
        "all": sum(p.numel() for p in model.parameters()),
    }


def vision_flops(width: Width, tiles: int, vision_parameters: int) -> float:
    """FLOPs of one pass of the tiles through the tower: weights and attention."""
    patches = (width.tile // PATCH) ** 2 + 1
    return tiles * (2 * vision_parameters * patches + 4 * width.vision_hidden * width.vision_layers * patches**2)
