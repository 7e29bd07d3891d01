"""MPOTrainer on a real tiny InternVL: one update whatever the micro-batches, δ that survives, and honest failures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model

from mpo.collator import PreferenceCollator
from mpo.multimodal.errors import ConfigError, NonFiniteLossError
from mpo.multimodal.loading import load_model, load_processor
from mpo.trainer import REWARD_SHIFT_FILE, MPOTrainer
from tests.mpo.tiny import preference_row, preference_rows, tiny_config, tiny_internvl

LORA = LoraConfig(target_modules=["q_proj", "v_proj"], r=2)
LORA_OF_THE_DOCSTRING = LoraConfig(target_modules="all-linear", exclude_modules="lm_head", r=2)
OUR_METRICS = {
    "loss/preference", "loss/quality", "loss/generation", "bco/delta",
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
    "logps/chosen_per_token", "logps/chosen_per_token_reference",
}  # fmt: skip


def trainer_for(folder: Any, *, rows: list[Any] | None = None, model: Any = None, **changes: Any) -> MPOTrainer:
    own = {key: changes.pop(key) for key in ("ref_model", "peft_config", "eval_dataset") if key in changes}
    return MPOTrainer(
        model or tiny_internvl(),
        args=tiny_config(folder, **changes),
        train_dataset=rows or preference_rows(8),
        processing_class=load_processor(tiny_internvl()),
        **own,
    )


def trained(folder: Any, **changes: Any) -> MPOTrainer:
    trainer = trainer_for(folder, **changes)
    trainer.train()
    return trainer


def weights_of(trainer: MPOTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def logged(trainer: MPOTrainer, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.mark.parametrize(
    ("average", "cuts"),
    [("response", [(4, 1), (2, 2), (1, 4)]), ("token", [(4, 1), (1, 4)]), ("square", [(4, 1), (2, 2)])],
)
def test_micro_batches_do_not_matter(tmp_path: Path, average: str, cuts: list[tuple[int, int]]) -> None:
    """7 pairs in steps of 4 and 3, cut into (pairs, micro-batches): the same weights, losses, metrics and δ."""
    runs = [
        trained(
            tmp_path / f"{batch}x{accumulate}",
            rows=preference_rows(7),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            generation_average=average,
            max_steps=3,
        )
        for batch, accumulate in cuts
    ]
    one = runs[0]
    assert one.reward_shift.value != 0.0
    assert (weights_of(one) - weights_of(trainer_for(tmp_path / "untrained"))).abs().max() > 1e-2
    for other in runs[1:]:
        torch.testing.assert_close(weights_of(other), weights_of(one), atol=1e-6, rtol=0)
        assert other.reward_shift.value == pytest.approx(one.reward_shift.value, abs=1e-5)
        for name in ("loss", "grad_norm", *sorted(OUR_METRICS)):
            assert len(logged(other, name)) == 3
            assert logged(other, name) == pytest.approx(logged(one, name), abs=1e-4), name


def test_step_zero_and_the_sum_of_the_parts(tmp_path: Path) -> None:
    line = trained(tmp_path, max_steps=1).state.log_history[0]
    assert line.keys() >= OUR_METRICS
    # policy = reference, δ = 0: L_p = ln 2, L_q = 2·ln 2, total = 0.8318 + L_g
    assert line["loss/preference"] == pytest.approx(math.log(2), abs=1e-6)
    assert line["loss/quality"] == pytest.approx(2 * math.log(2), abs=1e-6)
    assert line["loss"] == pytest.approx(0.8318 + line["loss/generation"], abs=1e-4)
    assert line["rewards/chosen"] == line["rewards/rejected"] == line["bco/delta"] == 0.0


def test_the_loss_reads_the_committed_shift(tmp_path: Path) -> None:
    trainer = trained(tmp_path, max_steps=3)
    means = [(c + r) / 2 for c, r in zip(logged(trainer, "rewards/chosen"), logged(trainer, "rewards/rejected"))]  # noqa: B905
    # the step's own rewards are committed after it: δ_n = mean of steps < n
    assert logged(trainer, "bco/delta") == pytest.approx([0.0, means[0], (means[0] + means[1]) / 2], abs=1e-5)
    assert trainer.reward_shift.value == pytest.approx(sum(means) / 3, abs=1e-5)


@pytest.mark.parametrize(("mode", "peft_config"), [("cumulative", None), ("ema", None), ("cumulative", LORA)])
def test_resuming_equals_running_straight(tmp_path: Path, mode: str, peft_config: LoraConfig | None) -> None:
    settings: dict[str, Any] = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch",
        "learning_rate": 1e-3, "reward_shift": mode, "gradient_accumulation_steps": 2, "peft_config": peft_config,
    }  # fmt: skip
    straight = trained(tmp_path, **settings)
    checkpoint = tmp_path / "checkpoint-2"
    state = json.loads((checkpoint / REWARD_SHIFT_FILE).read_text())
    assert state["mode"] == mode
    assert state["count"] == 2 * 2 * 4  # two steps of four pairs, two rewards per pair

    resumed = trainer_for(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name in ("loss", "bco/delta", "rewards/margins"):
        assert logged(resumed, name)[-2:] == pytest.approx(logged(straight, name)[-2:], abs=1e-6)
    assert resumed.reward_shift.state_dict() == pytest.approx(straight.reward_shift.state_dict())
    torch.testing.assert_close(weights_of(resumed), weights_of(straight), atol=0, rtol=0)


def test_the_best_checkpoint_is_loaded(tmp_path: Path) -> None:
    """At a step this large the first checkpoint is the better one."""
    trainer = trained(
        tmp_path, max_steps=2, learning_rate=5.0, eval_dataset=preference_rows(2), eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True,
    )  # fmt: skip
    best = load_model(trainer.state.best_model_checkpoint)
    assert torch.equal(torch.cat([p.detach().flatten() for p in best.parameters()]), weights_of(trainer))
    assert trainer.state.best_global_step == min((1, 2), key=lambda step: logged(trainer, "eval_loss")[step - 1])


@pytest.mark.parametrize("average", ["response", "token", "square"])
def test_the_evaluation_loss_is_that_of_the_whole_set(tmp_path: Path, average: str) -> None:
    """Sums of numerators over sums of denominators, whatever the batch; the oracle reads each row alone."""
    rows, delta = preference_rows(5), 0.3
    found = []
    for size in (1, 2, 5):
        trainer = trainer_for(tmp_path, eval_dataset=rows, per_device_eval_batch_size=size, generation_average=average)
        trainer.reward_shift.load_state_dict({**trainer.reward_shift.state_dict(), "value": delta})
        found.append(trainer.evaluate())
    alone = [chosen_alone(row) for row in rows]  # −log p and number of tokens
    power = {"response": 1.0, "token": 0.0, "square": 0.5}[average]
    generation = sum(nll * n**-power for nll, n in alone) / sum(n ** (1 - power) for _, n in alone)
    # policy = reference: L_p = ln 2, L_q = softplus(δ) + softplus(−δ)
    quality = math.log1p(math.exp(delta)) + math.log1p(math.exp(-delta))
    for metrics in found:
        assert metrics["eval_loss/generation"] == pytest.approx(generation, abs=2e-5)
        assert metrics["eval_loss"] == pytest.approx(0.8 * math.log(2) + 0.2 * quality + generation, abs=5e-5)


def chosen_alone(row: dict[str, Any]) -> tuple[float, int]:
    """−log p of the chosen response and its tokens, from the full logits of an unpatched model."""
    batch = PreferenceCollator(load_processor(tiny_internvl()))([row])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        logps = load_model(tiny_internvl())(**inputs).logits.log_softmax(dim=-1)[0, :-1]
    labels = batch["labels"][0, 1:]
    said = labels != -100
    return -float(logps[said, labels[said]].sum()), int(said.sum())


def test_a_row_without_a_finite_loss_is_named_in_evaluation(tmp_path: Path) -> None:
    """One row of three, each in a batch of its own: without the guard eval_loss is NaN and says nothing."""
    trainer = trainer_for(tmp_path, eval_dataset=preference_rows(3), per_device_eval_batch_size=1)
    with torch.no_grad():  # only the longest response reaches this position
        lengths = [len(trainer.data_collator.check(row).chosen) for row in preference_rows(3)]
        assert lengths.index(max(lengths)) == 2
        loss_of = trainer.loss_of

        def overflowing(logps: Any, **how: Any) -> Any:
            far = logps.chosen_lengths[0] == max(lengths)
            return loss_of(replace(logps, policy_chosen=logps.policy_chosen * (math.inf if far else 1.0)), **how)

        trainer.loss_of = overflowing
        with pytest.raises(NonFiniteLossError, match=r"in evaluation, got NaN or infinity .* of \[pair-2\]"):
            trainer.evaluate()


UNUSUAL = [{"bias": "all"}, {"bias": "lora_only"}, *({"init_lora_weights": how} for how in ("pissa", "olora", "eva"))]


@pytest.mark.parametrize("adapters", UNUSUAL, ids=str)
def test_the_reference_of_any_adapter_is_the_initial_policy(tmp_path: Path, adapters: dict[str, Any]) -> None:
    """The same rows at each step: rewards 0 at the first, and a reference that is the base's and never moves."""
    same = {"rows": preference_rows(2), "max_steps": 3}
    given = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, **adapters)
    before = given.to_dict()
    trainer = trained(tmp_path, peft_config=given, learning_rate=1.0, **same)
    assert given.to_dict() == before
    alone = [chosen_alone(row) for row in preference_rows(2)]
    initial = -sum(nll / tokens for nll, tokens in alone) / 2
    assert logged(trainer, "logps/chosen_per_token_reference") == pytest.approx([initial] * 3, abs=1e-4)
    assert logged(trainer, "rewards/chosen")[0] == pytest.approx(0.0, abs=1e-4)
    if adapters != {"init_lora_weights": "eva"}:  # both factors are 0 until PEFT's own initialiser has run
        assert abs(logged(trainer, "rewards/chosen")[-1]) > 1e-3


