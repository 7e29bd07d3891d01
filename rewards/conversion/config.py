"""`config.json` of the InternVL chat layout → transformers' `InternVLConfig`; what cannot be carried over is refused.

The layout is that of OpenGVLab's InternVL2, 2.5, 3 and VisualPRM checkpoints (`InternVLChatConfig` in
github.com/OpenGVLab/InternVL): an InternViT `vision_config`, a `llm_config`, and a pixel shuffle between them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import InternVLConfig, LlamaConfig, PreTrainedConfig, Qwen2Config

from mpo.multimodal.errors import ConfigError

# What transformers raises for a configuration that describes no model.
NOT_A_MODEL = (ArithmeticError, LookupError, RuntimeError, StrictDataclassError, TypeError, ValueError)
ARCHITECTURES = ("InternVLChatModel", "InternVLRewardModel")
LANGUAGE_MODELS: dict[str, type] = {
    "Qwen2ForCausalLM": Qwen2Config,
    "LlamaForCausalLM": LlamaConfig,
    "InternLM2ForCausalLM": LlamaConfig,
}
INTERNLM2 = "InternLM2ForCausalLM"
# What the published configuration classes fill in where config.json is silent; for Qwen2 and Llama that is native.
INTERNVIT_DEFAULTS = {
    **{"hidden_size": 3200, "num_hidden_layers": 48, "num_attention_heads": 25, "intermediate_size": 12800},
    **{"image_size": 224, "patch_size": 14, "num_channels": 3, "hidden_act": "gelu", "norm_type": "rms_norm"},
    **{"qkv_bias": False, "qk_normalization": True, "layer_norm_eps": 1e-6, "dropout": 0.0, "attention_dropout": 0.0},
    **{"initializer_range": 0.02, "initializer_factor": 0.1},
}
LLM_DEFAULTS: dict[str, dict[str, Any]] = {
    INTERNLM2: {
        **{"vocab_size": 103168, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
        **{"rope_theta": 10000.0, "bias": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    }
}
CHAT_DEFAULTS = {
    **{"select_layer": -1, "force_image_size": None, "downsample_ratio": 0.5, "ps_version": "v1"},
    **{"dynamic_image_size": False, "use_thumbnail": False, "min_dynamic_patch": 1, "max_dynamic_patch": 6},
}
# key → the only value that the native classes compute
ONLY: dict[str, Any] = {"select_layer": -1, "ps_version": "v2"}
MUST_BE_OFF = ("use_backbone_lora", "use_llm_lora", "pad2square", "quantization_config")
HEADS = ("language_model.lm_head.weight", "language_model.output.weight")
ROPE_TYPES = {INTERNLM2: ("default", "dynamic", "linear")}
NATIVE_ROPE_TYPES = ("default", "dynamic", "linear", "yarn", "llama3", "longrope")
NATIVE_QK_NORM_EPS = 1e-6  # fixed in transformers' InternVL vision tower


@dataclass(frozen=True)
class ChatLayout:
    """What `config.json` says, in the words of the native classes.

    Attributes:
        model: native configuration; token ids are still to be set.
        llm: architecture of the language model in the source, a key of `LANGUAGE_MODELS`.
        template: name of the conversation template.
        system: the system message that the checkpoint carries, or `None` for the template's own.
        tile: side of an image tile, in pixels.
        min_tiles, max_tiles: dynamic resolution; one more tile, the thumbnail, is added to two or more.
        is_reward_model: the architecture is VisualPRM's.
    """

    model: InternVLConfig
    llm: str
    template: str
    system: str | None
    tile: int
    min_tiles: int
    max_tiles: int
    is_reward_model: bool

    @property
    def text(self) -> Any:
        """The language model's configuration."""
        return self.model.text_config


def chat_layout(config: Mapping[str, Any], tensors: Collection[str]) -> ChatLayout:
    """Read a parsed `config.json`.

    Args:
        config: its content.
        tensors: names in the weights. An LM head that is there is never tied, as in InternVL's code.

    Raises:
        ConfigError: not the InternVL chat layout, or something in it has no counterpart in the native classes.
    """
    try:
        return _layout(config, tensors)
    except ConfigError:
        raise
    except (*NOT_A_MODEL, AttributeError) as error:
        raise ConfigError(f"config.json describes no model that transformers can build: {error!r}") from error


