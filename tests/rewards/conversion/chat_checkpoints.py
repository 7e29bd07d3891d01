"""Tiny random checkpoints in the InternVL chat layout, and what their own code computes, without transformers.

`ChatModel` reads the source tensors by their source names. It is written from the definitions (InternViT with layer
scale, pixel shuffle v2, a two-layer projector, a decoder with rotary positions and grouped queries).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, linear, silu

QWEN, INTERNLM2 = "Qwen2ForCausalLM", "InternLM2ForCausalLM"
IMAGE_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
CORPUS = [
    "### Question:\nHow many apples?\n\n### Solution Process:\nStep 1: we count 1 + 2 - 3 = 0 apples.",
    "system\nuser\nassistant\n the of and to in is that it was for on are with as I his they be at one have this",
    "步骤一：先数一数图里的苹果，再减去两个。答案是七。你是书生万象。",
    "الخطوة الأولى: نحسب مساحة المثلث ثم نقسمها على اثنين.",
    "def area(r):\n    return math.pi * r ** 2  # area\n\n\nif x == 1:\n        print(x)",
    "Шаг первый. Пусть x равно трём. ステップ１：図の中の点を数える。",
    "aaaa bbbb abab " + "x    y        z                y" * 3,
]
VISION = {
    **{"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "drop_path_rate": 0.1, "dropout": 0.0},
    **{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40},
    **{"image_size": 28, "patch_size": 7, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm"},
    **{"hidden_act": "gelu", "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "initializer_factor": 0.1},
    **{"initializer_range": 1e-10, "num_channels": 3, "use_flash_attn": True, "moe_coeff_ratio": 0.5},
}
LANGUAGE = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"intermediate_size": 48, "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5},
    **{"rope_theta": 1000000.0, "tie_word_embeddings": False, "use_cache": False, "initializer_range": 0.02},
    **{"rope_scaling": {"factor": 2.0, "type": "dynamic"}, "torch_dtype": "bfloat16", "moe_config": None},
}
OWN = {
    QWEN: {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": None, "max_window_layers": 70},
    INTERNLM2: {"model_type": "internlm2", "bias": False, "attn_implementation": "eager"},
}


def write_chat_checkpoint(folder: Path, llm: str, **changes: Any) -> Path:
    """A checkpoint as the hub has it; `changes` may hold `vision`, `language` and keys of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_qwen_tokenizer(folder) if llm == QWEN else write_internlm2_tokenizer(folder)
    vision = VISION | changes.pop("vision", {})
    language = LANGUAGE | OWN[llm] | {"architectures": [llm], "vocab_size": vocab_size} | changes.pop("language", {})
    config = {
        **{"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "vision_config": vision},
        **{"auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}, "llm_config": language},
        **{"force_image_size": 28, "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1},
        **{"template": "internvl2_5", "dynamic_image_size": True, "use_thumbnail": True, "pad2square": False},
        **{"min_dynamic_patch": 1, "max_dynamic_patch": 6, "use_backbone_lora": 0, "use_llm_lora": 0},
        **{"torch_dtype": "bfloat16", "tie_word_embeddings": False, "system_message": None},
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_internvl_chat.py").write_text("raise SystemExit('remote code ran')")
    write_sharded(folder, random_tensors(config), files=3)
    return folder


def write_sharded(folder: Path, tensors: dict[str, Tensor], *, files: int) -> None:
    names = list(tensors)
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        chosen = names[number::files]
        save_file({name: tensors[name] for name in chosen}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def random_tensors(config: dict[str, Any]) -> dict[str, Tensor]:
    """Source names and shapes of the published modules, weights wide enough that every one of them matters."""
    vision, text = config["vision_config"], config["llm_config"]
    width, hidden = vision["hidden_size"], text["hidden_size"]
    merged = width * round(1 / config["downsample_ratio"]) ** 2
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, patches + 1, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, vision["patch_size"], vision["patch_size"]),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        **{f"mlp1.0.{kind}": (merged,) for kind in ("weight", "bias")},
        **{"mlp1.1.weight": (hidden, merged), "mlp1.1.bias": (hidden,)},
        **{"mlp1.3.weight": (hidden, hidden), "mlp1.3.bias": (hidden,)},
    }
    for index in range(vision["num_hidden_layers"]):
        layer = f"vision_model.encoder.layers.{index}."
        shapes |= {layer + name: (width,) for name in ("ls1", "ls2", "norm1.weight", "norm2.weight")}
        if vision["norm_type"] == "layer_norm":
            shapes |= {layer + name: (width,) for name in ("norm1.bias", "norm2.bias")}
        if vision["qk_normalization"]:
            shapes |= {layer + f"attn.{name}_norm.weight": (width,) for name in "qk"}
        if vision["qkv_bias"]:
            shapes[layer + "attn.qkv.bias"] = (3 * width,)
        shapes |= {layer + "attn.qkv.weight": (3 * width, width), layer + "attn.proj.weight": (width, width)}
        shapes |= {layer + "attn.proj.bias": (width,), layer + "mlp.fc2.bias": (width,)}
        inner = vision["intermediate_size"]
        shapes |= {layer + "mlp.fc1.weight": (inner, width), layer + "mlp.fc1.bias": (inner,)}
        shapes |= {layer + "mlp.fc2.weight": (width, inner)}
    shapes |= _internlm2_shapes(text) if text["architectures"] == [INTERNLM2] else _qwen2_shapes(text)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        scaled = noise * shape[-1] ** -0.5 if len(shape) > 1 else 0.3 * noise + float(not name.endswith("bias"))
        tensors[name] = scaled.to(torch.float32)
    return tensors


def _qwen2_shapes(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    keys = hidden // text["num_attention_heads"] * text["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.model.embed_tokens.weight": (vocab, hidden),
        "language_model.model.norm.weight": (hidden,),
        "language_model.lm_head.weight": (vocab, hidden),
    }
    for index in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{index}."
        for name, rows in (("q", hidden), ("k", keys), ("v", keys)):
            shapes |= {layer + f"self_attn.{name}_proj.weight": (rows, hidden)}
            shapes |= {layer + f"self_attn.{name}_proj.bias": (rows,)}
        shapes |= {layer + "self_attn.o_proj.weight": (hidden, hidden)}
        shapes |= {layer + f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {layer + "mlp.down_proj.weight": (hidden, inner)}
        shapes |= {layer + f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return shapes


def _internlm2_shapes(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    head = hidden // text["num_attention_heads"]
    fused = (text["num_attention_heads"] + 2 * text["num_key_value_heads"]) * head
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.model.tok_embeddings.weight": (vocab, hidden),
        "language_model.model.norm.weight": (hidden,),
        "language_model.output.weight": (vocab, hidden),
    }
    for index in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{index}."
        shapes |= {layer + "attention.wqkv.weight": (fused, hidden), layer + "attention.wo.weight": (hidden, hidden)}
        if text["bias"]:
            shapes |= {layer + "attention.wqkv.bias": (fused,), layer + "attention.wo.bias": (hidden,)}
        shapes |= {layer + f"feed_forward.{name}.weight": (inner, hidden) for name in ("w1", "w3")}
        shapes |= {layer + "feed_forward.w2.weight": (hidden, inner)}
        shapes |= {layer + f"{name}_norm.weight": (hidden,) for name in ("attention", "ffn")}
    return shapes


class ChatModel:
    """Logits of a chat checkpoint from its own tensors."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.config = json.loads((folder / "config.json").read_text())
        self.w: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                self.w |= {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118

    def logits(self, input_ids: Tensor, pixels: Tensor | None, image_id: int) -> Tensor:
        """(T,) ids and (tiles, 3, S, S) → (T, vocab)."""
        features = None if pixels is None else self.image_features(pixels).flatten(0, 1)
        x = self.decoder(input_ids, input_ids == image_id, features)
        return linear(x, self.w["language_model.output.weight" if self.internlm2 else "language_model.lm_head.weight"])

    def decoder(self, input_ids: Tensor, is_image: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """(T,) ids → (T, hidden) after the last norm."""
        text = self.config["llm_config"]
        name = "tok_embeddings" if self.internlm2 else "embed_tokens"
        x = self.w[f"language_model.model.{name}.weight"][input_ids].clone()
        if features is not None:
            x[is_image] = features
        for index in range(text["num_hidden_layers"]):
            layer = f"language_model.model.layers.{index}."
            x = self._internlm2_layer(x, layer) if self.internlm2 else self._qwen2_layer(x, layer)
        return self._rms(x, "language_model.model.norm.weight", text["rms_norm_eps"])

    @property
    def internlm2(self) -> bool:
        return self.config["llm_config"]["architectures"] == [INTERNLM2]

    def image_features(self, pixels: Tensor) -> Tensor:
        """(tiles, 3, S, S) → (tiles, tokens, hidden)."""
        vision = self.config["vision_config"]
        weight, bias = (self.w[f"vision_model.embeddings.patch_embedding.{kind}"] for kind in ("weight", "bias"))
        grid = conv2d(pixels, weight, bias, stride=vision["patch_size"])
        side = grid.shape[-1]
        x = grid.flatten(2).transpose(1, 2)
        x = torch.cat([self.w["vision_model.embeddings.class_embedding"].expand(len(x), 1, -1), x], dim=1)
        positions = self.w["vision_model.embeddings.position_embedding"]
        if positions.shape[1] != side**2 + 1:  # another resolution than that of training
            known = positions[:, 1:].unflatten(1, (round((positions.shape[1] - 1) ** 0.5), -1)).permute(0, 3, 1, 2)
            scaled = interpolate(known, size=(side, side), mode="bicubic", align_corners=False)
            positions = torch.cat([positions[:, :1], scaled.flatten(2).transpose(1, 2)], dim=1)
        x = x + positions
        for index in range(vision["num_hidden_layers"]):
            x = self._vision_layer(x, f"vision_model.encoder.layers.{index}.", vision)
        x = x[:, 1:].reshape(len(x), side, side, -1)
        # pixel shuffle v2: token (i, j) holds the block of patches (2i.., 2j..), rows of the block outermost
        n = round(1 / self.config["downsample_ratio"])
        x = x.reshape(len(x), side // n, n, side // n, n, -1).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(len(x), (side // n) ** 2, -1)
        x = layer_norm(x, x.shape[-1:], self.w["mlp1.0.weight"], self.w["mlp1.0.bias"], 1e-5)
        x = gelu(linear(x, self.w["mlp1.1.weight"], self.w["mlp1.1.bias"]))
        return linear(x, self.w["mlp1.3.weight"], self.w["mlp1.3.bias"])

    def _vision_layer(self, x: Tensor, layer: str, vision: dict[str, Any]) -> Tensor:
        heads = vision["num_attention_heads"]
        qkv = linear(
            self._norm(x, layer + "norm1", vision),
            self.w[layer + "attn.qkv.weight"],
            self.w.get(layer + "attn.qkv.bias"),
        )
        q, k, v = qkv.chunk(3, dim=-1)
        if vision["qk_normalization"]:
            q, k = (
                self._rms(t, f"{layer}attn.{n}_norm.weight", vision["layer_norm_eps"]) for t, n in ((q, "q"), (k, "k"))
            )
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        out = linear(
            mixed.transpose(1, 2).flatten(2), self.w[layer + "attn.proj.weight"], self.w[layer + "attn.proj.bias"]
        )
        x = x + self.w[layer + "ls1"] * out
        y = self._norm(x, layer + "norm2", vision)
        y = gelu(linear(y, self.w[layer + "mlp.fc1.weight"], self.w[layer + "mlp.fc1.bias"]))
        return x + self.w[layer + "ls2"] * linear(y, self.w[layer + "mlp.fc2.weight"], self.w[layer + "mlp.fc2.bias"])

    def _norm(self, x: Tensor, name: str, vision: dict[str, Any]) -> Tensor:
        if vision["norm_type"] == "rms_norm":
            return self._rms(x, name + ".weight", vision["layer_norm_eps"])
        return layer_norm(x, x.shape[-1:], self.w[name + ".weight"], self.w[name + ".bias"], vision["layer_norm_eps"])

    def _qwen2_layer(self, x: Tensor, layer: str) -> Tensor:
        text = self.config["llm_config"]
        y = self._rms(x, layer + "input_layernorm.weight", text["rms_norm_eps"])
        q, k, v = (
            linear(y, self.w[f"{layer}self_attn.{n}_proj.weight"], self.w[f"{layer}self_attn.{n}_proj.bias"])
            for n in "qkv"
        )
        heads, groups = text["num_attention_heads"], text["num_key_value_heads"]
        mixed = self._attend(q.unflatten(-1, (heads, -1)), k.unflatten(-1, (groups, -1)), v.unflatten(-1, (groups, -1)))
        x = x + linear(mixed, self.w[layer + "self_attn.o_proj.weight"])
        y = self._rms(x, layer + "post_attention_layernorm.weight", text["rms_norm_eps"])
        gate, up, down = (self.w[f"{layer}mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        return x + linear(silu(linear(y, gate)) * linear(y, up), down)

    def _internlm2_layer(self, x: Tensor, layer: str) -> Tensor:
        text = self.config["llm_config"]
        y = self._rms(x, layer + "attention_norm.weight", text["rms_norm_eps"])
        fused = linear(y, self.w[layer + "attention.wqkv.weight"], self.w.get(layer + "attention.wqkv.bias"))
        groups = text["num_key_value_heads"]
        queries = text["num_attention_heads"] // groups
        blocks = fused.reshape(len(x), groups, queries + 2, -1)  # each group: its queries, its key, its value
        mixed = self._attend(blocks[:, :, :queries].flatten(1, 2), blocks[:, :, -2], blocks[:, :, -1])
        x = x + linear(mixed, self.w[layer + "attention.wo.weight"], self.w.get(layer + "attention.wo.bias"))
        y = self._rms(x, layer + "ffn_norm.weight", text["rms_norm_eps"])
        w1, w2, w3 = (self.w[f"{layer}feed_forward.{n}.weight"] for n in ("w1", "w2", "w3"))
        return x + linear(silu(linear(y, w1)) * linear(y, w3), w2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(T, heads, D) and (T, groups, D) twice → (T, heads · D), causal."""
        text = self.config["llm_config"]
        q, k = self._rotated(q, text), self._rotated(k, text)
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)

    def _rotated(self, x: Tensor, text: dict[str, Any]) -> Tensor:
        length, _, dim = x.shape
        scaling, limit = text.get("rope_scaling") or {}, text["max_position_embeddings"]
        base, positions = text["rope_theta"], torch.arange(length).float()
        if scaling.get("type") == "dynamic" and length > limit:
            base = base * (scaling["factor"] * length / limit - (scaling["factor"] - 1)) ** (dim / (dim - 2))
        if scaling.get("type") == "linear":
            positions = positions / scaling["factor"]
        angles = positions[:, None] * base ** (-torch.arange(0, dim, 2).float() / dim)  # (T, D/2)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def _rms(self, x: Tensor, name: str, eps: float) -> Tensor:
        return self.w[name] * x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()


def write_qwen_tokenizer(folder: Path) -> int:
    """Byte-level BPE files as Qwen2 checkpoints have them; returns the number of tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.save(str(folder))
    size = tokenizer.get_vocab_size()
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", *IMAGE_TOKENS]
    _write_settings(
        folder,
        {size + index: token for index, token in enumerate(added)},
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None, "bos_token": None},
        tokenizer_class="Qwen2Tokenizer",
        plain=("<tool_call>",),
    )
    return size + len(added)


def train_sentencepiece(folder: Path, *, texts: Sequence[str] = CORPUS, pieces: int = 500, **options: Any) -> Path:
    """A BPE model with byte fallback and without character normalisation, as InternLM2's is."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(line for text in texts for line in text.splitlines() if line), encoding="utf-8")
    settings = {
        **{"model_type": "bpe", "vocab_size": pieces, "byte_fallback": True, "add_dummy_prefix": False},
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True},
        **{"allow_whitespace_only_pieces": True, "character_coverage": 0.98, "minloglevel": 2, "num_threads": 1},
        **{"user_defined_symbols": [f"[UNUSED_TOKEN_{141 + index}]" for index in range(6)]},
        "hard_vocab_limit": False,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(folder / "tokenizer"), **settings)
    corpus.unlink()
    (folder / "tokenizer.vocab").unlink()
    return folder / "tokenizer.model"


def write_internlm2_tokenizer(folder: Path, **options: Any) -> int:
    """`tokenizer.model` and settings as InternLM2 checkpoints have them; returns the number of tokens."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(train_sentencepiece(folder, **options)))
    size = model.get_piece_size()
    first = model.piece_to_id("[UNUSED_TOKEN_141]")
    renamed = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
    added = {0: "<unk>", 1: "<s>", 2: "</s>"}
    added |= {first + index: token for index, token in enumerate(renamed)}
    added |= {size + index: token for index, token in enumerate(IMAGE_TOKENS)}
    _write_settings(
        folder,
        added,
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
        tokenizer_class="InternLM2Tokenizer",
        auto_map={"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
    )
    return size + len(IMAGE_TOKENS)


def _write_settings(
    folder: Path, added: dict[int, str], named: dict[str, str | None], *, plain: tuple[str, ...] = (), **more: Any
) -> None:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {str(i): {"content": token, **flags, "special": token not in plain} for i, token in added.items()}
    settings = {"added_tokens_decoder": decoder, **named, "model_max_length": 8192, **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
