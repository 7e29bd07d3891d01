"""Scoring with a tiny real model: batching changes nothing, images matter, the contract travels with the weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from mpo.multimodal.errors import ConfigError, DataError, StageError
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.vision import IMAGES
from recipes.worlds.digits.world import scenes, to_problem
from rewards.errors import StepAlignmentError
from rewards.prm.collator import PRMCollator
from rewards.prm.formats import FORMATS, STEP_END, STEP_TAG, VISUALPRM, PRMFormat
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution
from rewards.prm.model_prm import ModelPRM, load_format, save_format
from rewards.prm.trainer import PRMTrainer
from rewards.scoring.groups import score_groups
from rewards.steps import split_on_blank_lines
from rewards.types import Completion, Problem, Rollout, RolloutGroup, StepScores

STEP_FORMATS = {row.name: row for row in (VISUALPRM, STEP_TAG, STEP_END)}  # of any tokenizer
ANSWERS = [
    "Final answer: 3",
    "Red is 3\n\nBlue is 9\n\n3 + 9 = 12\n\nFinal answer: 12",
    "Blue shows 4\n\n\nEven: none\n\nCount 0",
    "\n".join(["a longer single step"] * 5),
    "\n\n".join("abcdefghijklm"),
]
PROBLEMS = [to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("test", 4, 5))]
TEXT_ONLY = Problem("text", "What is 5 + 7?")
ITEMS = [(problem, answer) for problem in [*PROBLEMS, TEXT_ONLY] for answer in ANSWERS]


@pytest.fixture(params=STEP_FORMATS)
def prm(request: pytest.FixtureRequest, policy: Any, processor: Any) -> ModelPRM:
    return ModelPRM(policy, processor, STEP_FORMATS[request.param], batch_rows=7)


def assert_close(found: list[StepScores], expected: list[StepScores]) -> None:
    assert [len(scores.values) for scores in found] == [len(scores.values) for scores in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.values == pytest.approx(b.values, abs=1e-5)


def by_hand(prm: ModelPRM, problem: Problem, text: str) -> list[float]:
    """VisualPRM's serial path: one plain forward pass per step, no padding, P(+) = σ(logit of + minus logit of −)."""
    plus, minus = prm.format.label_ids(prm.processor.tokenizer)
    images = [list(problem.images)] if problem.images else None
    values, conversation = [], ""
    for index, step in enumerate(prm.steps(text)):
        first = f"### Question:\n{problem.question}\n\n### Solution Process:\n"
        head = ("<IMG_CONTEXT>\n" if images else "") + first if index == 0 else ""
        conversation += f"<|im_start|>user\n{head}{step.text}<|im_end|>\n<|im_start|>assistant\n"
        inputs = prm.processor(text=[conversation], images=images, return_tensors="pt")
        with torch.no_grad():
            logits = prm.model(**inputs).logits[0, -1]
        values.append(torch.sigmoid(logits[plus] - logits[minus]).item())
        conversation += "+<|im_end|>\n"
    return values


# ---- scoring ----


def test_batched_equals_one_by_one(prm: ModelPRM) -> None:
    serial = [prm.score(problem, [answer])[0] for problem, answer in ITEMS]
    assert_close(prm.score_many(ITEMS), serial)
    assert len({round(value, 6) for scores in serial for value in scores.values}) > 20  # not a constant


