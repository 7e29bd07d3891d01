"""Tiny checkpoints of several families on disk: transformers' own model and processor classes, random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from mpo.multimodal.loading import load_model
from recipes.worlds.digits.policy import CHAT_TEMPLATE, build_processor
from rewards.prm.label_head import Qwen2ProcessRewardModel

TEXT = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 512},
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "patch_size": 14}
QWEN_TOKENS = {
    **{"vision_start_token": "<|vision_start|>", "image_token": "<|image_pad|>"},
    **{"vision_end_token": "<|vision_end|>", "video_token": "<|video_pad|>"},
}
GEMMA_TOKENS = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}  # of Qwen: pixels of an image, least and most


def build_internvl(folder: Path) -> Path:
    """The digits world's policy."""
    from recipes.worlds.digits.policy import PolicySize, build_policy

    size = PolicySize(vision_hidden=32, vision_layers=1, text_hidden=32, text_layers=2, heads=2)
    return build_policy(folder, seed=0, size=size)


def build_qwen(folder: Path, model_type: str, prefix: str, rope: dict[str, Any], vision: dict[str, Any]) -> Path:
    """Qwen2.5-VL or Qwen3-VL: windows or deepstack, M-RoPE, images of any size."""
    tokenizer = _tokenizer(QWEN_TOKENS)
    patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    video = "Qwen2VLVideoProcessor" if model_type == "qwen2_5_vl" else "Qwen3VLVideoProcessor"
    processor = getattr(transformers, f"{prefix}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(size=PIXELS, **patches),
        tokenizer=tokenizer,
        video_processor=getattr(transformers, video)(size=PIXELS, **patches),
        chat_template=_template("".join([*QWEN_TOKENS.values()][:3])),
    )
    start, image, end, clip = tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS.values()))
    config = {
        "text_config": {**_text(tokenizer), "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **rope}},
        "vision_config": {**VISION, "num_heads": 2, "out_hidden_size": 32, **vision},
        **{"image_token_id": image, "video_token_id": clip},
        **{"vision_start_token_id": start, "vision_end_token_id": end},
    }
    return _write(folder, model_type, config, processor)


def build_qwen2_5_vl(folder: Path) -> Path:
    """Two vision layers, the first with windows."""
    vision = {"depth": 2, "fullatt_block_indexes": [1], "window_size": 56}
    return build_qwen(folder, "qwen2_5_vl", "Qwen2_5_VL", {"mrope_section": [1, 1, 2]}, vision)


def build_qwen3_vl(folder: Path) -> Path:
    """Three vision layers, two of which reach into the language model."""
    vision = {"depth": 3, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
    return build_qwen(folder, "qwen3_vl", "Qwen3VL", {"mrope_section": [2, 1, 1]}, vision)


def build_gemma3(folder: Path) -> Path:
    """Four tokens per image, which see each other; layers with and without a sliding window."""
    tokenizer = _tokenizer(GEMMA_TOKENS)
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        chat_template=_template(GEMMA_TOKENS["boi_token"]),
        image_seq_length=4,
    )
    start, image, end = tokenizer.convert_tokens_to_ids(list(GEMMA_TOKENS.values()))
    config = {
        "text_config": {
            **{**_text(tokenizer), "num_hidden_layers": 3, "head_dim": 8, "sliding_window": 8},
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "vision_config": {
            **{**VISION, "model_type": "siglip_vision_model", "image_size": 28, "vision_use_head": False},
            **{"num_hidden_layers": 2, "num_attention_heads": 2},
        },
        **{"mm_tokens_per_image": 4, "image_token_id": image, "image_token_index": image},
        **{"boi_token_index": start, "eoi_token_index": end},
    }
    return _write(folder, "gemma3", config, processor)


def build_text_llm(folder: Path) -> Path:
    """A Qwen2 language model without images, its LM head tied to its embedding."""
    tokenizer = _tokenizer({})
    tokenizer.chat_template = CHAT_TEMPLATE
    config = AutoConfig.for_model("qwen2", **_text(tokenizer), tie_word_embeddings=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_math_prm(folder: Path) -> Path:
    """Qwen2.5-Math-PRM's layout: a Qwen2 decoder, a label head, a marker; `auto_map` names code that is not there."""
    tokenizer = _tokenizer({"step_token": "<extra_0>"})
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(1)
    model = Qwen2ProcessRewardModel(AutoConfig.for_model("qwen2", **_text(tokenizer), num_labels=2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
    (folder / "config.json").write_text(
        json.dumps(config | {"architectures": ["Qwen2ForProcessRewardModel"], "auto_map": own})
    )
    return folder


def build_adapter(folder: Path, base: Path, *, seed: int = 0) -> Path:
    """LoRA adapters of a model's attention, as PEFT saves them, with weights that change what it says."""
    model = get_peft_model(load_model(base), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "internvl": build_internvl,
    "qwen2_5_vl": build_qwen2_5_vl,
    "qwen3_vl": build_qwen3_vl,
    "gemma3": build_gemma3,
}


def _tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    """The digits world's words with a family's own tokens: the tokenizer's attribute → token."""
    words = build_processor().tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        extra_special_tokens=special,
        clean_up_tokenization_spaces=False,
    )


def _template(image: str) -> str:
    return CHAT_TEMPLATE.replace("<IMG_CONTEXT>", image)


def _text(tokenizer: Any) -> dict[str, Any]:
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return {**TEXT, "vocab_size": len(tokenizer), **ids}


def _write(folder: Path, model_type: str, config: dict[str, Any], processor: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **config))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
