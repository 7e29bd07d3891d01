"""Random models, processors and images of a chosen width, for the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

PATCH = 14
BLOCKS = 16  # across a tile of an image


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
    """Coloured blocks in a shape that makes the processor cut it into that many tiles, thumbnail included."""
    across = max(1, tiles - 1)
    blocks = np.random.default_rng(0).integers(0, 256, (BLOCKS, BLOCKS * across, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width.tile * across, width.tile), Image.Resampling.NEAREST)


def prompt_tokens(width: Width, tiles: int, question: str) -> int:
    """Tokens of a prompt with one image of that many tiles."""
    from mpo.multimodal.messages import prompt_text

    processor = processor_of(width, tiles)
    text = prompt_text(
        processor, [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    )
    return len(processor(text=[text], images=[[image_of(width, tiles)]])["input_ids"][0])


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


def step_flops(
    width: Width,
    size: dict[str, int],
    *,
    tiles: int,
    prompt: int,
    response: int,
    right: int,
    wrong: int,
    checkpointing: bool,
    frozen_vision: bool = False,
    adapters: bool = False,
) -> dict[str, float]:
    """FLOPs that a step over all pairs of one prompt needs, by arm; `filling` fills the cache with a step's rows.

    Attention is counted, recomputed forward passes too. With adapters no weight of the model has a gradient, so a
    backward pass costs one forward pass and not two.
    """

    def attention(pairs: float) -> float:
        return 4 * width.hidden * width.layers * pairs

    row, pairs, responses = prompt + response, right * wrong, right + wrong
    paired = 2 * pairs * (2 * size["text"] * row + attention(row**2 / 2))
    # prompt[:-1], and the responses with the prompt's last token each
    packed_pairs = prompt**2 / 2 + responses * (response * prompt + response**2 / 2)
    shared = 2 * size["text"] * (prompt - 1 + responses * (response + 1)) + attention(packed_pairs)
    vision = vision_flops(width, tiles, size["vision"])
    head = 2 * width.hidden * width.vocabulary * response
    backward = 1 if adapters else 2
    policy = 1 + backward + checkpointing
    # forward passes through the tower; a frozen one has no backward pass and is shared by both models
    paired_tower = 2 * pairs * (2 if frozen_vision else policy + 1)
    tower = {
        "trl": paired_tower,
        "online": 1 if frozen_vision else policy + 1,
        "cached": 1 if frozen_vision else policy,
    }
    text = {"trl": (policy + 1) * paired, "online": (policy + 1) * shared, "cached": policy * shared}
    # the head's backward computes its logits again
    heads = {
        "trl": 2 * pairs * (3 + backward),
        "online": responses * (3 + backward),
        "cached": responses * (2 + backward),
    }
    flops = {arm: text[arm] + tower[arm] * vision + heads[arm] * head for arm in text}
    return flops | {"filling": shared + vision + responses * head}


def scoring_flops(
    width: Width, size: dict[str, int], tiles: int, *, prefix: float, tails: Sequence[float], responses: int
) -> dict[str, float]:
    """FLOPs of each way to score N responses; `tails` are the tokens behind the shared prefix after each step."""

    def text(tokens: float, pairs: float) -> float:
        return 2 * size["text"] * tokens + 4 * width.hidden * width.layers * pairs

    def row(length: float) -> float:
        return text(length, length**2 / 2)

    tail, vision = tails[-1], vision_flops(width, tiles, size["vision"])
    pairs = prefix**2 / 2 + responses * (tail * prefix + tail**2 / 2)
    return {
        "shared": text(prefix + responses * tail, pairs) + vision,
        "response": responses * (row(prefix + tail) + vision),
        "step": responses * sum(row(prefix + part) + vision for part in tails),
    }
