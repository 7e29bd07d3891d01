"""Every name of TRL 1.16 and transformers 5.23 that `mpo` relies on and that their authors may move.

When this file fails after an upgrade, the failing line names what to adapt; nothing else needs to be searched.
"""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
import transformers
import trl
from peft import PeftModel
from transformers import Trainer, TrainerCallback, trainer_utils
from transformers.utils import is_torch_bf16_gpu_available
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from mpo.config import MPOConfig
from mpo.trainer import MPOTrainer


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_versions() -> None:
    assert trl.__version__.startswith("1.16.")
    assert transformers.__version__.startswith("5.")


def test_trl_functions() -> None:
    assert parameters(add_fused_lm_head)[0] == "model"
    assert "log_probs" in inspect.signature(add_fused_lm_head).parameters["outputs"].default
    assert parameters(disable_dropout_in_model) == ["model"]
    assert parameters(prepare_deepspeed) == ["model", "accelerator"]
    assert parameters(prepare_fsdp) == ["model", "accelerator"]


def test_config_is_trls_dataclass() -> None:
    assert issubclass(MPOConfig, trl.DPOConfig)
    own = {field.name: field for field in fields(trl.DPOConfig)}
    assert own["beta"].default == 0.1
    assert own["label_smoothing"].default == 0.0
    assert own["disable_dropout"].default is True
    assert own["bf16"].default is None  # resolved in __post_init__, where we step in first
    assert own["pad_to_multiple_of"].default == "auto"
    assert callable(is_torch_bf16_gpu_available)


def test_trainer_is_transformers_own() -> None:
    assert issubclass(MPOTrainer, Trainer)
    assert not issubclass(MPOTrainer, trl.DPOTrainer)
    assert MPOTrainer.loss_is_scaled_for_ga is True
    assert "loss_is_scaled_for_ga" in inspect.getsource(Trainer.training_step)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("get_batch_samples", ["self", "epoch_iterator", "num_batches", "device"]),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("prediction_step", ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"]),
        (
            "evaluation_loop",
            ["self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
        ),
        ("log", ["self", "logs", "start_time"]),
        ("_get_grad_norm", ["self", "model", "grad_norm"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        ("_load_best_model", ["self"]),
    ],
)
def test_overridden_methods_keep_their_signature(name: str, expected: list[str]) -> None:
    assert parameters(getattr(Trainer, name)) == expected
    assert parameters(getattr(MPOTrainer, name)) == expected


def test_used_names_of_transformers() -> None:
    assert parameters(Trainer._get_output_dir) == ["self", "trial"]
    assert trainer_utils.PREFIX_CHECKPOINT_DIR == "checkpoint"
    assert hasattr(TrainerCallback, "on_optimizer_step")
    assert hasattr(PeftModel, "disable_adapter")


def test_order_of_the_training_loop() -> None:
    """The gradient is checked before the optimizer steps, δ is committed after, and both are where the log is not."""
    source = inspect.getsource(Trainer._run_epoch)
    order = [
        "self.get_batch_samples(",
        "self.training_step(",
        "self._get_grad_norm(",
        "self.optimizer.step()",
        "on_optimizer_step(",
        "self._maybe_log_save_evaluate(",
    ]
    places = [source.index(call) for call in order]
    assert places == sorted(places)
