"""Memory and time that the shipped settings for real models should need, for `docs/scale.md`. No weights are read.

    python -m benchmarks.scale_estimates

Weights, gradients and optimizer states are counted on the full model on the meta device. A decoder layer's activations
are counted by `mpo.doctor.memory` on one layer of the real width. Everything else is stated in `docs/scale.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText

from mpo.doctor.memory import Activations, MemoryEstimate, count_activations, optimizer_bytes, weight_bytes
from mpo.multimodal.logps import enable_chunked_logps
from mpo.multimodal.packing import pack_rows
from mpo.multimodal.prefix import EncodedPrompt
from mpo.multimodal.scoring import response_logps
from mpo.multimodal.shared_prefix import enable_shared_prefix

TFLOPS = 300  # assumed sustained rate of a GPU, TFLOP/s: about 30 % of an H100's dense bfloat16 peak; not measured
GIB = 2**30
RESPONSE = 300  # tokens of a chosen, and of a rejected response: MMPR's chosen ones have 300.0 (arXiv 2411.10442)
PROBE = 256  # tokens of the row on which a layer is counted
INTERNVIT = {
    **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    **{"image_size": [448, 448], "patch_size": [14, 14]},
}


@dataclass(frozen=True)
class Case:
    """One of the shipped settings, and the usual row and machine for it."""

    recipe: str
    model_type: str
    text: dict[str, Any]
    vision: dict[str, Any]
    depth: str  # how the vision config calls its number of layers
    prompt: int  # tokens, image included
    patches: int  # vision tokens of its image, before merging
    limit: int  # max_length
    gpus: int
    lora: int = 0


def _text(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        **{"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocab},
        **{"num_attention_heads": heads, "num_key_value_heads": kv_heads, "tie_word_embeddings": False, **more},
    }


def _rope(*section: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": list(section), "rope_theta": 1e6}}


INTERNVL_8B = _text(3584, 18944, 28, 28, 4, 151674, model_type="qwen2")
QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
CASES = (
    Case("internvl3_1b_mpo", "internvl", _text(896, 4864, 24, 14, 2, 151674, model_type="qwen2"), INTERNVIT,
         "num_hidden_layers", 1920, 7 * 1025, 12288, 1),
    Case("internvl3_8b_mpo", "internvl", INTERNVL_8B, INTERNVIT, "num_hidden_layers", 1920, 7 * 1025, 12288, 8),
    Case("qwen2_5_vl_7b_lora_mpo", "qwen2_5_vl", _text(3584, 18944, 28, 28, 4, 152064, **_rope(16, 24, 24)),
         QWEN_VISION, "depth", 1700, 4 * 1570, 4096, 1, lora=16),
    Case("qwen3_vl_8b_mpo", "qwen3_vl", _text(4096, 12288, 36, 32, 8, 151936, head_dim=128, **_rope(24, 20, 20)),
         {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
          "patch_size": 16}, "depth", 1330, 4 * 1200, 4096, 8),
    Case("gemma3_4b_mpo", "gemma3", _text(2560, 10240, 34, 8, 4, 262208, head_dim=256) | {"tie_word_embeddings": True},
         {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
          "num_attention_heads": 16, "image_size": 896, "patch_size": 14, "vision_use_head": False},
         "num_hidden_layers", 390, 4096, 2048, 2),
)  # fmt: skip


def build(case: Case, *, device: str, small: bool = False) -> Any:
    """The model with random weights; `small`: one layer of each kind and few words, the widths as they are."""
    text, vision = dict(case.text), dict(case.vision)
    if small:
        text, vision = text | {"num_hidden_layers": 1, "vocab_size": 1024}, vision | {case.depth: 1}
    deepstack = {"deepstack_visual_indexes": [0] if small else [8, 16, 24]} if case.model_type == "qwen3_vl" else {}
    tied = {"tie_word_embeddings": text.pop("tie_word_embeddings"), "image_token_id": 1000}
    config = AutoConfig.for_model(case.model_type, text_config=text, vision_config={**vision, **deepstack}, **tied)
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config)


def adapted(case: Case, model: Any) -> Any:
    """With the settings' adapters, on the language model only; else as it is."""
    if not case.lora:
        return model
    outside = r"(?!model\.language_model\.).*"
    return get_peft_model(
        model.to(torch.bfloat16), LoraConfig(r=case.lora, target_modules="all-linear", exclude_modules=outside)
    )


