"""Models whose layers keep a state along the row train in the paired layout, and say so: real processors, images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mpo.multimodal.errors import ConfigError
from mpo.trainer import MPOTrainer
from recipes.worlds.digits.policy import build_processor
from tests.mpo.tiny import preference_rows, tiny_config
from tests.mpo.tiny_models import NOT_SHARING, tiny_model

TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% for block in message.content -%}
{%- if block.type == 'image' -%}PLACEHOLDER{%- else -%}{{ block.text }}{%- endif -%}
{%- endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
PLACEHOLDERS = {"qwen3_5": "<|vision_start|><|image_pad|><|vision_end|>", "lfm2_vl": "<image>"}
SPECIAL = {
    "qwen3_5": ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"],
    "lfm2_vl": ["<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"],
}


def processor_of(name: str) -> Any:
    """The architecture's own processor around the digits world's tokenizer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_processor().tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_tokens(SPECIAL[name], special_tokens=True)
    template = TEMPLATE.replace("PLACEHOLDER", PLACEHOLDERS[name])
    if name == "lfm2_vl":
        images = Lfm2VlImageProcessor(
            **{"do_image_splitting": False, "encoder_patch_size": 14, "tile_size": 56},
            **{"min_image_tokens": 1, "max_image_tokens": 4, "max_num_patches": 16},
        )
        return Lfm2VlProcessor(images, tokenizer, chat_template=template)
    images = Qwen2VLImageProcessor(patch_size=14, size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    return Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=template)


def model_of(name: str, processor: Any) -> Any:
    """The tiny model with the vocabulary of its processor."""
    model = tiny_model(name)
    model.resize_token_embeddings(len(processor.tokenizer))
    for part, token in {"image": processor.image_token_id, "video": getattr(processor, "video_token_id", None)}.items():
        if token is not None:
            setattr(model.config, f"{part}_token_id", token)
    for part in ("start", "end"):
        if hasattr(processor, f"vision_{part}_token_id"):
            setattr(model.config, f"vision_{part}_token_id", getattr(processor, f"vision_{part}_token_id"))
    return model


def trained(folder: Path, name: str, layout: str) -> MPOTrainer:
    processor = processor_of(name)
    rows = preference_rows(6)
    rows[2]["images"] = []
    args = tiny_config(folder / layout, layout=layout, max_steps=3, gradient_accumulation_steps=2, beta=0.1)
    torch.manual_seed(0)
    trainer = MPOTrainer(
        model_of(name, processor), args=args, train_dataset=rows, eval_dataset=rows[:3], processing_class=processor
    )
    trainer.train()
    trainer.state.log_history.append(trainer.evaluate())
    return trainer


@pytest.mark.parametrize("name", NOT_SHARING)
def test_a_model_with_a_state_falls_back_and_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    auto = trained(tmp_path, name, "auto")
    warnings = [record.getMessage() for record in caplog.records if "layout 'paired'" in record.getMessage()]
    assert len(warnings) == 1
    assert NOT_SHARING[name][1] in warnings[0]
    assert not auto.sharing.on
    paired = trained(tmp_path, name, "paired")
    for ours, expected in zip(auto.state.log_history, paired.state.log_history, strict=True):
        for key in ours:
            if not key.endswith(("runtime", "_per_second", "tokens/s")):
                assert ours[key] == pytest.approx(expected[key], abs=1e-6), key
    for ours, expected in zip(auto.model.parameters(), paired.model.parameters(), strict=True):
        assert torch.equal(ours, expected)
    assert auto.reward_shift.value == paired.reward_shift.value != 0.0
    with pytest.raises(ConfigError, match=rf"layout='shared' is not possible: .*{NOT_SHARING[name][1]}"):
        trained(tmp_path, name, "shared")
