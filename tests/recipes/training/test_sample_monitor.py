"""Periodic samples in real MPO runs of a tiny InternVL: what they show, and that the run does not notice them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image

from mpo.config import MPOConfig
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model
from mpo.trainer import MPOTrainer
from recipes.training.sample_monitor import SAMPLES, Sample, SampleMonitor, rates
from recipes.worlds.digits.world import scenes, to_problem
from rewards.interchange.trl_rows import problems_in_rows, to_trl_row
from rewards.sampling.transformers_generator import SamplingParams, TransformersGenerator
from rewards.types import Completion, PreferencePair, Problem
from rewards.verifying.degeneration import REASONS

PROBLEMS = [
    *(to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("test", 2, 1))),
    Problem("text", "What is 5?"),
]
PAIRS = [
    PreferencePair(problem, Completion(f"one {i}"), Completion("two three"), "test")
    for i, problem in enumerate(PROBLEMS)
]
ROWS = [to_trl_row(pair) for pair in PAIRS]
NAMES = {f"samples/{draw}/{name}" for draw in ("greedy", "sampled") for name in (*REASONS, "tokens")}
# Everything random that a run can hold: dropout in the adapters, order of the rows.
LORA = {"peft_config": LoraConfig(target_modules=["q_proj", "v_proj"], r=2, lora_dropout=0.5)}


def trainer_in(folder: Path, policy: Path, *, peft_config: Any = None, **changes: Any) -> MPOTrainer:
    settings: dict[str, Any] = {
        **{"per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 1, "learning_rate": 1e-2, "beta": 1.0},
        **{"save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "report_to": "none"},
    }
    args = MPOConfig(output_dir=str(folder), **(settings | changes))
    return MPOTrainer(str(policy), args=args, train_dataset=ROWS, peft_config=peft_config)


def watched(folder: Path, policy: Path, *, every: int = 2, tokens: int = 12, **changes: Any) -> MPOTrainer:
    trainer = trainer_in(folder, policy, **changes)
    trainer.add_callback(SampleMonitor(trainer, PROBLEMS, every=every, max_new_tokens=tokens))
    return trainer


def weights_of(trainer: MPOTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def samples_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SAMPLES).read_text().splitlines()]


@pytest.mark.parametrize(
    "changes", [{}, {**LORA, "disable_dropout": False}, {**LORA, "gradient_checkpointing": True}, {"bf16": True}],
    ids=["full", "LoRA with dropout", "LoRA with checkpointing", "bf16"],
)  # fmt: skip
def test_the_run_does_not_notice(tmp_path: Path, policy_folder: Path, changes: dict[str, Any]) -> None:
    """Bit-identical weights and log, the same random state after it, and the model as it was."""
    trainers, states = [], []
    for make in (trainer_in, watched):
        trainers.append(make(tmp_path / make.__name__, policy_folder, **changes))
        trainers[-1].train()
        states.append((random.getstate(), str(np.random.get_state()), torch.get_rng_state()))
    plain, seen = trainers
    assert torch.equal(weights_of(plain), weights_of(seen))
    assert not torch.equal(weights_of(seen), weights_of(trainer_in(tmp_path, policy_folder, **changes)))
    assert states[0][:2] == states[1][:2]
    assert torch.equal(states[0][2], states[1][2])
    timed = {"tokens/s", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
    logs = [
        [{k: v for k, v in line.items() if k not in timed} for line in t.state.log_history if NAMES.isdisjoint(line)]
        for t in trainers
    ]
    for one, two in zip(*logs, strict=True):
        assert one == two
    assert plain.model.config.to_dict() == seen.model.config.to_dict()
    assert plain.model.generation_config.to_dict() == seen.model.generation_config.to_dict()
    assert [m.training for m in plain.model.modules()] == [m.training for m in seen.model.modules()]


def test_samples_are_the_policys_at_that_step(tmp_path: Path, policy_folder: Path) -> None:
    """Step 0 is the untrained policy, step 4 the trained one, both as the generator alone draws them."""
    trainer = watched(tmp_path, policy_folder, learning_rate=0.05)
    start = load_model(policy_folder).eval()
    trainer.train()
    found = samples_in(tmp_path)
    assert [(row["step"], row["draw"]) for row in found[::3]] == [
        (step, draw) for step in (0, 2, 4) for draw in ("greedy", "sampled")
    ]
    assert [row["problem_id"] for row in found[:3]] == ["p0", "p1", "text"]
    assert found[0]["question"] == PROBLEMS[0].question
    for step, model in ((0, start), (4, trainer.model.eval())):
        for draw, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            params = SamplingParams(temperature=temperature, max_new_tokens=12)
            generator = TransformersGenerator(model, trainer.processing_class, params)
            expected = [row[0].text for row in generator.generate(PROBLEMS, 1, seed=0)]
            assert [r["answer"] for r in found if (r["step"], r["draw"]) == (step, draw)] == expected
    assert found[0]["answer"] != found[-6]["answer"]


def test_rates_are_logged_with_their_step(tmp_path: Path, policy_folder: Path) -> None:
    trainer = watched(tmp_path, policy_folder)
    trainer.train()
    lines = [line for line in trainer.state.log_history if not NAMES.isdisjoint(line)]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert all(line.keys() >= NAMES for line in lines)
    assert lines[0]["samples/greedy/truncated"] == 1.0  # a random model does not stop by itself
    assert lines[0]["samples/greedy/no_final_answer"] == 1.0
    assert lines[0]["samples/greedy/tokens"] == 12.0


def test_a_loop_is_seen_although_it_is_truncated(tmp_path: Path, policy_folder: Path) -> None:
    """A policy whose head has one direction for one token says that token for ever."""
    trainer = watched(tmp_path, policy_folder, tokens=48, max_steps=1)
    word = trainer.processing_class.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    digit = trainer.processing_class.tokenizer("7", add_special_tokens=False)["input_ids"][-1]
    hook = trainer.model.lm_head.register_forward_hook(lambda module, args, logits: _alternate(logits, word, digit))
    try:
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    finally:
        hook.remove()
    (line,) = trainer.state.log_history
    assert line["samples/greedy/repetition"] == line["samples/sampled/repetition"] == 1.0


_calls = 0


def _alternate(logits: torch.Tensor, first: int, second: int) -> torch.Tensor:
    """Logits that can only say "7\n7\n7\n…"."""
    global _calls
    _calls += 1
    only = torch.full_like(logits, float("-inf"))
    only[..., first if _calls % 2 else second] = 0.0
    return only


def test_one_cached_step_a_token(tmp_path: Path, policy_folder: Path) -> None:
    """Trainer switches `use_cache` off in the model's config; sampling still caches, and leaves it off."""
    trainer = watched(tmp_path, policy_folder, max_steps=1, gradient_checkpointing=True)
    widths: list[int] = []
    layer = trainer.model.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    monitor = next(c for c in trainer.callback_handler.callbacks if isinstance(c, SampleMonitor))
    trainer.model.config.use_cache = trainer.model.config.text_config.use_cache = False
    try:
        monitor.on_train_begin(trainer.args, trainer.state, trainer.control)
    finally:
        hook.remove()
    assert widths[1:12] == [1] * 11
    assert trainer.model.config.use_cache is False