def test_a_policy_that_is_not_its_reference_at_the_start_is_an_error(tmp_path: Path) -> None:
    """Adapters that somebody fills after the trainer was made, as PEFT's own initialisers do."""
    trainer = trainer_for(tmp_path, peft_config=LORA)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    with pytest.raises(ConfigError, match=r"policy and reference differ by .* nats per token \(limit 0.001\)"):
        trainer.train()


def test_evaluation_reads_the_shift_and_changes_nothing(tmp_path: Path) -> None:
    evaluated = trained(
        tmp_path / "a", eval_dataset=preference_rows(3), eval_strategy="steps", eval_steps=1, max_steps=3
    )
    assert torch.equal(weights_of(evaluated), weights_of(trained(tmp_path / "b", max_steps=3)))
    assert len(logged(evaluated, "eval_loss")) == 3

    delta = evaluated.reward_shift.state_dict()
    metrics = evaluated.evaluate()
    assert evaluated.reward_shift.state_dict() == delta
    assert metrics["eval_bco/delta"] == pytest.approx(delta["value"])
    assert {name.removeprefix("eval_") for name in metrics} >= OUR_METRICS
    total = 0.8 * metrics["eval_loss/preference"] + 0.2 * metrics["eval_loss/quality"] + metrics["eval_loss/generation"]
    assert metrics["eval_loss"] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize(("lora", "checkpointing"), [(LORA, False), (LORA_OF_THE_DOCSTRING, True)])
