"""Against the real `trl.DPOTrainer._compute_loss` on one model, one batch and one mask: equal where the two must
agree, different where they must not (δ, and how L_g averages).
"""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch
from trl import DPOConfig, DPOTrainer

from mpo.collator import PreferenceCollator
from mpo.forward import model_inputs, pair_logps
from mpo.losses import mpo_loss
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.vision import IMAGES
from mpo.types import LossWeights, PairLogps
from tests.mpo.tiny import preference_rows, tiny_internvl

PREFERENCE, QUALITY, GENERATION = LossWeights(1, 0, 0), LossWeights(0, 1, 0), LossWeights(0, 0, 1)
MPO_OF_TRL = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(tiny_internvl())


@pytest.fixture(scope="module")
def trl_trainer(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> DPOTrainer:
    """A DPOTrainer whose policy has moved away from its reference."""
    args = DPOConfig(
        str(tmp_path_factory.mktemp("dpo")), beta=0.5, use_cpu=True, bf16=False, max_length=None, report_to="none",
        gradient_checkpointing=False,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        trainer = DPOTrainer(
            tiny_internvl(),
            args=args,
            processing_class=processor,
            train_dataset=datasets.Dataset.from_list(
                [{key: row[key] for key in ("images", "prompt", "chosen", "rejected")} for row in preference_rows(2)]
            ),
        )
    torch.manual_seed(3)
    for parameter in trainer.model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return trainer


def trl_loss(trainer: DPOTrainer, inputs: dict[str, Any], *loss_types: str, weights: Any = None) -> torch.Tensor:
    """TRL's own code on our rows, all chosen ones first; its mask is made from our labels."""
    trainer.loss_types, trainer.loss_weights = list(loss_types), weights or [1.0] * len(loss_types)
    order = inputs["pair_index"].T.flatten().tolist()
    rows = {name: inputs[name][order] for name in ("input_ids", "attention_mask")}
    rows |= inputs[IMAGES].select(inputs, order)
    mask = (inputs["labels"][order] != -100).long()
    return trainer._compute_loss(trainer.model, {**rows, "completion_mask": mask}, False)


def our_logps(trainer: DPOTrainer, batch: dict[str, Any]) -> PairLogps:
    inputs, pairs = model_inputs(batch)
    return pair_logps(trainer.model, inputs, pairs["pair_index"], reference=trainer.ref_model)


def our_loss(logps: PairLogps, weights: LossWeights, **options: Any) -> torch.Tensor:
    return mpo_loss(logps, **({"beta": 0.5, "reward_shift": 0.0} | options), weights=weights).total


@pytest.fixture(scope="module")
def inputs(processor: Any) -> dict[str, Any]:
    return PreferenceCollator(processor)(preference_rows(2))


@pytest.fixture(scope="module")
def logps(trl_trainer: DPOTrainer, inputs: dict[str, Any]) -> PairLogps:
    return our_logps(trl_trainer, inputs)


def test_policy_has_moved(logps: PairLogps) -> None:
    assert (logps.policy_chosen - logps.reference_chosen).abs().min() > 0.05
    assert logps.chosen_lengths.unique().numel() == 2  # else the averages of L_g could not be told apart


def test_preference_agrees(trl_trainer: DPOTrainer, inputs: dict[str, Any], logps: PairLogps) -> None:
    torch.testing.assert_close(our_loss(logps, PREFERENCE), trl_loss(trl_trainer, inputs, "sigmoid"))


def test_gradients_of_the_preference_agree(trl_trainer: DPOTrainer, inputs: dict[str, Any]) -> None:
    parameters = [p for p in trl_trainer.model.parameters() if p.requires_grad]
    fresh = our_logps(trl_trainer, inputs)
    ours = torch.autograd.grad(our_loss(fresh, PREFERENCE), parameters, allow_unused=True)
    theirs = torch.autograd.grad(trl_loss(trl_trainer, inputs, "sigmoid"), parameters, allow_unused=True)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_quality_agrees_at_zero_shift_only(trl_trainer: DPOTrainer, inputs: dict[str, Any], logps: PairLogps) -> None:
    theirs = trl_loss(trl_trainer, inputs, "bco_pair")
    torch.testing.assert_close(our_loss(logps, QUALITY), theirs)
    assert abs(our_loss(logps, QUALITY, reward_shift=-1.0) - theirs) > 0.01


def test_generation_agrees_for_the_token_average_only(
    trl_trainer: DPOTrainer, inputs: dict[str, Any], logps: PairLogps
) -> None:
    theirs = trl_loss(trl_trainer, inputs, "sft")
    torch.testing.assert_close(our_loss(logps, GENERATION, generation_average="token"), theirs)
    assert abs(our_loss(logps, GENERATION, generation_average="response") - theirs) > 1e-3


def test_generation_agrees_for_one_pair(trl_trainer: DPOTrainer, processor: Any) -> None:
    one = PreferenceCollator(processor)(preference_rows(1))
    logps = our_logps(trl_trainer, one)
    torch.testing.assert_close(our_loss(logps, GENERATION), trl_loss(trl_trainer, one, "sft"))


def test_trls_mpo_is_ours_without_the_shift(trl_trainer: DPOTrainer, inputs: dict[str, Any], logps: PairLogps) -> None:
    theirs = trl_loss(trl_trainer, inputs, *MPO_OF_TRL["loss_type"], weights=MPO_OF_TRL["loss_weights"])
    torch.testing.assert_close(our_loss(logps, LossWeights(), generation_average="token"), theirs)
    shifted = our_loss(logps, LossWeights(), generation_average="token", reward_shift=-1.0)
    assert abs(shifted - theirs) > 1e-3


def test_frozen_reference_is_the_checkpoint(trl_trainer: DPOTrainer) -> None:
    """The fixture moved the policy only, so the comparison above is not of a model with itself."""
    initial = load_model(tiny_internvl()).state_dict()
    assert all(torch.equal(trl_trainer.ref_model.state_dict()[name], value) for name, value in initial.items())