def layer_bytes(case: Case) -> tuple[float, float]:
    """Bytes per token of one decoder layer, inside it and as its input, in one packed row without an image."""
    model = build(case, device="cpu", small=True)
    enable_chunked_logps(model)
    enable_shared_prefix(model)
    model = adapted(case, model).train()
    if case.lora:
        model.enable_input_require_grads()
    ids = [5 + place % 900 for place in range(PROBE // 2)]
    prompt = EncodedPrompt(torch.tensor(ids), {"token_type_ids": torch.zeros(len(ids), dtype=torch.long)}, {})
    if case.model_type != "gemma3":
        prompt = EncodedPrompt(prompt.input_ids, {}, {})
    row = pack_rows([prompt], [[ids[: PROBE // 4], ids[PROBE // 4 :]]], pad_token_id=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = count_activations(model, lambda: response_logps(model, row))
    weights = 0 if case.lora else sum(p.numel() for p in model.get_decoder().layers.parameters())
    tokens = row["input_ids"].numel()
    return (found.language - 2 * weights) / tokens, found.layer_inputs / tokens  # without the bfloat16 copy of weights


def estimate(case: Case) -> tuple[MemoryEstimate, float, float]:
    """Memory of a pair of `max_length` tokens, unsharded; that of one GPU; seconds per pair at `TFLOPS`."""
    model = adapted(case, build(case, device="meta"))
    base = model.get_base_model() if case.lora else model
    inside, inputs = layer_bytes(case)
    layers, depth, hidden = case.text["num_hidden_layers"], case.vision[case.depth], case.vision["hidden_size"]
    layer = next(iter(base.get_decoder().layers))
    size = 2 if case.lora else 4
    patches = case.patches * max(1.0, (case.limit - 2 * RESPONSE) / case.prompt if case.model_type != "gemma3" else 1.0)
    copy = 0 if case.lora else 2 * sum(p.numel() for p in layer.parameters())  # of the layer at work, in bfloat16
    vision_inputs = 0 if case.lora else patches * hidden * depth * size
    activations = Activations(
        language=int(inside * case.limit * layers),
        vision=0,
        rest=int(vision_inputs),
        layer_inputs=int(inputs * case.limit * layers),
        largest_layer=int(inside * case.limit + copy),
    )
    memory = MemoryEstimate(
        weights=weight_bytes(model),
        reference=0 if case.lora else weight_bytes(model),
        optimizer=optimizer_bytes(model, "adamw_torch_fused"),
        gradients=weight_bytes(model, trained=True),
        activations=activations,
        checkpointing=True,
        accumulates=True,
    )
    language = sum(p.numel() for p in base.get_decoder().layers.parameters())
    head = base.get_output_embeddings().weight.numel()
    words = {id(m.weight): m.weight.numel() for m in (base.get_input_embeddings(), base.get_output_embeddings())}
    tower = sum(p.numel() for p in base.parameters()) - language - sum(words.values())
    tokens = case.prompt + 2 * RESPONSE
    text_flops = 2 * language * tokens + 2 * head * 2 * RESPONSE
    vision_flops = 2 * tower * case.patches
    passes = 4 if case.lora else 5  # forward, backward (2, under adapters 1), forward again, reference
    flops = passes * text_flops + (1 if case.lora else 5) * vision_flops
    sharded = sum((memory.weights, memory.reference, memory.optimizer, memory.gradients)) / case.gpus
    return memory, sharded + activations.kept(checkpointing=True), flops / (TFLOPS * 1e12)


def main() -> None:
    """Print the table of `docs/scale.md`."""
    parts = "weights | reference | optimizer | gradients | activations"
    print(f"| settings | {parts} | GPUs | a GPU | s per pair | h for 10,000 pairs |")
    print("|---" * 10 + "|")
    for case in CASES:
        memory, one, seconds = estimate(case)
        held = (memory.weights, memory.reference, memory.optimizer, memory.gradients)
        sizes = (*held, memory.activations.kept(checkpointing=True))
        cells = [f"`{case.recipe}`", *(f"{size / GIB:.1f}" for size in sizes), str(case.gpus), f"{one / GIB:.0f}"]
        print(
            "|", " | ".join([*cells, f"{seconds:.2f}", f"{10_000 * seconds / case.gpus / 3600:.1f}"]), "|", flush=True
        )


if __name__ == "__main__":
    main()