def test_lora(tmp_path: Path, lora: LoraConfig, checkpointing: bool) -> None:
    trainer = trained(tmp_path, peft_config=lora, gradient_checkpointing=checkpointing, max_steps=2)
    assert trainer.ref_model is None
    base = load_model(tiny_internvl()).state_dict()
    trained_state = trainer.model.get_base_model().state_dict()
    for name, value in base.items():
        same = trained_state.get(name, trained_state.get(name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")))  # noqa: E501  # fmt: skip
        assert torch.equal(same, value), name
    assert any(bool(p.any()) for name, p in trainer.model.named_parameters() if "lora_B" in name)
    assert logged(trainer, "rewards/margins")[0] == 0.0
    assert logged(trainer, "rewards/margins")[1] != 0.0


def test_frozen_copy_is_the_initial_policy(tmp_path: Path) -> None:
    trainer = trained(tmp_path, max_steps=1)
    initial = load_model(tiny_internvl()).state_dict()
    assert all(torch.equal(trainer.ref_model.state_dict()[name], value) for name, value in initial.items())
    assert not any(p.requires_grad for p in trainer.ref_model.parameters())


def test_a_trained_model_can_be_the_next_runs_policy(tmp_path: Path) -> None:
    """The copy of a model whose forward was patched must run its own weights, not the trained ones."""
    policy = trained(tmp_path / "first", max_steps=1).model
    second = trained(tmp_path / "second", model=policy, max_steps=2)
    assert logged(second, "rewards/margins")[0] == 0.0
    assert logged(second, "rewards/margins")[1] != 0.0


def test_an_explicit_reference_by_path(tmp_path: Path) -> None:
    policy = trained(tmp_path / "first", max_steps=1).model
    second = trained(tmp_path / "second", model=policy, ref_model=tiny_internvl(), max_steps=1)
    assert logged(second, "rewards/margins")[0] != 0.0


def test_a_pair_weight_scales_the_update(tmp_path: Path) -> None:
    none = trainer_for(tmp_path, rows=[preference_row(i, weight=0.0) for i in range(4)], max_steps=1)
    with pytest.raises(ConfigError, match="changed none of 52 trained tensors"):
        none.train()
    assert torch.equal(weights_of(none), weights_of(trainer_for(tmp_path)))


def test_a_pair_of_weight_two_counts_as_two(tmp_path: Path) -> None:
    """Two pairs of weights 2 and 0 in one step: (2·L_0 + 0·L_1) / 2 = L_0, the first pair alone."""
    settings: dict[str, Any] = {"max_steps": 1, "max_grad_norm": 0.0}
    both = trained(tmp_path / "a", rows=[preference_row(i, weight=w) for i, w in enumerate((2.0, 0.0))], **settings)
    alone = trained(tmp_path / "b", rows=[preference_row(0)], per_device_train_batch_size=1, **settings)
    assert (weights_of(alone) - weights_of(trainer_for(tmp_path))).abs().max() > 1e-3
    torch.testing.assert_close(weights_of(both), weights_of(alone), atol=1e-6, rtol=0)
    assert logged(both, "loss") == pytest.approx(logged(alone, "loss"), abs=1e-5)


def test_a_non_finite_loss_names_its_micro_batch(tmp_path: Path) -> None:
    rows = [preference_row(i, weight=3e38 if i == 2 else 1.0) for i in range(4)]
    trainer = trainer_for(tmp_path, rows=rows, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    before = weights_of(trainer)
    with pytest.raises(NonFiniteLossError, match=r"finite loss at step 1, .* \[pair-2\]"):
        trainer.train()
    assert torch.equal(weights_of(trainer), before)
    assert trainer.reward_shift.value == 0.0


def test_a_non_finite_gradient_stops_before_the_step(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, rows=preference_rows(2))
    next(p for p in trainer.model.parameters() if p.requires_grad).register_hook(lambda gradient: gradient * math.nan)
    before = weights_of(trainer)
    with pytest.raises(NonFiniteLossError, match=r"finite gradient at step 1, .* \[pair-\d, pair-\d\]"):
        trainer.train()
    assert torch.equal(weights_of(trainer), before)


def test_a_saved_model_loads(tmp_path: Path) -> None:
    trainer = trained(tmp_path, max_steps=1)
    trainer.save_model()
    loaded = load_model(tmp_path)
    assert torch.equal(torch.cat([p.detach().flatten() for p in loaded.parameters()]), weights_of(trainer))
    assert load_processor(tmp_path).tokenizer.pad_token_id is not None


def test_a_dataset_with_an_image_column_and_workers(tmp_path: Path) -> None:
    """`datasets` decodes the images and fills missing keys with None; workers pickle the collator."""
    rows = datasets.Dataset.from_list(preference_rows(4))
    from_dataset = trained(tmp_path / "a", rows=rows, dataloader_num_workers=1)
    from_list = trained(tmp_path / "b", rows=preference_rows(4))
    torch.testing.assert_close(weights_of(from_dataset), weights_of(from_list))


def test_bfloat16_starts_at_the_reference(tmp_path: Path) -> None:
    """Policy and reference share one autocast, so step 0 is exactly the reference in low precision as well."""
    trainer = trained(tmp_path, bf16=True, gradient_checkpointing=True, max_steps=2)
    assert logged(trainer, "rewards/chosen")[0] == logged(trainer, "rewards/rejected")[0] == 0.0
    assert logged(trainer, "rewards/margins")[1] != 0.0


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")  # PEFT, about the adapter we refuse
def test_refusals(tmp_path: Path) -> None:
    model = load_model(tiny_internvl())
    with pytest.raises(ConfigError, match="one object"):
        trainer_for(tmp_path, model=model, ref_model=model)
    with pytest.raises(ConfigError, match="exclude lm_head"):
        trainer_for(tmp_path, peft_config=LoraConfig(target_modules=["lm_head"], r=2))

    wrapped = get_peft_model(load_model(tiny_internvl()), LORA)
    with pytest.raises(ConfigError, match="already has adapters"):
        trainer_for(tmp_path, model=wrapped, peft_config=LORA)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    with pytest.raises(ConfigError, match="adapters are trained"):
        trainer_for(tmp_path, model=wrapped)