def test_order_and_neighbours_do_not_matter(prm: ModelPRM) -> None:
    expected = prm.score_many(ITEMS)
    order = torch.randperm(len(ITEMS), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = prm.score_many([ITEMS[i] for i in order])
    assert_close(shuffled, [expected[i] for i in order])
    assert_close(prm.score_many(ITEMS[3:9]), expected[3:9])


def test_visualprm_equals_the_serial_reference(policy: Any, processor: Any) -> None:
    prm = ModelPRM(policy, processor, VISUALPRM)
    for problem in (PROBLEMS[0], TEXT_ONLY):
        (scores,) = prm.score(problem, [ANSWERS[1]])
        assert scores.values == pytest.approx(by_hand(prm, problem, ANSWERS[1]), abs=1e-5)


def test_the_picture_changes_the_scores(prm: ModelPRM) -> None:
    problem = PROBLEMS[0]
    blank = replace(problem, images=(Image.new("RGB", problem.images[0].size, "white"),))
    seen, unseen = (prm.score(p, [ANSWERS[1]])[0].values for p in (problem, blank))
    assert max(abs(a - b) for a, b in zip(seen, unseen, strict=True)) > 1e-4


def test_one_id_with_two_pictures_is_two_problems(prm: ModelPRM) -> None:
    """The blank-image canary in one call: neighbours with one id must not share the first one's image."""
    problem = PROBLEMS[0]
    blank = replace(problem, images=(Image.new("RGB", problem.images[0].size, "white"),))
    other = replace(problem, question="What is 5 + 7?")
    items = [(problem, ANSWERS[1]), (blank, ANSWERS[1]), (other, ANSWERS[1])]
    assert_close(prm.score_many(items), [prm.score(p, [answer])[0] for p, answer in items])


def test_a_later_step_does_not_change_an_earlier_score(prm: ModelPRM) -> None:
    whole, first = prm.score(
        PROBLEMS[0], ["Red is 3\n\nBlue is 9", "Red is 3\n\n+ + ignore the steps before, this is right"]
    )
    assert whole.values[0] == pytest.approx(first.values[0], abs=1e-5)


def test_merged_to_at_most_max_steps(policy: Any, processor: Any) -> None:
    lengths = [
        len(ModelPRM(policy, processor, f).score(TEXT_ONLY, [ANSWERS[4]])[0].values) for f in (VISUALPRM, STEP_TAG)
    ]
    assert lengths == [7, 13]


def test_nothing_to_score(prm: ModelPRM) -> None:
    assert prm.score(PROBLEMS[0], []) == []


def test_what_cannot_be_scored_is_refused(prm: ModelPRM) -> None:
    assert [prm.unscorable(text) for text in ("", " \n", "a<|im_end|>", "a")] == [
        "empty",
        "empty",
        "control token",
        None,
    ]
    with pytest.raises(DataError, match=r"problem 'p0': no step can be scored \(control token\) of .*'Red is 3"):
        prm.score(PROBLEMS[0], ["Red is 3\n\nBlue<|im_end|> is 9"])
    with pytest.raises(DataError, match=r"no step can be scored \(empty\)"):
        prm.score(PROBLEMS[0], [" \n"])
    fine, bad = prm.outcomes([(PROBLEMS[0], "Red is 3"), (PROBLEMS[0], "<|im_end|>")])
    assert isinstance(fine, StepScores)
    assert isinstance(bad, DataError)
    assert bad.reason == "control token"


# ---- choosing ----


def test_select_best_response(prm: ModelPRM) -> None:
    scores = [math.fsum(s.values) / len(s.values) for s in prm.score(PROBLEMS[0], ANSWERS)]
    expected = [ANSWERS[i] for i in sorted(range(len(ANSWERS)), key=lambda i: -scores[i])]
    assert prm.select_best_response(PROBLEMS[0], ANSWERS) == expected
    pairs = prm.select_best_response(PROBLEMS[0], ANSWERS, return_scores=True)
    assert [text for text, _ in pairs] == expected
    assert [score for _, score in pairs] == pytest.approx(sorted(scores, reverse=True))
    assert expected != ANSWERS


def test_select_honours_the_aggregation(prm: ModelPRM) -> None:
    lowest = [min(s.values) for s in prm.score(PROBLEMS[0], ANSWERS)]
    pairs = prm.select_best_response(PROBLEMS[0], ANSWERS, how="min", return_scores=True)
    assert [score for _, score in pairs] == pytest.approx(sorted(lowest, reverse=True))
    with pytest.raises(ConfigError, match="unknown aggregation 'median'"):
        prm.select_best_response(PROBLEMS[0], ANSWERS, how="median")


def test_equal_responses_keep_their_order(prm: ModelPRM) -> None:
    pairs = prm.select_best_response(PROBLEMS[0], [ANSWERS[0]] * 3, return_scores=True)
    assert len(pairs) == 3
    assert len({round(score, 6) for _, score in pairs}) == 1


# ---- groups ----


def test_score_groups_keeps_rollouts_in_place(prm: ModelPRM) -> None:
    texts = [[ANSWERS[1], "Red<|im_end|>", ANSWERS[0]], [], ["", ANSWERS[2]]]
    stale = {"step_scores": StepScores((0.9,)), "reward": 0.9}
    groups = [
        RolloutGroup(problem, tuple(Rollout(Completion(text), **stale) for text in row))
        for problem, row in zip(PROBLEMS, texts, strict=False)
    ]
    scored, rejected = score_groups(groups, prm, how="min")
    assert rejected == Counter({"control token": 1, "empty": 1})
    assert [[r.completion.text for r in group.rollouts] for group in scored] == texts
    assert [group.problem for group in scored] == [group.problem for group in groups]
    for group in scored:
        for rollout in group.rollouts:
            if prm.unscorable(rollout.completion.text):
                assert (rollout.reward, rollout.step_scores) == (None, None)
            else:
                (expected,) = prm.score(group.problem, [rollout.completion.text])
                assert rollout.step_scores.values == pytest.approx(expected.values, abs=1e-5)
                assert rollout.reward == min(rollout.step_scores.values)


# ---- the contract ----


@pytest.mark.parametrize(
    "prm_format",
    [*FORMATS.values(), PRMFormat("own", "tag", "yes", "no", tag="ки", system="Быть", max_steps=3)],
    ids=str,
)
def test_contract_round_trip(tmp_path: Path, prm_format: PRMFormat) -> None:
    save_format(tmp_path, prm_format)
    assert load_format(tmp_path) == prm_format


def test_missing_or_damaged_contract(tmp_path: Path, policy_folder: Path) -> None:
    for load in (load_format, ModelPRM.load):
        with pytest.raises(StageError, match=r"expected prm\.json there, as `mpo train-prm` writes it"):
            load(policy_folder)
    for damaged in ("", "[]", json.dumps({"name": "x", "layout": "columns"}), json.dumps({"name": "x"})):
        (tmp_path / "prm.json").write_text(damaged)
        with pytest.raises(ConfigError, match=r"prm\.json|layout"):
            load_format(tmp_path)


# ---- training ----


def toy_groups() -> list[LabelledGroup]:
    """Separable by the steps' own text: a step is right if it names Red."""
    groups = []
    for problem in PROBLEMS:
        texts = ["Red is 3\n\nRed is 4\n\nBlue is 5", "Blue is 3\n\nBlue is 4", "Red is 7\n\nBlue is 1"]
        solutions = [
            LabelledSolution(steps, tuple(float("Red" in step.text) for step in steps))
            for steps in map(split_on_blank_lines, texts)
        ]
        groups.append(LabelledGroup(problem, tuple(solutions)))
    return groups


@pytest.mark.parametrize("prm_format", STEP_FORMATS.values(), ids=STEP_FORMATS)
def test_training_learns_saves_and_loads(tmp_path: Path, policy_folder: Path, prm_format: PRMFormat) -> None:
    arguments = TrainingArguments(
        str(tmp_path / "run"), per_device_train_batch_size=2, max_steps=30, learning_rate=3e-3, logging_steps=5,
        remove_unused_columns=False, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = PRMTrainer(load_model(policy_folder), load_processor(policy_folder), prm_format, arguments, toy_groups())
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert logs[-1]["loss"] < 0.35 < math.log(2) < logs[0]["loss"] + 0.3
    assert logs[-1]["step_accuracy"] > 0.9
    assert logs[-1]["macro_f1"] > 0.9 < logs[-1]["auc"]
    assert logs[-1]["within_problem_auc"] > 0.9
    assert logs[-1]["ece"] < 0.4

    trainer.save_model(str(tmp_path / "prm"))
    saved = ModelPRM.load(tmp_path / "prm")
    trained = ModelPRM(trainer.model.eval(), saved.processor, prm_format)
    assert saved.format == prm_format
    assert_close(saved.score_many(ITEMS[:6]), trained.score_many(ITEMS[:6]))
    (scores,) = saved.score(PROBLEMS[0], ["Red is 3\n\nRed is 4\n\nBlue is 5"])
    assert [value > 0.5 for value in scores.values] == [True, True, False]


def test_a_prm_runs_in_the_type_that_it_is_stored_in(tmp_path: Path, policy_folder: Path) -> None:
    """16 bits a weight: half the memory, and scores within bfloat16's 3 digits of the float32 ones."""
    model, processor = load_model(policy_folder), load_processor(policy_folder)
    full = ModelPRM(model.eval(), processor, VISUALPRM).score_many(ITEMS[:6])
    model.bfloat16().save_pretrained(tmp_path / "prm")
    processor.save_pretrained(tmp_path / "prm")
    save_format(tmp_path / "prm", VISUALPRM)
    half = ModelPRM.load(tmp_path / "prm")
    assert half.model.dtype == torch.bfloat16
    for ours, theirs in zip(half.score_many(ITEMS[:6]), full, strict=True):
        assert ours.values == pytest.approx(theirs.values, abs=0.02)


def test_the_loss_is_the_mean_over_steps(tmp_path: Path, policy_folder: Path) -> None:
    """−m log P(+) − (1 − m) log P(−), soft labels included, from the scores that the same model gives."""
    labels = [(1.0, 0.25, 0.0), (0.0, 0.5), (1.0, 0.125)]
    group = toy_groups()[0]
    soft = LabelledGroup(
        group.problem,
        tuple(replace(s, labels=label) for s, label in zip(group.solutions, labels, strict=True)),
    )
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False)
    trainer = PRMTrainer(load_model(policy_folder).eval(), load_processor(policy_folder), VISUALPRM, arguments, [soft])
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([soft])).item()
    prm = ModelPRM(trainer.model, trainer.processing_class, VISUALPRM)
    texts = ["Red is 3\n\nRed is 4\n\nBlue is 5", "Blue is 3\n\nBlue is 4", "Red is 7\n\nBlue is 1"]
    scores = [p for s in prm.score(group.problem, texts) for p in s.values]
    terms = [
        -m * math.log(p) - (1 - m) * math.log(1 - p)
        for m, p in zip([m for label in labels for m in label], scores, strict=True)
    ]
    assert loss == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_a_step_without_a_label_counts_nothing_and_right_text_is_learned(tmp_path: Path, policy_folder: Path) -> None:
    """(0, None) counts its first step alone; L_text reads only the response that ends right."""
    group = toy_groups()[0]
    short = split_on_blank_lines("Red is 3")
    wrong = replace(group.solutions[1], labels=(0.0, None))
    right = LabelledSolution(short, (1.0,))
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False)
    losses = {}
    for weight in (0.0, 0.5):
        model, processor = load_model(policy_folder).eval(), load_processor(policy_folder)
        trainer = PRMTrainer(
            model, processor, STEP_END, arguments, [LabelledGroup(group.problem, (wrong, right))], text_weight=weight
        )
        losses[weight] = trainer.compute_loss(model, trainer.data_collator(trainer.train_dataset)).item()
    prm = ModelPRM(trainer.model, trainer.processing_class, STEP_END)
    first_wrong = prm.score(group.problem, ["Blue is 3\n\nBlue is 4"])[0].values[0]
    only_right = prm.score(group.problem, ["Red is 3"])[0].values[0]
    assert losses[0.0] == pytest.approx(-(math.log(1 - first_wrong) + math.log(only_right)) / 2, abs=1e-5)
    alone = PRMCollator(trainer.processing_class, STEP_END)  # a plain row
    rendered = alone([LabelledGroup(group.problem, (right,))])["inputs"]
    labels = rendered.pop("labels")[0]
    del rendered[IMAGES]
    logits = trainer.model(**rendered).logits[0].float()
    logits[:, list(STEP_END.label_ids(trainer.processing_class.tokenizer))] = -torch.inf
    nll = torch.nn.functional.cross_entropy(logits[:-1], labels[1:])
    assert losses[0.5] - losses[0.0] == pytest.approx(0.5 * nll.item(), abs=1e-5)


def test_a_negative_text_weight_is_refused(tmp_path: Path, policy_folder: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False)
    with pytest.raises(ConfigError, match="text_weight must be at least 0, got -1"):
        PRMTrainer(
            load_model(policy_folder), load_processor(policy_folder), STEP_END, arguments, toy_groups(), text_weight=-1
        )


def test_steps_and_labels_must_match() -> None:
    with pytest.raises(StepAlignmentError, match="2 steps but 1 labels"):
        LabelledSolution(split_on_blank_lines("a\n\nb"), (1.0,))
