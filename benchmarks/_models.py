"""Random models and images of a chosen size, for the benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TILE, PATCH, TOKENS_A_TILE = 448, 14, 256
VISION_HIDDEN, VISION_LAYERS = 128, 2


def build_internvl(folder: Path, *, hidden: int, layers: int, tiles: int) -> dict[str, int]:
    """Write a random InternVL with 448-pixel tiles of 256 tokens and its processor; returns its parameters by part."""
    import torch
    from transformers import GotOcr2ImageProcessor, InternVLConfig, InternVLForConditionalGeneration

    from recipes.worlds.digits.policy import build_processor

    processor = build_processor()
    processor.image_seq_length = TOKENS_A_TILE
    processor.image_processor = GotOcr2ImageProcessor(
        size={"height": TILE, "width": TILE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=max(1, tiles - 1),
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config={
                **{"hidden_size": VISION_HIDDEN, "num_hidden_layers": VISION_LAYERS, "num_attention_heads": 4},
                **{"intermediate_size": 4 * VISION_HIDDEN},
                **{"image_size": [TILE, TILE], "patch_size": [PATCH, PATCH]},
            },
            text_config={
                **{"model_type": "qwen2", "vocab_size": len(tokenizer), "hidden_size": hidden},
                **{"num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 8},
                **{"intermediate_size": hidden * 8 // 3, "max_position_embeddings": 8192},
                **{"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id},
                "pad_token_id": tokenizer.pad_token_id,
            },
            image_token_id=processor.image_token_id,
            image_seq_length=TOKENS_A_TILE,
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return {
        "text": sum(p.numel() for p in model.model.language_model.layers.parameters()),
        "vision": sum(p.numel() for p in model.model.vision_tower.encoder.parameters()),
        "all": sum(p.numel() for p in model.parameters()),
    }


def noise(tiles: int) -> Image.Image:
    """Noise whose shape makes the processor cut it into that many tiles, thumbnail included."""
    wide = max(1, tiles - 1)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (TILE, TILE * wide, 3), dtype=np.uint8))


def vision_flops(tiles: int, vision_parameters: int) -> float:
    """FLOPs of one pass of the tiles through the tower: weights and attention."""
    patches = (TILE // PATCH) ** 2 + 1
    return tiles * (2 * vision_parameters * patches + 4 * VISION_HIDDEN * VISION_LAYERS * patches**2)
