"""An image is encoded once: for rows that repeat it, and for a policy and a reference that share frozen features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from mpo.forward import prepare_models
from mpo.multimodal.loading import load_model
from mpo.multimodal.packing import pack_rows, paired_rows
from mpo.multimodal.prefix import EncodedPrompt
from mpo.multimodal.scoring import response_logps
from mpo.multimodal.vision import BLANK, IMAGES, RowImages, encode_images_once, share_frozen_vision
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import preference_rows, tiny_config, tiny_internvl
from tests.mpo.tiny_models import SHARING, packed_batch, prepared, tiny_model


def count_calls(model: Any) -> list[int]:
    """One entry per call of the backbone's own encoder."""
    calls: list[int] = []
    encoder = encode_images_once(model)
    encode = encoder._encode
    encoder._encode = lambda *args, **kwargs: calls.append(1) or encode(*args, **kwargs)
    return calls


@pytest.mark.parametrize("name", SHARING)
def test_repeated_rows_give_the_values_and_gradients_of_rows_encoded_each(name: str) -> None:
    """Three prompts (one image, none, two) with two responses each: three images are encoded, in one call."""
    results = []
    for once in (False, True):
        model = prepared(name, "plain")
        rows = paired_rows(packed_batch(name, model))
        calls = count_calls(model) if once else []
        sums, _ = response_logps(model, rows)
        (sums * torch.arange(1, len(sums) + 1)).sum().backward()
        results.append((sums.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}))
        assert len(calls) == 1 * once
    (each, each_grads), (shared, shared_grads) = results
    torch.testing.assert_close(shared, each, atol=2e-5, rtol=0)
    whole = torch.stack([grad.norm() for grad in each_grads.values()]).norm()
    assert each_grads.keys() == shared_grads.keys()
    for key, grad in each_grads.items():
        assert (shared_grads[key] - grad).norm() <= 1e-5 * torch.maximum(grad.norm(), 1e-3 * whole), key


@pytest.mark.parametrize("name", SHARING)
def test_a_blank_image_uses_the_tower_and_counts_nothing(name: str) -> None:
    """A text-only batch beside ranks with images: values and gradients are those without a blank image, and exactly the
    weights that an image trains are used, with a gradient of exactly 0."""
    model = prepared(name, "plain")
    encode_images_once(model)
    grads: dict[str, dict[str, torch.Tensor]] = {}
    sums: dict[str, torch.Tensor] = {}
    text = pack_rows([EncodedPrompt(torch.tensor([5, 6, 7, 8]), {}, {})], [[[9, 10], [11]]], pad_token_id=0)
    blank = {BLANK: SHARING[name][2](1)}
    for case, batch in (("images", packed_batch(name, model)), ("text", text), ("blank", {**text, **blank})):
        model.zero_grad(set_to_none=True)
        sums[case], _ = response_logps(model, batch)
        sums[case].sum().backward()
        grads[case] = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert torch.equal(sums["blank"], sums["text"])
    assert grads["blank"].keys() == grads["images"].keys() > grads["text"].keys()
    for key, grad in grads["blank"].items():
        assert torch.equal(grad, grads["text"].get(key, torch.zeros_like(grad))), key


def test_rows_without_pictures_and_batches_without_any() -> None:
    images = RowImages([0, 1, 0], {"pixel_values": [2, 0, 2]})
    assert images.with_images() == [0, 2]
    features = {"pixel_values": torch.tensor([1.0, 2.0, 1.0, 2.0])}
    assert images.select(features, [2, 1])["pixel_values"].tolist() == [1.0, 2.0]
    text = EncodedPrompt(torch.tensor([5, 6]), {}, {})
    assert IMAGES not in pack_rows([text], [[[7], [8]]], pad_token_id=0)


def test_tiles_are_padded_where_a_processor_pads_them() -> None:
    """Idefics3's processor gives (1, tiles, 3, H, W) a prompt; a tile of zeros is no tile to the model."""
    model = prepared("idefics3", "plain")
    prompts = [_prompt(tiles) for tiles in (1, 3)]
    together, _ = response_logps(model, pack_rows(prompts, [[[7, 8], [9]]] * 2, pad_token_id=0))
    alone = [response_logps(model, pack_rows([p], [[[7, 8], [9]]], pad_token_id=0))[0] for p in prompts]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=0)


def _prompt(tiles: int) -> EncodedPrompt:
    generator = torch.Generator().manual_seed(tiles)
    pixels = torch.randn(1, tiles, 3, 56, 56, generator=generator)
    return EncodedPrompt(torch.tensor([5, *[98] * 4 * tiles, 6, 7]), {}, {"pixel_values": pixels})


def vision_calls(trainer: MPOTrainer) -> list[int]:
    """Images (tiles) of every call of every vision tower of a trainer."""
    seen: list[int] = []
    for model in filter(None, (trainer.model, trainer.ref_model)):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.model.vision_tower.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
        )
    return seen


def run(folder: Path, *, frozen: bool, peft: bool = False, **changes: Any) -> tuple[MPOTrainer, list[int]]:
    model = load_model(tiny_internvl())
    if frozen:
        text = {id(p) for part in (model.get_decoder(), model.get_output_embeddings()) for p in part.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in text)
    targets = r".*language_model.*\.(q_proj|v_proj)" if frozen else ["q_proj", "v_proj"]
    trainer = MPOTrainer(
        model,
        args=tiny_config(folder, per_device_train_batch_size=1, max_steps=3, **changes),
        train_dataset=preference_rows(1),
        peft_config=LoraConfig(target_modules=targets, r=2) if peft else None,
    )
    trainer.sharing._checked = True  # its own forwards are not counted here
    seen = vision_calls(trainer)
    trainer.train()
    return trainer, seen


@pytest.mark.parametrize("layout", ["shared", "paired"])
@pytest.mark.parametrize("peft", [False, True])
def test_vision_passes_a_pair(tmp_path: Path, layout: str, peft: bool) -> None:
    """TRL: 4. Here 2 with a trained tower and an online reference, 1 with a frozen tower or a cached reference."""
    for frozen, cached, expected in ((False, False, 2), (True, False, 1), (False, True, 1), (True, True, 1)):
        changes = {"layout": layout, "precompute_ref_log_probs": cached}
        trainer, seen = run(tmp_path / f"{frozen}{cached}", frozen=frozen, peft=peft, **changes)
        assert seen == [1] * 3 * expected, (frozen, cached)
        assert trainer.state.global_step == 3


@pytest.mark.parametrize("peft", [False, True])
def test_shared_features_change_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peft: bool) -> None:
    shared, calls = run(tmp_path / "shared", frozen=True, peft=peft)
    monkeypatch.setattr("mpo.layout.share_frozen_vision", lambda *models: False)
    apart, more = run(tmp_path / "apart", frozen=True, peft=peft)
    assert len(more) == 2 * len(calls)
    for ours, theirs in zip(shared.state.log_history, apart.state.log_history, strict=True):
        for name in ("loss", "loss/preference", "logps/chosen", "rewards/margins"):
            assert ours.get(name) == pytest.approx(theirs.get(name), abs=1e-6)


def test_features_are_shared_only_where_they_are_equal() -> None:
    policy, reference = prepare_models(load_model(tiny_internvl()))
    assert not share_frozen_vision(policy, reference)  # the policy's tower is trained
    policy.requires_grad_(False)
    assert share_frozen_vision(policy, reference)
    with torch.no_grad():
        next(reference.model.vision_tower.parameters()).add_(1e-3)
    assert not share_frozen_vision(policy, reference)
    assert not share_frozen_vision(policy, tiny_model("internvl"))
