"""QLoRA: adapters on a 4-bit base (arXiv 2305.14314). Which quantised models can be trained, and which are refused."""

from __future__ import annotations

from typing import Any

from mpo.multimodal.errors import ConfigError

_HOW = (
    "load it with quantization_config=BitsAndBytesConfig(load_in_4bit=True) and pass a peft_config, or load it "
    "without quantisation"
)


def admit_quantised(base: Any, *, has_adapters: bool) -> None:
    """Refuse a quantised policy that cannot learn, or whose log-probs would be read off packed numbers.

    On a CPU with AVX-512 bf16, a 4-bit layer of bitsandbytes that runs in evaluation mode packs its weight anew, in
    place and with coarser scales, and the backward pass cannot read that. It is told not to.

    Args:
        base: the model without PEFT around it, quantised or not.
        has_adapters: there are adapters, or will be.

    Raises:
        ConfigError: a method other than bitsandbytes in 4 bits, no adapters, or a quantised LM head.
    """
    if not getattr(base, "is_quantized", False):
        return
    if not getattr(base, "is_loaded_in_4bit", False):
        method = base.hf_quantizer.quantization_config.quant_method
        method = getattr(method, "value", method)
        raise ConfigError(f"expected a policy in full precision or in 4 bits, got one quantised by {method}: {_HOW}")
    if not has_adapters:
        raise ConfigError(f"the policy is quantised to 4 bits and has no adapters to train: {_HOW}")
    if not base.get_output_embeddings().weight.is_floating_point():
        raise ConfigError(
            "the LM head is quantised, and chunked log-probs read its weight: keep it out with "
            'BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])'
        )
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
