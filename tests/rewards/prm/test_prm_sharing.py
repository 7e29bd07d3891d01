"""N solutions behind one prompt: the same scores and gradients as a row each, one prompt and one image per problem."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from mpo.multimodal import shared_prefix, varlen
from mpo.multimodal.loading import load_for_inference, load_model
from mpo.multimodal.packing import LAYOUT
from recipes.worlds.digits.world import scenes, to_problem
from rewards.prm.collator import PRMCollator
from rewards.prm.formats import STEP_END, STEP_TAG, VISUALPRM
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution
from rewards.prm.model_prm import ModelPRM
from rewards.prm.rendering import render
from rewards.prm.rows import rows_of, spans_of
from rewards.prm.trainer import PRMTrainer
from rewards.sampling.generator import SamplingParams
from rewards.sampling.transformers_generator import TransformersGenerator
from rewards.steps import split_on_blank_lines
from rewards.types import Problem
from tests.mpo.test_varlen import kernel, let_a_cpu_use_it

STEP_FORMATS = {row.name: row for row in (VISUALPRM, STEP_TAG, STEP_END)}  # of any tokenizer
PROBLEMS = [to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("test", 3, 6))]
TEXT_ONLY = Problem("text", "What is 5 + 7?")
TWO = replace(PROBLEMS[0], id="two", images=(PROBLEMS[0].images[0], Image.new("RGB", (64, 32), "blue")))
ANSWERS = [
    "Red is 3\n\nBlue is 9\n\n3 + 9 = 12\n\nFinal answer: 12",
    "Red is 3\n\nBlue is 8\n\nFinal answer: 11",
    "Blue shows 4\n\nFinal answer: 4",
    "Final answer: 3",
]
ITEMS = [(problem, answer) for problem in [*PROBLEMS, TEXT_ONLY, TWO] for answer in ANSWERS]


def scores(prm: ModelPRM, *, shares: bool) -> list[float]:
    prm.shares = shares
    return [value for some in prm.score_many(ITEMS) for value in some.values]


@pytest.mark.parametrize("name", STEP_FORMATS)
@pytest.mark.parametrize("limit", [16_384, 150, 1])
def test_scores_are_those_of_a_row_each(policy: Any, processor: Any, name: str, limit: int) -> None:
    prm = ModelPRM(policy, processor, STEP_FORMATS[name], batch_rows=9, max_pass_tokens=limit)
    assert prm.shares
    assert scores(prm, shares=True) == pytest.approx(scores(prm, shares=False), abs=1e-5)


def test_rows_and_pictures_by_layout(policy: Any, processor: Any) -> None:
    """Four solutions of a problem with images: one row, one encoding; four rows need one encoding as well."""
    rows: list[int] = []
    tiles: list[int] = []
    model = load_model(policy.config._name_or_path).eval()
    prm = ModelPRM(model, processor, STEP_END)
    prm.score(PROBLEMS[1], ANSWERS)  # the first rows are compared with rows of their own
    hooks = [
        model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
        ),
        model.model.vision_tower.register_forward_pre_hook(
            lambda module, args, kwargs: tiles.append(len(kwargs["pixel_values"])), with_kwargs=True
        ),
    ]
    prm.score(PROBLEMS[0], ANSWERS)
    once = list(tiles)
    prm.shares = False
    prm.score(PROBLEMS[0], ANSWERS)
    assert rows == [1, 4]
    assert tiles == once * 2
    for hook in hooks:
        hook.remove()


def test_the_prefix_ends_inside_visualprm_s_first_turn(processor: Any) -> None:
    """The question and the header of the steps are shared; the first words, which differ, are not."""
    steps = [split_on_blank_lines(answer) for answer in ANSWERS]
    rendered = render(processor, VISUALPRM, TEXT_ONLY, steps, [])
    batch, positions = rows_of([rendered], processor, shared=True)
    prefix = processor.tokenizer.decode(batch["input_ids"][0][: batch[LAYOUT].prefixes[0] + 1])
    assert prefix.endswith("### Solution Process:\n")
    whole = [[*row.prompt.input_ids.tolist(), *row.continuation] for row in rendered]
    ids = batch["input_ids"][0].tolist()
    for (row, start, end), solution, expected in zip(spans_of(batch), rendered, whole, strict=True):
        assert row == 0
        assert ids[: batch[LAYOUT].prefixes[0]] + ids[start:end] == expected
        before = len(expected) - (end - start)
        assert [p for p in positions[0] if start <= p < end] == [p - before + start for p in solution.read_positions]


def test_a_prompt_that_cannot_be_shared_gets_a_row_each(processor: Any) -> None:
    steps = [split_on_blank_lines(answer) for answer in ANSWERS]
    rendered = render(processor, STEP_END, PROBLEMS[0], steps, [PROBLEMS[0].images[0]])
    assert LAYOUT in rows_of([rendered], processor, shared=True)[0]
    first = rendered[0].prompt
    tail = replace(first, input_ids=torch.cat([first.input_ids, torch.tensor([processor.image_token_id])]))
    batch, positions = rows_of([[replace(row, prompt=tail) for row in rendered]], processor, shared=True)
    assert LAYOUT not in batch
    assert positions == [list(row.read_positions) for row in rendered]


def groups() -> list[LabelledGroup]:
    labels = [(1.0, 0.0, None, None), (1.0, 0.25, 0.0), (0.0, None), (1.0,)]
    solutions = tuple(
        LabelledSolution(split_on_blank_lines(answer), label) for answer, label in zip(ANSWERS, labels, strict=True)
    )
    return [LabelledGroup(problem, solutions) for problem in (PROBLEMS[0], TEXT_ONLY, TWO)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_training_gradients_are_those_of_a_row_each(
    tmp_path: Path, policy_folder: Path, processor: Any, weight: float, checkpointing: bool
) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False)
    gradients = {}
    for shared in (True, False):
        model = load_model(policy_folder)
        if checkpointing:
            model.gradient_checkpointing_enable()
        trainer = PRMTrainer(model.train(), processor, STEP_END, arguments, groups(), text_weight=weight)
        batch = PRMCollator(processor, STEP_END, shared=shared)(trainer.train_dataset)
        assert (LAYOUT in batch["inputs"]) is shared
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        gradients[shared] = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    whole = torch.stack([gradient.norm() for gradient in gradients[False]]).norm()
    for ours, theirs in zip(gradients[True], gradients[False], strict=True):
        assert (ours - theirs).norm() <= 1e-5 * torch.maximum(theirs.norm(), 1e-3 * whole)


def test_the_policy_itself_can_be_the_prm(policy_folder: Path, processor: Any) -> None:
    """A `ModelPRM` prepares its model in place; generation, which encodes images beforehand, stays what it was."""
    model = load_model(policy_folder).eval()
    generator = TransformersGenerator(model, processor, SamplingParams(max_new_tokens=8))
    before = generator.generate(PROBLEMS, 2, seed=0)
    scores = ModelPRM(model, processor, STEP_END).score(PROBLEMS[0], ANSWERS)
    assert generator.generate(PROBLEMS, 2, seed=0) == before
    assert ModelPRM(model, processor, STEP_END).score(PROBLEMS[0], ANSWERS) == scores


def test_a_checkpoint_is_read_in_its_own_number_type(policy_folder: Path, tmp_path: Path) -> None:
    assert load_for_inference(policy_folder).dtype == torch.float32
    load_model(policy_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert load_for_inference(tmp_path).dtype == torch.bfloat16


def lose_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plain causal mask over the packed row would do."""
    attention = shared_prefix.shared_prefix_attention

    def leaking(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(LAYOUT, None)
        return attention(*args, **kwargs)

    monkeypatch.setitem(shared_prefix.AttentionInterface._global_mapping, shared_prefix.NAME, leaking)


def test_a_prm_that_misreads_packed_rows_gets_a_row_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, policy_folder: Path, processor: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    expected = scores(ModelPRM(load_model(policy_folder).eval(), processor, VISUALPRM), shares=False)
    lose_the_layout(monkeypatch)
    prm = ModelPRM(load_model(policy_folder).eval(), processor, VISUALPRM)
    found = [value for some in prm.score_many(ITEMS) for value in some.values]
    assert not prm.shares
    assert "each response is read with a prompt of its own: its values differ" in caplog.text
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_trainer_whose_model_misreads_packed_rows_gets_a_row_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, policy_folder: Path, processor: Any, weight: float
) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False)
    expected = PRMTrainer(load_model(policy_folder), processor, STEP_END, arguments, groups(), text_weight=weight)
    paired = PRMCollator(processor, STEP_END)(groups())
    lose_the_layout(monkeypatch)
    trainer = PRMTrainer(load_model(policy_folder), processor, STEP_END, arguments, groups(), text_weight=weight)
    packed = PRMCollator(processor, STEP_END, shared=True)(groups())
    found = trainer.compute_loss(trainer.model, packed)
    assert (trainer._shares, trainer._kernel) == (False, False)
    torch.testing.assert_close(found, expected.compute_loss(expected.model, paired), atol=1e-5, rtol=1e-5)


