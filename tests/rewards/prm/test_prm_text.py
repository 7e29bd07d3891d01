"""L_text counts the responses' own words, in every layout and whatever the responses are grouped with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.packing import LAYOUT
from mpo.multimodal.scoring import text_tokens
from rewards.prm.collator import PRMCollator
from rewards.prm.formats import FORMATS, PRMFormat
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution
from rewards.prm.trainer import PRMTrainer
from rewards.steps import split_on_blank_lines, steps_of
from rewards.types import Problem

PROBLEM = Problem("p", "How many red digits?", (Image.new("RGB", (32, 32), "red"),))
TEXTS = ["Red is 3\n\nRed is 4\n\nFinal answer: 7", "Red is 3\n\nFinal answer: 3"]
TURNS = ["visualprm", "orm"]
LAYOUTS = [*TURNS, "step_tag", "step_end"]


def solution(text: str, prm_format: PRMFormat, *, right: bool = True) -> LabelledSolution:
    steps = steps_of([text]) if prm_format.max_steps == 1 else split_on_blank_lines(text)
    return LabelledSolution(steps, (1.0,) * (len(steps) - 1) + (float(right),))


def labelled(batch: dict[str, Any], tokenizer: Any, prm_format: PRMFormat) -> str:
    """The text of all labels, in order, without signs."""
    labels = batch["inputs"]["labels"].flatten()
    signs = [*prm_format.label_ids(tokenizer), -100]
    return tokenizer.decode([i for i in labels.tolist() if i not in signs])


@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("shared", [False, True])
def test_only_the_words_of_right_responses_are_labelled(processor: Any, name: str, shared: bool) -> None:
    """No frame, no sign, no other response; a beginning that two responses share counts for each."""
    prm_format = FORMATS[name]
    some = [solution(text, prm_format) for text in TEXTS] + [solution("Red is 9\n\nNo", prm_format, right=False)]
    collate = PRMCollator(processor, prm_format, shared=shared, with_text=True)
    batch = collate([LabelledGroup(PROBLEM, tuple(some)), LabelledGroup(PROBLEM, (some[1],))])
    assert (LAYOUT in batch["inputs"]) is shared
    words = "".join(labelled(batch, processor.tokenizer, prm_format).split())
    assert words == "".join("".join([*TEXTS, TEXTS[1]]).split())


def test_one_turn_layouts_label_what_they_did(processor: Any) -> None:
    for name in ("step_tag", "step_end"):
        group = LabelledGroup(PROBLEM, tuple(solution(text, FORMATS[name]) for text in TEXTS))
        for shared in (False, True):
            before, now = (
                PRMCollator(processor, FORMATS[name], shared=shared, with_text=asked)([group])
                for asked in (False, True)
            )
            ids = (before["inputs"], FORMATS[name].label_ids(processor.tokenizer))
            assert text_tokens(*ids) == text_tokens(now["inputs"], ids[1])
            if name == "step_end":
                assert torch.equal(before["inputs"]["labels"], now["inputs"]["labels"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_text_loss_does_not_depend_on_the_grouping(tmp_path: Path, policy_folder: Path, name: str) -> None:
    """Two responses in one group or in two, with shared rows or not; the oracle reads each row alone, word by word."""
    prm_format, processor = FORMATS[name], load_processor(policy_folder)
    solutions = [solution(text, prm_format) for text in TEXTS]
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False)
    cuts = {
        "one group": [LabelledGroup(PROBLEM, tuple(solutions))],
        "two groups": [LabelledGroup(PROBLEM, (one,)) for one in solutions],
    }
    found, model = {}, load_model(policy_folder).eval()
    for cut, groups in cuts.items():
        for shared in (True, False):
            losses = []
            for weight in (0.0, 1.0):
                trainer = PRMTrainer(model, processor, prm_format, arguments, groups, text_weight=weight)
                batch = PRMCollator(processor, prm_format, shared=shared, with_text=True)(groups)
                losses.append(trainer.compute_loss(model, batch).item())
            found[cut, shared] = losses[1] - losses[0]
    expected = by_hand(model, processor, prm_format, solutions)
    assert list(found.values()) == pytest.approx([expected] * 4, abs=2e-5)


def by_hand(model: Any, processor: Any, prm_format: PRMFormat, solutions: list[LabelledSolution]) -> float:
    """Mean −log p of the words of each response, its row read alone through the whole head, signs masked."""
    signs, terms = list(prm_format.label_ids(processor.tokenizer)), []
    for one in solutions:
        batch = PRMCollator(processor, prm_format, with_text=True)([LabelledGroup(PROBLEM, (one,))])["inputs"]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        with torch.no_grad():
            logits = model(**inputs).logits[0].float()
        logits[:, signs] = -torch.inf
        labels = batch["labels"][0]
        learned = [i for i in range(len(labels)) if labels[i] != -100 and int(labels[i]) not in signs]
        terms += [-float(logits[i - 1].log_softmax(-1)[labels[i]]) for i in learned]
    return sum(terms) / len(terms)