def test_a_resume_repeats_no_line(tmp_path: Path, policy_folder: Path) -> None:
    """Killed after step 4, resumed from step 2: the lines of step 4 are written once; a cut line is dropped."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    watched(tmp_path, policy_folder, **saving).train()
    straight = samples_in(tmp_path)
    with (tmp_path / SAMPLES).open("a") as file:
        file.write('{"step": 2, "dr')
    watched(tmp_path, policy_folder, **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert samples_in(tmp_path) == straight
    watched(tmp_path, policy_folder).train()  # a new run in the folder starts the file anew
    assert samples_in(tmp_path) == straight


def test_sharded_weights_and_nothing_to_ask_are_refused(tmp_path: Path, policy_folder: Path) -> None:
    trainer = trainer_in(tmp_path, policy_folder)
    for problems, every in (([], 1), (PROBLEMS, 0)):
        with pytest.raises(ConfigError, match="expected problems and every >= 1"):
            SampleMonitor(trainer, problems, every=every)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ConfigError, match="which FSDP shards"):
        SampleMonitor(trainer, PROBLEMS, every=1)


def test_zero_3_is_refused(tmp_path: Path, policy_folder: Path) -> None:
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    class Stage3:
        """What `transformers` keeps of a DeepSpeed config; DeepSpeed itself needs a GPU."""

        def is_zero3(self) -> bool:
            return True

    from transformers.integrations.deepspeed import set_hf_deepspeed_config

    trainer, config = trainer_in(tmp_path, policy_folder), Stage3()
    set_hf_deepspeed_config(config)
    try:
        with pytest.raises(ConfigError, match="which DeepSpeed ZeRO-3 shards"):
            SampleMonitor(trainer, PROBLEMS, every=1)
    finally:
        unset_hf_deepspeed_config()


def test_rates_by_hand() -> None:
    def sample(draw: str, tokens: int, *faults: str) -> Sample:
        return Sample(0, draw, "p", "q", "a", tokens, faults)

    samples = [sample("greedy", 4), sample("greedy", 8, "truncated", "repetition"), sample("sampled", 1, "truncated")]
    assert rates(samples, "greedy") == {
        "samples/greedy/truncated": 0.5, "samples/greedy/no_final_answer": 0.0, "samples/greedy/repetition": 0.5,
        "samples/greedy/tokens": 6.0,
    }  # fmt: skip


def test_problems_in_rows() -> None:
    """Each problem once, in order, decoded; a prompt of several turns is passed over."""
    answered = {"role": "assistant", "content": [{"type": "text", "text": "5"}]}
    turns = [*ROWS[1]["prompt"], answered, *ROWS[1]["prompt"]]
    nameless = replace(PAIRS[2], problem=replace(PROBLEMS[2], id=""))
    rows = [ROWS[0], ROWS[0], {**ROWS[1], "prompt": turns}, to_trl_row(nameless), ROWS[2]]
    found = problems_in_rows(rows, limit=8)
    assert [(problem.id, problem.question) for problem in found] == [
        ("p0", PROBLEMS[0].question), ("row 3", "What is 5?"), ("text", "What is 5?"),
    ]  # fmt: skip
    assert isinstance(found[0].images[0], Image.Image)
    assert found[0].images[0].size == PROBLEMS[0].images[0].size
    assert problems_in_rows(rows, limit=1) == found[:1]