def test_scoring_and_training_use_the_kernel_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, policy_folder: Path, processor: Any
) -> None:
    """The kernel itself is written out in tests/mpo/test_varlen.py."""
    calls: list[int] = []

    def counted(query: Any, key: Any, value: Any, *rest: Any, scale: Any, window_size: Any, enable_gqa: Any) -> Any:
        calls.append(1)
        return kernel(query, key, value, *rest, scale=scale, window_size=window_size, enable_gqa=enable_gqa)

    monkeypatch.setattr(varlen, "_installed", lambda: counted)
    let_a_cpu_use_it(monkeypatch)
    varlen.why_not.cache_clear()
    prm = ModelPRM(load_model(policy_folder).eval(), processor, VISUALPRM, max_pass_tokens=150)
    found = scores(prm, shares=True)
    assert (prm.shares, prm._kernel) == (True, True)
    assert calls
    assert found == pytest.approx(scores(prm, shares=False), abs=1e-5)
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False)
    trainer = PRMTrainer(load_model(policy_folder), processor, STEP_END, arguments, groups())
    calls.clear()
    trainer.compute_loss(trainer.model, PRMCollator(processor, STEP_END, shared=True)(groups())).backward()
    assert trainer._kernel
    assert calls
    varlen.why_not.cache_clear()
