"""What is known before step 0, on a real tiny InternVL: the loss, the memory, the layout, what is not the paper's."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure_memory
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from mpo.doctor.memory import Activations, MemoryEstimate, count_activations
from mpo.doctor.preflight import StepZero, histogram, preflight
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.scoring import response_logps
from mpo.trainer import MPOTrainer
from recipes.worlds.digits.policy import PolicySize, build_policy
from tests.mpo.tiny import preference_row, preference_rows, tiny_config, tiny_internvl

ROOT = Path(__file__).resolve().parents[2]
LORA = LoraConfig(target_modules=["q_proj", "v_proj"], r=2)


def trainer_for(folder: Any, *, rows: Any = None, model: Any = None, **changes: Any) -> MPOTrainer:
    own = {key: changes.pop(key) for key in ("ref_model", "peft_config") if key in changes}
    return MPOTrainer(
        model or tiny_internvl(),
        args=tiny_config(folder, **changes),
        train_dataset=rows or preference_rows(8),
        processing_class=load_processor(tiny_internvl()),
        **own,
    )


def weights_of(trainer: MPOTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


# ---- the loss at step 0 ----


@pytest.mark.parametrize("peft_config", [None, LORA])
def test_step_zero_is_the_loss_that_training_logs_first(tmp_path: Path, peft_config: LoraConfig | None) -> None:
    """One batch of all rows, so that their order does not matter: 0.8·ln 2 + 0.2·2·ln 2 + L_g."""
    trainer = trainer_for(tmp_path, per_device_train_batch_size=8, max_steps=1, peft_config=peft_config)
    step = preflight(trainer).step_zero
    assert step.agrees
    assert step.pairs == 8
    assert step.largest_reward == 0.0
    assert step.constant == pytest.approx(1.2 * math.log(2), abs=1e-6)
    trainer.train()
    assert step.loss == pytest.approx(trainer.state.log_history[0]["loss"], abs=1e-4)
    assert step.generation == pytest.approx(trainer.state.log_history[0]["loss/generation"], abs=1e-4)


def test_weights_of_pairs_and_of_parts_are_expected(tmp_path: Path) -> None:
    rows = [preference_row(i, weight=0.5 * i) for i in range(4)]
    changes: dict[str, Any] = {"preference_weight": 0.3, "quality_weight": 2.0, "generation_weight": 0.0}
    step = preflight(trainer_for(tmp_path, rows=rows, label_smoothing=0.2, **changes)).step_zero
    # mean weight 0.75; (0.3 + 2·2.0)·ln 2 a pair
    assert step.agrees
    assert step.loss == pytest.approx(0.75 * 4.3 * math.log(2), abs=1e-5)


def test_another_reference_is_seen(tmp_path: Path) -> None:
    other = build_policy(tmp_path / "other", seed=1, size=PolicySize(32, 1, 32, 2, 2))
    step = preflight(trainer_for(tmp_path, ref_model=other)).step_zero
    assert not step.agrees
    assert step.largest_reward > 0.1


def test_dropout_that_was_left_on_is_seen(tmp_path: Path) -> None:
    """`disable_dropout` finds modules; attention dropout is a number in the config, which training applies."""
    model = load_model(tiny_internvl())
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.3
    assert not preflight(trainer_for(tmp_path, model=model, layout="paired")).step_zero.agrees


def test_a_reward_that_both_responses_share_is_no_agreement() -> None:
    assert StepZero(2.0, 1.0, 1.0, 2.0, 0.0, 4, 1e-3).agrees
    assert not StepZero(2.0, 1.0, 1.0, 2.0, 0.5, 4, 1e-3).agrees
    assert not StepZero(math.nan, 1.0, math.nan, math.nan, 0.0, 4, 1e-3).agrees


def test_a_run_after_a_look_is_the_run_without(tmp_path: Path) -> None:
    looked, plain = trainer_for(tmp_path / "a"), trainer_for(tmp_path / "b")
    preflight(looked)
    assert looked.reward_shift.state_dict() == plain.reward_shift.state_dict()
    for trainer in (looked, plain):
        trainer.train()
    assert torch.equal(weights_of(looked), weights_of(plain))
    assert [line.get("loss") for line in looked.state.log_history] == [
        line.get("loss") for line in plain.state.log_history
    ]


# ---- what else is found ----


def test_findings(tmp_path: Path) -> None:
    rows = [*preference_rows(6), preference_row(6, chosen="")]
    settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "max_steps": -1, "num_train_epochs": 2}
    found = preflight(trainer_for(tmp_path, rows=rows, layout="paired", **settings))
    assert found.rows.rejected == {"empty response": 1}
    assert len(found.lengths) == 6
    assert (found.layout, found.layout_reason) == ("paired", "layout='paired' was requested")
    # 6 rows in micro-batches of 2: 3 of them, so 2 steps per epoch
    assert (found.batch.pairs_a_step, found.batch.steps, found.batch.epochs) == (4, 4, 2)
    by_setting = {deviation.setting: (deviation.here, deviation.paper) for deviation in found.deviations}
    assert by_setting == {
        "beta": ("1", "0.1"),
        "learning_rate": ("0.05", "5e-06"),
        "pairs per step": ("4", "256"),
        "epochs": ("2", "1"),
        "optimizer": ("sgd", "adamw"),
        "weight_decay": ("0", "0.05"),
        "warm-up, share of steps": ("0", "0.05"),
        "lr_scheduler_type": ("constant", "cosine"),
        "number type": ("float32", "bfloat16"),
    }


def test_the_shared_layout_says_what_it_saves(tmp_path: Path) -> None:
    found = preflight(trainer_for(tmp_path))
    assert found.layout == "shared"
    assert "its values differ from those of a row per response by" in found.layout_reason
    prompts, responses = sum(p.prompt for p in found.lengths), sum(p.chosen + p.rejected for p in found.lengths)
    assert found.tokens_saved == (2 * prompts + responses) / (prompts + responses) > 1.3


def test_adapters_train_a_share(tmp_path: Path) -> None:
    found = preflight(trainer_for(tmp_path, peft_config=LORA, optim="adamw_torch"))
    (share,) = [d.here for d in found.deviations if d.setting == "trained weights"]
    assert 0 < float(share.rstrip("%")) < 20
    assert found.memory.reference == 0
    assert found.memory.optimizer == 2 * found.memory.gradients < found.memory.weights


def test_a_stream_has_no_preflight(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list(preference_rows(2)).to_iterable_dataset()
    with pytest.raises(ConfigError, match="expected a training dataset with a length"):
        preflight(trainer_for(tmp_path, rows=rows))


@given(st.lists(st.integers(0, 5000), min_size=1), st.integers(1, 12))
def test_a_histogram_counts_every_value_once(values: list[int], bins: int) -> None:
    found = histogram(values, bins)
    assert len(found) <= bins
    assert sum(count for *_, count in found) == len(values)
    for low, high, count in found:
        assert count == sum(low <= value <= high for value in values)


# ---- memory ----


def test_peak_by_hand() -> None:
    activations = Activations(language=600, vision=300, rest=50, layer_inputs=40, largest_layer=100)
    one = MemoryEstimate(1000, 1000, 2000, 400, activations, checkpointing=False, accumulates=False)
    assert one.peak == 1000 + 1000 + 2000 + (600 + 300 + 50)
    assert one.peak_with(checkpointing=True) == 4000 + max(50 + 40 + 100, 400)
    several = MemoryEstimate(1000, 0, 2000, 400, activations, checkpointing=True, accumulates=True)
    assert several.peak == 3000 + 190 + 400
    fed = replace(several, batch=70, head=30)
    assert fed.peak == 3000 + 70 + (190 + 30) + 400


def test_a_micro_batch_is_counted_once_and_alone(tmp_path: Path) -> None:
    """Four micro-batches per step, one of them held: pixels in float32, ids, mask, labels and positions in int64."""
    trainer = trainer_for(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=4)
    memory = preflight(trainer, batches=1).memory
    batch = trainer.data_collator(list(trainer.train_dataset))
    pixels, ids = batch["pixel_values"], batch["input_ids"]
    assert memory.batch == 4 * pixels.numel() + 4 * 8 * ids.numel()
    width = trainer.model.get_output_embeddings().weight.shape
    positions = ids[:, 1:].numel()
    assert memory.head == 4 * positions * (width[0] + width[1])  # on a CPU all positions, one tile of the vocabulary


def test_counted_activations_are_what_autograd_saves(tmp_path: Path) -> None:
    """A linear layer saves its input, (6, 4) float32; the second one its own, (6, 8); weights are not counted."""

    class Two(torch.nn.Sequential):
        def get_decoder(self) -> torch.nn.Module:
            return self

    model = Two(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    # Tanh saves its output, which is the second layer's input: one storage, counted once
    found = count_activations(model, lambda: model(torch.ones(6, 4)))
    assert found == Activations(0, 0, 6 * 4 * 4 + 6 * 8 * 4, 0, 0)


def test_a_frozen_vision_tower_saves_nothing(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, layout="paired")
    batch = trainer.data_collator(preference_rows(2))
    batch.pop("pair_ids")
    trained = count_activations(trainer.model, lambda: response_logps(trainer.model, batch))
    trainer.model.model.vision_tower.requires_grad_(False)
    frozen = count_activations(trainer.model, lambda: response_logps(trainer.model, batch))
    assert trained.vision > frozen.vision == 0
    assert frozen.language == trained.language > 0
    assert 0 < frozen.layer_inputs < trained.layer_inputs < trained.language


@pytest.fixture(scope="module")
def wide_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """9 million weights, 35 MB."""
    size = PolicySize(vision_hidden=128, vision_layers=2, text_hidden=384, text_layers=4, heads=8)
    return str(build_policy(tmp_path_factory.mktemp("wide"), seed=0, size=size))


@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(
    "settings",
    [
        {"words": 80, "optim": "adamw_torch"},  # activations are most of it
        {"words": 80, "optim": "adamw_torch", "gradient_checkpointing": True},  # weights and their states are
        {"words": 40, "optim": "sgd", "gradient_accumulation_steps": 2, "layout": "paired"},
    ],
)
def test_the_estimate_is_near_the_measured_peak(tmp_path: Path, wide_policy: str, settings: dict[str, Any]) -> None:
    """Within a factor of 1.3 of what the process really took."""
    script = str(Path(measure_memory.__file__))
    command = [sys.executable, script, tiny_internvl(), wide_policy, str(tmp_path), json.dumps(settings)]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'mpo'}",
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "262144",  # freed tensors go back to the system at once
    }
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(settings, {name: round(value / 1e6) for name, value in found.items()})
    assert 1 / 1.3 < found["measured"] / found["estimated"] < 1.3
