"""Responses → PairLogps: the pairs' index, reference without gradients, adapters off only while the reference runs."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mpo.collator import PreferenceCollator
from mpo.forward import model_inputs, pair_logps, prepare_models
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.logps import enable_chunked_logps
from mpo.multimodal.vision import IMAGES
from mpo.types import PairLogps
from tests.mpo.tiny import preference_rows, tiny_internvl

PAIRS = torch.tensor([[0, 1], [2, 3]])


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    batch, pairs = model_inputs(PreferenceCollator(load_processor(tiny_internvl()))(preference_rows(2)))
    assert torch.equal(pairs["pair_index"], PAIRS)
    return batch


def prepared() -> torch.nn.Module:
    model = load_model(tiny_internvl())
    enable_chunked_logps(model)
    return model


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def by_hand(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probs from the full logits of an unpatched model."""
    visible = {key: value for key, value in inputs.items() if key not in ("labels", IMAGES)}
    with torch.no_grad():
        logps = load_model(tiny_internvl())(**visible).logits.log_softmax(dim=-1)[:, :-1]  # (M, T-1, V)
    labels = inputs["labels"][:, 1:]
    picked = logps.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return (picked * (labels != -100)).sum(dim=1)[PAIRS.T.flatten()]


def test_two_models(inputs: dict[str, torch.Tensor]) -> None:
    logps = pair_logps(perturbed(prepared()), inputs, PAIRS, reference=prepared().requires_grad_(False).eval())
    expected = by_hand(inputs)
    torch.testing.assert_close(torch.cat([logps.reference_chosen, logps.reference_rejected]), expected)
    assert (logps.policy_chosen - logps.reference_chosen).abs().min() > 1e-3
    assert logps.policy_chosen.requires_grad
    assert not logps.reference_chosen.requires_grad
    assert logps.chosen_lengths.tolist() == (inputs["labels"][[0, 2]] != -100).sum(dim=1).tolist()
    assert {value.shape for value in vars(logps).values()} == {(2,)}


def test_disabled_adapters_are_the_base_model(inputs: dict[str, torch.Tensor]) -> None:
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, lora_dropout=0.5)
    policy = perturbed(get_peft_model(prepared(), lora)).train()
    modes: list[bool] = []
    policy.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    logps = pair_logps(policy, inputs, PAIRS)
    assert modes == [False, True]  # the reference has no dropout
    torch.testing.assert_close(torch.cat([logps.reference_chosen, logps.reference_rejected]), by_hand(inputs))
    assert (logps.policy_chosen - logps.reference_chosen).abs().min() > 1e-4
    assert policy.training
    (logps.policy_chosen.sum() + logps.policy_rejected.sum()).backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad and "language" in name}
    assert gradients
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())


def test_the_copy_of_a_patched_model_runs_its_own_weights(inputs: dict[str, torch.Tensor]) -> None:
    policy, reference = prepare_models(prepared())
    perturbed(policy)
    visible = {key: value for key, value in inputs.items() if key not in ("labels", IMAGES)}
    with torch.no_grad():
        expected = load_model(tiny_internvl())(**visible).logits
        torch.testing.assert_close(reference(**visible).logits, expected)
    logps = pair_logps(policy, inputs, PAIRS, reference=reference)
    torch.testing.assert_close(torch.cat([logps.reference_chosen, logps.reference_rejected]), by_hand(inputs))


def test_no_reference_at_all(inputs: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match="expected a reference model or a PEFT policy"):
        pair_logps(prepared(), inputs, PAIRS)


def test_a_wrapped_policy_is_unwrapped(inputs: dict[str, torch.Tensor]) -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, **kwargs: torch.Tensor) -> object:
            return self.module(**kwargs)

    lora = LoraConfig(target_modules=["q_proj"], r=2)
    policy = get_peft_model(prepared(), lora)
    plain, wrapped = pair_logps(policy, inputs, PAIRS), pair_logps(Wrapper(policy), inputs, PAIRS)
    assert isinstance(wrapped, PairLogps)
    torch.testing.assert_close(wrapped.reference_chosen, plain.reference_chosen)


UNUSUAL = [
    {"bias": "all"},
    {"bias": "lora_only"},
    *({"init_lora_weights": how} for how in ("pissa", "olora", "orthogonal")),
]


@pytest.mark.parametrize("unusual", UNUSUAL, ids=str)
def test_the_reference_is_the_initial_policy_whatever_the_adapters(
    inputs: dict[str, torch.Tensor], unusual: dict[str, str]
) -> None:
    """At the start policy and reference agree; after the weights moved the reference is still the initial policy."""
    given = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, **unusual)
    before = given.to_dict()
    policy, reference = prepare_models(tiny_internvl(), peft_config=given)
    assert reference is not None
    assert given.to_dict() == before  # PEFT writes the base model's path into what it is given
    start = pair_logps(policy, inputs, PAIRS, reference=reference)
    torch.testing.assert_close(start.policy_chosen, start.reference_chosen, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([start.reference_chosen, start.reference_rejected]), by_hand(inputs))
    after = pair_logps(perturbed(policy), inputs, PAIRS, reference=reference)
    assert (after.policy_chosen - after.reference_chosen).abs().min() > 1e-3
    torch.testing.assert_close(after.reference_chosen, start.reference_chosen)


def test_usual_adapters_need_no_copy_and_random_ones_are_refused() -> None:
    for usual in ({}, {"init_lora_weights": "gaussian"}, {"use_dora": True}, {"use_rslora": True}):
        _, reference = prepare_models(tiny_internvl(), peft_config=LoraConfig(target_modules=["q_proj"], **usual))
        assert reference is None, usual
    with pytest.raises(ConfigError, match="init_lora_weights=False starts from another model"):
        prepare_models(tiny_internvl(), peft_config=LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    biased = get_peft_model(prepared(), LoraConfig(target_modules=["q_proj"], bias="all"))
    with pytest.raises(ConfigError, match="bias='all' trains weights of the model under the adapters: pass ref_model"):
        prepare_models(biased)
