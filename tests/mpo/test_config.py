from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from trl import DPOConfig, TrlParser

from mpo.config import REFUSED, MPOConfig
from mpo.multimodal.errors import ConfigError
from mpo.types import LossWeights

# Fields of DPOConfig that MPO acts on, beyond TrainingArguments.
SUPPORTED = {
    "beta",
    "label_smoothing",
    "max_length",
    "disable_dropout",
    "precompute_ref_log_probs",
    "precompute_ref_batch_size",
}


def names(config: type) -> set[str]:
    return {field.name for field in fields(config)}


def test_own_fields() -> None:
    """A knob is added on purpose: say why in the pull request that changes this list."""
    assert names(MPOConfig) - names(DPOConfig) == {
        "preference_weight",
        "quality_weight",
        "generation_weight",
        "reward_shift",
        "reward_shift_momentum",
        "generation_average",
        "layout",
        "group_by_prompt",
        "max_row_tokens",
        "reference_cache_dir",
        "jpeg_augmentation",
        "allow_config_change",
    }


def test_every_field_of_dpo_config_is_acted_on_or_refused() -> None:
    dpo_only = names(DPOConfig) - names(TrainingArguments)
    assert dpo_only <= SUPPORTED | REFUSED.keys()
    assert not SUPPORTED & REFUSED.keys()
    assert REFUSED.keys() <= names(DPOConfig)


def test_paper_defaults(tmp_path: Path) -> None:
    config = MPOConfig(str(tmp_path))
    assert config.weights == LossWeights(0.8, 0.2, 1.0)
    assert (config.beta, config.reward_shift, config.generation_average) == (0.1, "cumulative", "response")


def test_first_contact_on_a_cpu(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    config = MPOConfig(str(tmp_path), use_cpu=True)
    assert not config.bf16
    assert not config.gradient_checkpointing
    assert not config.dataloader_pin_memory
    assert config.max_length is None
    assert config.remove_unused_columns is False
    assert config.logging_nan_inf_filter is False
    assert config.report_to == []
    assert not list(recwarn)


def test_cpu_is_picked_where_there_is_no_accelerator(tmp_path: Path) -> None:
    assert MPOConfig(str(tmp_path)).use_cpu is not torch.accelerator.is_available()


def test_gradient_checkpointing_can_be_asked_for(tmp_path: Path) -> None:
    assert MPOConfig(str(tmp_path), use_cpu=True, gradient_checkpointing=True).activation_checkpointing


CHANGED: dict[str, Any] = {
    "loss_type": ["sigmoid", "bco_pair", "sft"],
    "loss_weights": [1.0],
    "f_divergence_type": "js_divergence",
    "f_alpha_divergence_coef": 0.3,
    "ld_alpha": 0.5,
    "discopop_tau": 0.1,
    "use_weighting": True,
    "padding_free": True,
    "pad_to_multiple_of": 8,
    "sync_ref_model": True,
    "ref_model_mixup_alpha": 0.5,
    "ref_model_sync_steps": 10,
    "truncation_mode": "keep_end",
    "dataset_num_proc": 2,
    "pad_token": "<pad>",
    "model_init_kwargs": {"dtype": "bfloat16"},
    "trust_remote_code": True,
    "router_aux_loss_coef": 0.1,
    "activation_offloading": True,
    "use_liger_kernel": True,
    "label_smoothing_factor": 0.1,
    "remove_unused_columns": True,
}


def test_the_list_of_changes_is_complete() -> None:
    assert CHANGED.keys() == REFUSED.keys()


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_a_field_without_effect_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{name}=.* has no effect in MPO") as caught:
        MPOConfig(str(tmp_path), **{name: CHANGED[name]})
    assert REFUSED[name] in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference_weight": -0.1}, "loss weights must be >= 0"),
        ({"preference_weight": 0.0, "quality_weight": 0.0, "generation_weight": 0.0}, "not all 0"),
        ({"reward_shift": "mean"}, "reward_shift must be one of"),
        ({"reward_shift_momentum": 1.0}, "reward_shift_momentum must lie in"),
        ({"generation_average": "sum"}, "generation_average must be one of"),
        ({"beta": 0.0}, "beta must be > 0"),
        ({"beta": float("nan")}, "beta must be > 0"),
        ({"label_smoothing": 0.5}, "label_smoothing must lie in"),
        ({"max_length": 0}, "max_length must be >= 1"),
    ],
)
def test_values_that_cannot_work_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        MPOConfig(str(tmp_path), **change)


def test_flags_and_yaml_are_parsed(tmp_path: Path) -> None:
    yaml = tmp_path / "mpo.yaml"
    yaml.write_text("quality_weight: 0.5\nreward_shift: ema\n")
    (config,) = TrlParser((MPOConfig,)).parse_args_and_config(
        ["--config", str(yaml), "--output_dir", str(tmp_path), "--beta", "0.2", "--use_cpu"]
    )
    assert (config.quality_weight, config.reward_shift, config.beta) == (0.5, "ema", 0.2)
    assert config.preference_weight == 0.8
    assert not config.bf16
    assert not config.gradient_checkpointing
