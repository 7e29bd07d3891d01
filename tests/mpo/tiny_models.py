"""Tiny random models of many architectures, and packed batches for them; run it to print the equality table.

python -m tests.mpo.tiny_models
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from mpo.multimodal.logps import enable_chunked_logps
from mpo.multimodal.packing import pack_rows, paired_rows
from mpo.multimodal.prefix import EncodedPrompt
from mpo.multimodal.scoring import innermost, response_logps
from mpo.multimodal.shared_prefix import enable_shared_prefix

IMAGE, VIDEO, START, END = 98, 97, 96, 95  # token ids; text uses 5 to 89
LLAMA = {"model_type": "llama"}
QWEN2 = {"model_type": "qwen2"}
TEXT = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 99, "max_position_embeddings": 512},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
VISION = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
QWEN_VISION = {**{"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14}}
QWEN_TOKENS = {
    **{"image_token_id": IMAGE, "video_token_id": VIDEO},
    **{"vision_start_token_id": START, "vision_end_token_id": END},
}


def _rope(*section: int) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": list(section), "rope_theta": 10000.0}


def _pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _frames(size: int = 28) -> Callable[[int], dict[str, Tensor]]:
    return lambda images: {"pixel_values": _pixels(images, 3, size, size)}


def _tiles(per_image: int, size: int, **more: Tensor) -> Callable[[int], dict[str, Tensor]]:
    return lambda images: {
        "pixel_values": _pixels(images, per_image, 3, size, size),
        **{name: value.repeat(images, 1) for name, value in more.items()},
    }


def _qwen_patches(images: int) -> dict[str, Tensor]:
    return {"pixel_values": _pixels(16 * images, 3 * 2 * 14 * 14), "image_grid_thw": torch.tensor([[1, 4, 4]] * images)}


# architecture → (config, tokens per image, number of images → image features)
SHARING: dict[str, tuple[dict[str, Any], int, Callable[[int], dict[str, Tensor]]]] = {
    "internvl": (
        {
            "text_config": {**TEXT, **QWEN2},
            "vision_config": {**VISION, "image_size": [28, 28], "patch_size": [14, 14]},
            **{"image_token_id": IMAGE, "downsample_ratio": 0.5},
        },
        1,
        _frames(),
    ),
    "qwen2_5_vl": (
        {
            "text_config": {**TEXT, "rope_parameters": _rope(1, 1, 2)},
            "vision_config": {**QWEN_VISION, "depth": 2, "fullatt_block_indexes": [1], "window_size": 56},
            **QWEN_TOKENS,
        },
        4,
        _qwen_patches,
    ),
    "qwen3_vl": (
        {
            "text_config": {**TEXT, "head_dim": 8, "rope_parameters": _rope(2, 1, 1)},
            "vision_config": {
                **QWEN_VISION,
                **{"depth": 3, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
            },
            **QWEN_TOKENS,
        },
        4,
        _qwen_patches,
    ),
    "llava": (
        {
            "text_config": {**TEXT, **LLAMA},
            "vision_config": {**VISION, "model_type": "clip_vision_model"},
            **{"image_token_id": IMAGE, "vision_feature_layer": -1},
        },
        4,
        _frames(),
    ),
    "llava_onevision": (
        {
            "text_config": {**TEXT, **QWEN2},
            "vision_config": {**VISION, "model_type": "siglip_vision_model"},
            **{"image_token_id": IMAGE, "video_token_id": VIDEO, "image_grid_pinpoints": [[28, 28]]},
            **{"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        },
        10,  # 4 of the overview, 4 of one tile, 2 ends of its lines
        _tiles(2, 28, image_sizes=torch.tensor([[28, 28]])),
    ),
    "gemma3": (
        {
            "text_config": {
                **{**TEXT, "head_dim": 8, "num_hidden_layers": 3, "sliding_window": 8},
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            "vision_config": {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
            **{"mm_tokens_per_image": 4, "image_token_id": IMAGE, "boi_token_index": START, "eoi_token_index": END},
        },
        4,
        _frames(),
    ),
    **{
        name: (
            {
                "text_config": {**TEXT, **LLAMA},
                "vision_config": {**VISION, "image_size": 56, "max_image_size": {"longest_edge": 56}},
                **{"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": 0},
            },
            4,
            _tiles(1, 56),
        )
        for name in ("idefics3", "smolvlm")
    },
}
# Layers with a state along the row, and how their type is called.
NOT_SHARING: dict[str, tuple[dict[str, Any], str]] = {
    "qwen3_5": (
        {
            "text_config": {
                **{**TEXT, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
                **{"linear_num_key_heads": 2, "linear_num_value_heads": 2},
                **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
            },
            "vision_config": {**QWEN_VISION, "depth": 2, "num_position_embeddings": 16},
            **{"image_token_id": IMAGE, "video_token_id": VIDEO},
        },
        "linear_attention",
    ),
    "lfm2_vl": (
        {
            "text_config": {**TEXT, "layer_types": ["conv", "full_attention"]},
            "vision_config": {**VISION, "model_type": "siglip2_vision_model"},
            "image_token_id": IMAGE,
        },
        "conv",
    ),
}


def tiny_model(name: str) -> Any:
    """Random weights wide enough that every token matters: with the usual 0.02 a wrong mask would hardly show."""
    config = SHARING[name][0] if name in SHARING else NOT_SHARING[name][0]
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(name, **config), attn_implementation="sdpa"
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else parameter + 0.15 * noise)
    return model


def packed_batch(name: str, model: Any) -> dict[str, Any]:
    """Three rows: one image, none, two images; two responses each, all lengths different."""
    prompts = [_prompt(name, images, words, seed=images) for images, words in ((1, 6), (0, 9), (2, 12))]
    draw = random.Random(9)
    responses = [[[draw.randrange(5, 90) for _ in range(n)] for n in lengths] for lengths in ((5, 9), (12, 3), (2, 7))]
    return _known_to(model, pack_rows(prompts, responses, pad_token_id=0))


def packed_row(name: str, model: Any, lengths: Sequence[int]) -> dict[str, Any]:
    """One row: a prompt with two images, and responses of these lengths."""
    draw = random.Random(9)
    responses = [[draw.randrange(5, 90) for _ in range(n)] for n in lengths]
    return _known_to(model, pack_rows([_prompt(name, 2, 12, seed=2)], [responses], pad_token_id=0))


def _known_to(model: Any, packed: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(type(innermost(model).base_model).forward).parameters
    return {key: value for key, value in packed.items() if key in known or not key.endswith("token_type_ids")}


def _prompt(name: str, images: int, words: int, *, seed: int) -> EncodedPrompt:
    _, tokens, features = SHARING[name]
    draw = random.Random(seed)
    ids = [5, *([START, *[IMAGE] * tokens, END] * images), *(draw.randrange(5, 90) for _ in range(words))]
    is_image = torch.tensor([int(token == IMAGE) for token in ids])
    per_token = {"mm_token_type_ids": is_image, "token_type_ids": is_image}
    return EncodedPrompt(torch.tensor(ids), per_token, features(images) if images else {})


VARIANTS = ("plain", "checkpointing", "lora", "frozen vision")


def prepared(name: str, variant: str) -> Any:
    """The model, ready for both layouts, in one of `VARIANTS`."""
    model = tiny_model(name)
    enable_chunked_logps(model)
    enable_shared_prefix(model)
    if variant == "lora":
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", exclude_modules="lm_head"))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.1)
    if variant == "frozen vision":
        text = {id(parameter) for parameter in model.get_decoder().parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in text)
    if variant == "checkpointing":
        model.train()
        model.gradient_checkpointing_enable()
    return model


def differences(name: str, variant: str) -> dict[str, float]:
    """Shared against paired: the largest |Δ log-prob| of a response, in nats, and the largest relative |Δ gradient|.

    A tensor's difference is relative to its own norm, or to 1e-3 of the norm of the whole gradient where that is more.
    """
    model = prepared(name, variant)
    packed = packed_batch(name, model)
    (shared, shared_grads), (paired, paired_grads) = (_run(model, rows) for rows in (packed, paired_rows(packed)))
    assert shared_grads.keys() == paired_grads.keys()
    whole = torch.stack([grad.norm() for grad in paired_grads.values()]).norm()
    relative = [
        float((shared_grads[key] - grad).norm() / torch.maximum(grad.norm(), 1e-3 * whole))
        for key, grad in paired_grads.items()
    ]
    return {"log-prob": float((shared - paired).abs().max()), "gradient": max(relative)}


def _run(model: Any, rows: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    sums, _ = response_logps(model, rows)
    (sums * torch.arange(1, len(sums) + 1)).sum().backward()
    return sums.detach(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def main() -> None:
    """The equality table, float32."""
    print(f"{'model':16} {'variant':14} {'max |Δ log-prob|':>17} {'max rel. |Δ grad|':>18}")
    for name in SHARING:
        for variant in VARIANTS:
            found = differences(name, variant)
            print(f"{name:16} {variant:14} {found['log-prob']:17.1e} {found['gradient']:18.1e}")


if __name__ == "__main__":
    main()