def _layout(config: Mapping[str, Any], tensors: Collection[str]) -> ChatLayout:
    architecture = _first(config.get("architectures"))
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"config.json: architectures must name {' or '.join(ARCHITECTURES)}, got {architecture!r}; "
            "a checkpoint of transformers' own classes needs no conversion"
        )
    chat = {**CHAT_DEFAULTS, **config}
    _refuse_unsupported(chat)
    llm = dict(_section(config, "llm_config"))
    vision = {**INTERNVIT_DEFAULTS, **_section(config, "vision_config")}
    language = _first(llm.get("architectures"))
    if language not in LANGUAGE_MODELS:
        raise ConfigError(
            f"config.json: llm_config.architectures must name one of {', '.join(LANGUAGE_MODELS)}, got {language!r}"
        )
    llm = {**LLM_DEFAULTS.get(language, {}), **llm}
    tile = int(chat["force_image_size"] or vision["image_size"])
    layers = max(int(llm.get("num_hidden_layers", 0)), int(vision["num_hidden_layers"]))
    if layers > len(tensors):  # before anything of that length is built
        raise ConfigError(f"config.json asks for {layers} layers, the checkpoint holds {len(tensors)} tensors in all")
    has_head = any(name in tensors for name in HEADS)
    if not has_head and not llm.get("tie_word_embeddings"):
        raise ConfigError("the weights hold no LM head and llm_config.tie_word_embeddings is off; fetch them again")
    model = InternVLConfig(
        text_config=_text_config(language, llm, tied=not has_head),
        vision_config=_vision_config(vision),
        downsample_ratio=chat["downsample_ratio"],
        image_seq_length=_tokens_a_tile(tile, vision["patch_size"], chat["downsample_ratio"]),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=not has_head,
    )
    dynamic = bool(chat["dynamic_image_size"])
    return ChatLayout(
        model=model,
        llm=language,
        template=str(config.get("template")),
        system=config.get("system_message"),
        tile=tile,
        min_tiles=int(chat["min_dynamic_patch"]) if dynamic else 1,
        max_tiles=int(chat["max_dynamic_patch"]) if dynamic else 1,
        is_reward_model=architecture == "InternVLRewardModel",
    )


def _refuse_unsupported(chat: Mapping[str, Any]) -> None:
    for key, value in ONLY.items():
        if chat[key] != value:
            raise ConfigError(
                f"config.json: {key} is {chat[key]!r}; transformers' InternVL computes {value!r} only, "
                "so this checkpoint cannot be converted"
            )
    for key in MUST_BE_OFF:
        if chat.get(key):
            raise ConfigError(
                f"config.json: {key} is {chat[key]!r}; merge or remove it with the code that made the checkpoint"
            )
    if chat["dynamic_image_size"] and chat["max_dynamic_patch"] > 1 and not chat["use_thumbnail"]:
        raise ConfigError(
            "config.json: use_thumbnail is false with several tiles; transformers' image processor always adds it"
        )


def _tokens_a_tile(tile: int, patch: int, ratio: float) -> int:
    """(tile / patch)² · ratio² image tokens; the pixel shuffle needs whole blocks of 1 / ratio patches."""
    block = round(1 / ratio)
    if block * ratio != 1.0 or tile % patch or (tile // patch) % block:
        raise ConfigError(
            f"config.json: a tile of {tile} pixels, patches of {patch} and downsample_ratio {ratio} leave "
            "part of a block over; expected whole blocks"
        )
    return (tile // patch // block) ** 2


def _vision_config(vision: Mapping[str, Any]) -> dict[str, Any]:
    if vision["qk_normalization"] and vision["layer_norm_eps"] != NATIVE_QK_NORM_EPS:
        raise ConfigError(
            f"config.json: vision_config has qk_normalization with layer_norm_eps {vision['layer_norm_eps']}; "
            f"transformers' InternVL normalises queries and keys with {NATIVE_QK_NORM_EPS} only"
        )
    carried = (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"),
        *("hidden_act", "norm_type", "layer_norm_eps", "attention_dropout", "initializer_range"),
        *("image_size", "patch_size"),
    )
    return {
        **{key: vision[key] for key in carried},
        "attention_bias": vision["qkv_bias"],
        "use_qk_norm": vision["qk_normalization"],
        "hidden_dropout_prob": vision["dropout"],
        "projection_dropout": vision["dropout"],
        "layer_scale_init_value": vision["initializer_factor"],
        "use_absolute_position_embeddings": True,
        "use_mean_pooling": True,  # no norm after the last layer, as in InternViT
    }


def _text_config(language: str, llm: Mapping[str, Any], *, tied: bool) -> Any:
    native = LANGUAGE_MODELS[language]
    if language == INTERNLM2:
        llm = {**llm, "attention_bias": llm["bias"], "num_key_value_heads": llm.get("num_key_value_heads")}
    known = {field.name for field in fields(native)} - {field.name for field in fields(PreTrainedConfig)}
    kept = {key: value for key, value in llm.items() if key in known}
    return native(**{**kept, "rope_parameters": _rope(language, llm), "tie_word_embeddings": tied, "use_cache": True})


def _rope(language: str, llm: Mapping[str, Any]) -> dict[str, Any]:
    """Both spellings of the older `rope_theta` and `rope_scaling` pair, as `rope_parameters`."""
    if "rope_parameters" in llm:
        return llm["rope_parameters"]
    scaling = dict(llm.get("rope_scaling") or {})
    old_name = scaling.pop("type", "default")
    scaling.setdefault("rope_type", old_name)
    carried = ROPE_TYPES.get(language, NATIVE_ROPE_TYPES)
    if scaling["rope_type"] not in carried:
        raise ConfigError(
            f"config.json: llm_config.rope_scaling of type {scaling['rope_type']!r} has no counterpart; "
            f"expected one of {', '.join(carried)}"
        )
    return {"rope_theta": float(llm.get("rope_theta", 10000.0)), **scaling}


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = config.get(key)
    if not isinstance(section, Mapping):
        raise ConfigError(f"config.json: expected a section {key}, got {section!r}")
    return section


def _first(names: Any) -> Any:
    return names[0] if isinstance(names, list) and names else names
