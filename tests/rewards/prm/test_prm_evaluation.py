"""PRMTrainer evaluates: one loss and one set of metrics of the whole set, which no training metric sees."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from transformers import TrainingArguments

from mpo.multimodal.errors import NonFiniteLossError
from mpo.multimodal.loading import load_model, load_processor
from rewards.prm.evaluating.metrics import step_metrics
from rewards.prm.formats import STEP_END, VISUALPRM, PRMFormat
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution
from rewards.prm.model_prm import ModelPRM
from rewards.prm.trainer import PRMTrainer
from rewards.steps import split_on_blank_lines
from rewards.types import Problem

LABELS = {
    "Red is 3\n\nRed is 4\n\nBlue is 5": (1.0, 1.0, 0.0),
    "Blue is 3\n\nBlue is 4": (0.0, None),
    "Red is 7": (1.0,),
    "Blue is 1\n\nRed is 2": (0.0, 0.25),
}


def groups(number: int = 5) -> list[LabelledGroup]:
    """One to three responses each, of one to three steps."""
    texts = [*LABELS]
    made = []
    for i in range(number):
        own = [texts[(i + k) % len(texts)] for k in range(1 + i % 3)]
        image = Image.new("RGB", (32, 32), (40 * i, 0, 0))
        solutions = tuple(LabelledSolution(split_on_blank_lines(text), LABELS[text]) for text in own)
        made.append(LabelledGroup(Problem(f"p{i}", f"How many of {i}?", (image,)), solutions))
    return made


def trainer_for(folder: Path, policy: Path, prm_format: PRMFormat = STEP_END, **changes: Any) -> PRMTrainer:
    own = {name: changes.pop(name) for name in ("text_weight", "peft_config", "eval_dataset") if name in changes}
    settings = {"max_steps": 2, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1, "save_strategy": "no"}
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=2, remove_unused_columns=False, report_to=[], use_cpu=True,
        disable_tqdm=True, **(settings | changes),
    )  # fmt: skip
    own = {"eval_dataset": groups()} | own
    return PRMTrainer(load_model(policy), load_processor(policy), prm_format, arguments, groups(4), **own)


@pytest.mark.parametrize("prm_format", [STEP_END, VISUALPRM], ids=["step_end", "visualprm"])
def test_the_loss_and_the_metrics_are_those_of_the_whole_set(
    tmp_path: Path, policy_folder: Path, prm_format: PRMFormat
) -> None:
    """Whatever the batch; the oracle is the cross-entropy of the scores that ModelPRM gives each response alone."""
    prm = ModelPRM(load_model(policy_folder).eval(), load_processor(policy_folder), prm_format)
    scores, labels, problems = [], [], []
    for group in groups():
        for solution in group.solutions:
            text = "\n\n".join(step.text for step in solution.steps)
            for p, m in zip(prm.score(group.problem, [text])[0].values, solution.labels, strict=True):
                if m is not None:
                    scores, labels, problems = [*scores, p], [*labels, m], [*problems, group.problem.id]
    terms = [-m * math.log(p) - (1 - m) * math.log(1 - p) for p, m in zip(scores, labels, strict=True)]
    expected = step_metrics(scores, [m > 0.5 for m in labels], problems).to_log("eval_")
    for size in (1, 2, 5):
        trainer = trainer_for(tmp_path, policy_folder, prm_format, per_device_eval_batch_size=size)
        found = trainer.evaluate()
        assert found["eval_loss"] == pytest.approx(sum(terms) / len(terms), abs=1e-5)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_the_text_loss_of_an_evaluation_is_per_token_of_the_whole_set(tmp_path: Path, policy_folder: Path) -> None:
    made = [trainer_for(tmp_path, policy_folder, per_device_eval_batch_size=n, text_weight=0.5) for n in (1, 2, 5)]
    losses = [trainer.evaluate()["eval_loss"] for trainer in made]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)
    assert losses[0] > made[0].evaluate(groups(1))["eval_loss"] * 0.5 > 0.0


def test_steps_of_an_evaluation_are_in_no_training_metric(tmp_path: Path, policy_folder: Path) -> None:
    """The lines and the weights of a run that evaluates are those of one that does not."""
    plain = trainer_for(tmp_path / "a", policy_folder)
    evaluated = trainer_for(tmp_path / "b", policy_folder, eval_strategy="steps", eval_steps=1)
    lines = []
    for trainer in (plain, evaluated):
        trainer.train()
        history = [line for line in trainer.state.log_history if "loss" in line]
        lines.append([{name: line[name] for name in ("loss", "step_accuracy", "ece", "brier")} for line in history])
    assert lines[0] == lines[1]
    assert len([line for line in evaluated.state.log_history if "eval_loss" in line]) == 2
    ours, theirs = (trainer.model.state_dict() for trainer in (plain, evaluated))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_best_checkpoint_is_loaded_and_adapters_stay_as_given(tmp_path: Path, policy_folder: Path) -> None:
    """At a step this large the first checkpoint is the better one."""
    given = LoraConfig(target_modules=["q_proj", "v_proj"], r=2)
    before = given.to_dict()
    for peft_config in (None, given):
        trainer = trainer_for(
            tmp_path / str(peft_config is None), policy_folder, learning_rate=3.0, max_steps=3, eval_strategy="steps",
            eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True, peft_config=peft_config,
        )  # fmt: skip
        trainer.train()
        losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
        assert trainer.state.best_metric == pytest.approx(min(losses))
        assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-5)
    assert given.to_dict() == before


def test_a_problem_without_a_finite_loss_is_named_in_evaluation(tmp_path: Path, policy_folder: Path) -> None:
    trainer = trainer_for(tmp_path, policy_folder, per_device_eval_batch_size=1)
    terms = trainer._terms
    calls: list[Any] = []

    def overflowing(model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(inputs)
        steps, text = terms(model, inputs)
        return steps * (math.inf if len(calls) == 3 else 1.0), text

    trainer._terms = overflowing  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match=r"in evaluation, got NaN or infinity from the batch of \[p2\]"):
        trainer.evaluate()


def test_several_sets_by_name(tmp_path: Path, policy_folder: Path) -> None:
    trainer = trainer_for(tmp_path, policy_folder, eval_dataset={"a": groups(2), "b": groups(3)})
    found = trainer.evaluate()
    assert {"eval_a_loss", "eval_b_loss", "eval_a_step_accuracy"} <= found.keys()
