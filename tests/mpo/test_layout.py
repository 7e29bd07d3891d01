"""The shared prefix against the paired layout: eight architectures, the trainer, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from mpo.collator import PreferenceCollator
from mpo.layout import PromptSharing
from mpo.multimodal import shared_prefix
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.packing import LAYOUT, can_be_shared, paired_rows
from mpo.multimodal.prefix import encode_prompt
from mpo.multimodal.scoring import response_logps
from mpo.multimodal.shared_prefix import NAME, why_not_shared
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import preference_row, preference_rows, tiny_config, tiny_internvl
from tests.mpo.tiny_models import NOT_SHARING, SHARING, VARIANTS, differences, packed_batch, prepared, tiny_model


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_are_those_of_the_paired_layout(name: str, variant: str) -> None:
    found = differences(name, variant)
    assert found["log-prob"] <= 2e-5
    assert found["gradient"] <= 1e-5


@pytest.mark.parametrize("name", SHARING)
def test_these_models_would_show_a_wrong_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its layout the row is one long answer; the values are then off by far more than the tolerance."""
    model = prepared(name, "plain")
    packed = packed_batch(name, model)
    right, _ = response_logps(model, packed)
    _lose_the_layout(monkeypatch)
    wrong, _ = response_logps(model, packed)
    assert float((wrong - right).abs().max()) > 0.1


def _lose_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = shared_prefix.shared_prefix_attention

    def leaking(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(LAYOUT, None)
        return attention(*args, **kwargs)

    monkeypatch.setitem(shared_prefix.AttentionInterface._global_mapping, NAME, leaking)


@pytest.mark.parametrize("name", NOT_SHARING)
def test_layers_with_a_state_are_refused_by_name(name: str) -> None:
    assert NOT_SHARING[name][1] in (why_not_shared(tiny_model(name)) or "")


def test_the_prompt_goes_through_the_model_once() -> None:
    model = prepared("internvl", "plain")
    packed = packed_batch("internvl", model)
    tokens: list[int] = []
    images: list[int] = []
    decoder = model.get_decoder()
    decoder.layers[0].register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: images.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    response_logps(model, packed)
    assert (tokens, images) == ([sum(ends[-1] for ends in packed[LAYOUT].ends)], [3])


def test_checkpointing_keeps_the_layout_for_its_second_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    attention = shared_prefix.shared_prefix_attention

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs.get(LAYOUT) is not None)
        return attention(*args, **kwargs)

    monkeypatch.setitem(shared_prefix.AttentionInterface._global_mapping, NAME, counted)
    model = prepared("internvl", "checkpointing")
    sums, _ = response_logps(model, packed_batch("internvl", model))
    sums.sum().backward()
    assert calls == [True] * 4  # 2 layers, twice each


def test_a_model_that_was_not_prepared_raises_instead_of_misreading() -> None:
    model = tiny_model("internvl")
    with pytest.raises(ConfigError, match=r"call enable_shared_prefix\(model\) first"):
        response_logps(model, packed_batch("internvl", model))


def test_other_calls_are_unchanged() -> None:
    plain, ready = tiny_model("internvl"), prepared("internvl", "plain")
    rows = paired_rows(packed_batch("internvl", plain))
    labels = rows.pop("labels")
    assert torch.equal(plain(**rows).logits, ready(**rows).logits)
    assert labels.shape == rows["input_ids"].shape


@pytest.mark.parametrize("peft", [False, True])
def test_the_trainer_takes_the_same_steps_in_both_layouts(tmp_path: Path, peft: bool) -> None:
    rows = preference_rows(7)
    rows[2]["images"] = []

    def run(layout: str) -> MPOTrainer:
        trainer = MPOTrainer(
            tiny_internvl(),
            args=tiny_config(tmp_path / layout, layout=layout, max_steps=4, gradient_accumulation_steps=2),
            train_dataset=rows,
            eval_dataset=rows[:3],
            peft_config=LoraConfig(target_modules="all-linear", exclude_modules="lm_head") if peft else None,
        )
        trainer.train()
        trainer.state.log_history.append(trainer.evaluate())
        return trainer

    shared, paired = run("shared"), run("paired")
    assert shared.sharing.on
    assert not paired.sharing.on
    for ours, theirs in zip(shared.state.log_history, paired.state.log_history, strict=True):
        for name in ours:
            if not name.endswith(
                ("runtime", "_per_second", "total_flos", "rows_per_prompt", "tokens/s")
            ):  # fewer tokens
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    for (name, ours), theirs in zip(shared.model.named_parameters(), paired.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_a_batch_with_a_prompt_that_ends_in_an_image_is_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = load_processor(tiny_internvl())
    collate = PreferenceCollator(processor, shared_prefix=True)
    rows = preference_rows(2)
    assert LAYOUT in collate(rows)
    row = preference_row(0)
    prompt = encode_prompt(processor, collate.check(row).prompt, row["images"])
    assert can_be_shared(prompt, processor.image_token_id)
    ids = prompt.input_ids.clone()
    ids[-1] = processor.image_token_id
    ends_in_image = type(prompt)(ids, prompt.token_features, prompt.image_features)
    assert not can_be_shared(ends_in_image, processor.image_token_id)
    monkeypatch.setattr("mpo.collator.encode_prompt", lambda *_: ends_in_image)
    batch = PreferenceCollator(processor, shared_prefix=True)(rows)  # one that has kept no prompt
    assert LAYOUT not in batch
    assert len(batch["input_ids"]) == 4


def test_a_wrong_attention_is_found_at_the_first_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Responses that see the ones before them: what a plain causal mask over the packed row would do."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    _lose_the_layout(monkeypatch)
    model = prepared("internvl", "plain")
    packed = packed_batch("internvl", model)
    sharing = PromptSharing("auto", [model])
    state, mode = torch.get_rng_state(), model.training
    admitted = sharing.admit(packed, [model])
    assert "differ from those of a row per response" in caplog.text
    assert not sharing.on
    assert LAYOUT not in admitted
    assert torch.equal(admitted["input_ids"], paired_rows(packed)["input_ids"])
    assert torch.equal(state, torch.get_rng_state())
    assert model.training == mode
    with pytest.raises(ConfigError, match=r"layout='shared' is not possible: its values differ"):
        PromptSharing("shared", [model]).admit(packed, [model])


def test_a_model_that_cannot_share_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = load_model(tiny_internvl())
    model.set_attn_implementation({"text_config": "eager"})
    assert not PromptSharing("auto", [model]).on
    assert "layout 'paired'" in caplog.text
    assert "'eager'" in caplog.text
    with pytest.raises(ConfigError, match="needs 'sdpa'; set layout='auto' or 'paired'"):
        PromptSharing("shared", [model])
