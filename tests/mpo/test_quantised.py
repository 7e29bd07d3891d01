"""QLoRA on the CPU: a real 4-bit base of bitsandbytes under MPOTrainer, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import preference_rows, tiny_config, tiny_internvl

pytest.importorskip("bitsandbytes")

LORA = LoraConfig(target_modules="all-linear", exclude_modules="lm_head", r=2)
FOUR_BITS: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def quantised(**settings: Any) -> Any:
    return load_model(tiny_internvl(), quantization_config=BitsAndBytesConfig(**(settings or FOUR_BITS)))


def trainer_in(folder: Path, model: Any, *, peft_config: Any = LORA, **changes: Any) -> MPOTrainer:
    return MPOTrainer(
        model,
        args=tiny_config(folder, **changes),
        train_dataset=preference_rows(4),
        processing_class=load_processor(tiny_internvl()),
        peft_config=peft_config,
    )


def state_of(model: Any, *, adapters: bool) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if ("lora_" in name) is adapters}


def lines(trainer: MPOTrainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


def test_qlora_trains_its_adapters_and_nothing_else(tmp_path: Path) -> None:
    """The base stays 4-bit and bit by bit what it was; the reference is the base, so step 0 is 0.8318 + L_g."""
    trainer = trainer_in(
        tmp_path, quantised(), max_steps=4, save_strategy="steps", save_steps=2, gradient_checkpointing=True
    )
    packed = {name for name, p in trainer.model.named_parameters() if p.dtype == torch.uint8}
    assert len(packed) >= 7 * 2 + 6  # linear layers of two text blocks and one vision block
    assert not any("lm_head" in name or "lora_" in name for name in packed)
    assert trainer.ref_model is None
    base, adapters = state_of(trainer.model, adapters=False), state_of(trainer.model, adapters=True)
    trainer.train()
    after = state_of(trainer.model, adapters=False)
    assert all(torch.equal(after[name], value) for name, value in base.items())
    moved = state_of(trainer.model, adapters=True)
    assert sum(not torch.equal(moved[name], value) for name, value in adapters.items()) > len(adapters) / 2
    first, last = lines(trainer)[0], lines(trainer)[-1]
    assert first["loss"] == pytest.approx(0.8318 + first["loss/generation"], abs=1e-4)
    assert last["rewards/margins"] > first["rewards/margins"] == 0.0
    assert last["loss"] < first["loss"]

    resumed = trainer_in(tmp_path / "resumed", quantised(), max_steps=4, gradient_checkpointing=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    again = state_of(resumed.model, adapters=True)
    assert all(torch.equal(again[name], value) for name, value in moved.items())


def test_shared_prompts_and_a_cached_reference_in_four_bits(tmp_path: Path) -> None:
    plain = trainer_in(tmp_path / "plain", quantised(), layout="shared")
    cached = trainer_in(tmp_path / "cached", quantised(), layout="shared", precompute_ref_log_probs=True)
    for trainer in (plain, cached):
        trainer.train()
    assert lines(cached)[-1]["loss"] == pytest.approx(lines(plain)[-1]["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "peft_config", "message"),
    [
        (FOUR_BITS, None, "quantised to 4 bits and has no adapters to train: load it with"),
        ({"load_in_8bit": True}, LORA, "got one quantised by .*bitsandbytes.*load_in_4bit=True"),
        ({**FOUR_BITS, "llm_int8_skip_modules": ["vision_tower"]}, LORA, "the LM head is quantised"),
    ],
    ids=["no adapters", "8 bits", "quantised head"],
)
def test_refusals(tmp_path: Path, settings: dict[str, Any], peft_config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_in(tmp_path, quantised(**settings), peft_config=peft_config)
