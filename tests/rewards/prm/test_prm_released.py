"""`as_released`: rows and loss of VisualPRM's own code, against its chat written out and plain cross-entropy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.messages import assistant_message, end_of_turn_id, user_message
from mpo.multimodal.packing import LAYOUT
from rewards.prm.collator import PRMCollator
from rewards.prm.formats import STEP_END, VISUALPRM
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution
from rewards.prm.trainer import PRMTrainer
from rewards.steps import split_on_blank_lines
from rewards.types import Problem

IMAGE = Image.new("RGB", (32, 32), "red")
PROBLEM = Problem("p", "How many red digits?", (IMAGE,))
LABELS = {
    "Red is 3\n\nRed is 4\n\nFinal answer: 7": (1.0, 0.0, 0.0),
    "Red is 3\n\nFinal answer: 3": (1.0, None),
    "Final answer: 3": (1.0,),
}
GROUPS = [
    LabelledGroup(PROBLEM, tuple(LabelledSolution(split_on_blank_lines(t), m) for t, m in LABELS.items())),
    LabelledGroup(Problem("q", "And blue?"), (LabelledSolution(split_on_blank_lines("Blue is 1"), (0.0,)),)),
]


def trainer_for(folder: Path, policy: Path, **changes: Any) -> PRMTrainer:
    settings = {"max_steps": 2, "learning_rate": 0.05, "optim": "sgd", "logging_steps": 1, "save_strategy": "no"}
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=2, remove_unused_columns=False, report_to=[], use_cpu=True,
        disable_tqdm=True, **settings,
    )  # fmt: skip
    own = {"as_released": True, "eval_dataset": GROUPS} | changes
    return PRMTrainer(
        load_model(policy), load_processor(policy), own.pop("prm_format", VISUALPRM), arguments, GROUPS, **own
    )


def by_hand(model: Any, processor: Any) -> float:
    """Mean −log p of each sign and its end of turn, in the conversation that a chat with those signs renders to."""
    end, terms = end_of_turn_id(processor), []
    for group in GROUPS:
        images = list(group.problem.images)
        for solution in group.solutions:
            messages = []
            for index, (step, label) in enumerate(zip(solution.steps, solution.labels, strict=True)):
                text = step.text
                if not index:
                    text = f"### Question:\n{group.problem.question}\n\n### Solution Process:\n{text}"
                messages.append(user_message(text, len(images) if not index else 0))
                messages.append(assistant_message("-" if label == 0.0 else "+"))
            rendered = processor.apply_chat_template(messages, tokenize=False)
            inputs = processor(text=[rendered], images=[images] if images else None, return_tensors="pt")
            ids = inputs["input_ids"][0]
            with torch.no_grad():
                logps = model(**inputs).logits[0].float().log_softmax(-1)
            ends = (ids == end).nonzero().flatten().tolist()[1::2]  # user and assistant in turn
            for place, label in zip(ends, solution.labels, strict=True):
                if label is not None:
                    terms += [-float(logps[place - 2, ids[place - 1]]), -float(logps[place - 1, end])]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("shared", [True, False])
def test_the_loss_is_plain_cross_entropy_of_the_released_chat(
    tmp_path: Path, policy_folder: Path, shared: bool
) -> None:
    trainer = trainer_for(tmp_path, policy_folder)
    trainer.model.eval()
    batch = PRMCollator(trainer.processing_class, VISUALPRM, shared=shared, released=True)(GROUPS)
    assert (LAYOUT in batch["inputs"]) is shared
    loss = trainer.compute_loss(trainer.model, batch).item()
    assert loss == pytest.approx(by_hand(load_model(policy_folder).eval(), trainer.processing_class), abs=1e-5)


def test_it_trains_and_evaluates(tmp_path: Path, policy_folder: Path) -> None:
    """Micro-batches do not matter, and the loss falls."""
    trainer = trainer_for(tmp_path, policy_folder)
    before = trainer.evaluate()
    trainer.train()
    assert before["eval_loss"] == pytest.approx(
        by_hand(load_model(policy_folder).eval(), trainer.processing_class), abs=1e-5
    )
    assert trainer.state.log_history[0]["loss"] == pytest.approx(before["eval_loss"], abs=1e-4)
    assert trainer.evaluate()["eval_loss"] < before["eval_loss"]


def test_what_has_no_released_form_is_refused(tmp_path: Path, policy_folder: Path) -> None:
    for changes in ({"prm_format": STEP_END}, {"text_weight": 1.0}, {"class_weights": (1.0, 2.0)}):
        with pytest.raises(ConfigError, match="as_released trains VisualPRM's rows: it needs a format with the layout"):
            trainer_for(tmp_path, policy_folder, **changes)
    soft = replace(GROUPS[0].solutions[0], labels=(1.0, 0.25, 0.0))
    collate = PRMCollator(load_processor(policy_folder), VISUALPRM, released=True)
    with pytest.raises(ConfigError, match=r"as_released needs hard labels, which have a sign; got 0\.25"):
        collate([LabelledGroup(PROBLEM, (soft,))])
