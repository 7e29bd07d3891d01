"""Labels from counts: doubt against an integral by hand, class weights; what they do to the loss; LoRA."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import TrainingArguments

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.scoring import logits_at
from rewards.prm.formats import QWEN_MATH_PRM, STEP_END, VISUALPRM_ADVANTAGE
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution, LabelRule, class_weights, doubt
from rewards.prm.model_prm import ModelPRM
from rewards.prm.trainer import PRMTrainer
from rewards.steps import split_on_blank_lines
from rewards.types import Completion, MonteCarloCount, Problem, Rollout

PROBLEM = Problem("p", "What is the sum of the digits?")
TEXTS = ["Red is 3\n\nRed is 4\n\nBlue is 5", "Blue is 3\n\nBlue is 4"]
LABELS = [(1.0, 1.0, 0.0), (None, 0.25)]


def group() -> LabelledGroup:
    return LabelledGroup(
        PROBLEM,
        tuple(LabelledSolution(split_on_blank_lines(t), m) for t, m in zip(TEXTS, LABELS, strict=True)),
    )


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    quiet = {"report_to": [], "use_cpu": True, "remove_unused_columns": False, "disable_tqdm": True, "seed": 0}
    return TrainingArguments(str(folder), **quiet, **changes)


@pytest.mark.parametrize(("correct", "total", "threshold"), [(3, 4, 0.5), (1, 4, 0.5), (9, 16, 0.5), (0, 16, 0.125)])
def test_doubt_is_the_mass_on_the_other_side(correct: int, total: int, threshold: float) -> None:
    """Midpoint sums of p^correct·(1−p)^wrong over the other side, divided by those over [0, 1]."""
    points = [(i + 0.5) / 20_000 for i in range(20_000)]
    mass = [p**correct * (1 - p) ** (total - correct) for p in points]
    right = correct / total > threshold
    other = math.fsum(m for m, p in zip(mass, points, strict=True) if (p > threshold) != right)
    found = doubt(MonteCarloCount(correct, total), threshold=threshold)
    assert found == pytest.approx(other / math.fsum(mass), abs=1e-6)


def test_a_doubtful_label_is_dropped_and_an_exact_one_kept() -> None:
    """9 of 16 at threshold 0.5: doubt 0.315; 13 of 16: 0.006."""
    counts = [MonteCarloCount(13, 16), MonteCarloCount(9, 16), MonteCarloCount(0, 16)]
    rule = LabelRule(threshold=0.5, max_doubt=0.05)
    assert rule.labels(counts) == (1.0, None, 0.0)
    assert rule.labels(counts, exact=True) == (1.0, 1.0, 0.0)
    assert LabelRule(threshold=0.5, max_doubt=0.32).labels(counts) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "change",
    [{"max_doubt": 0.1}, {"max_doubt": 0.1, "soft": True, "threshold": 0.5}, {"max_doubt": 0.0}, {"threshold": 1.0}],
)
def test_a_rule_that_cannot_work_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="max_doubt"):
        LabelRule(**change)


def test_class_weights_balance_the_classes() -> None:
    """Labels 1, 1, 0, 0.25: n = 4, right 2.25, wrong 1.75."""
    right, wrong = class_weights([group()])
    assert (right, wrong) == pytest.approx((4 / 4.5, 4 / 3.5))
    assert right * 2.25 == pytest.approx(wrong * 1.75)
    only_right = LabelledGroup(PROBLEM, (LabelledSolution(split_on_blank_lines("a"), (1.0,)),))
    with pytest.raises(DataError, match=r"of 1 labels 1\.0 are right and 0\.0 wrong"):
        class_weights([only_right])


def test_the_weighted_loss_by_hand(tmp_path: Path, policy_folder: Path) -> None:
    """−[w₊·m·log P(+) + w₋·(1−m)·log P(−)], mean over the four labelled steps."""
    model, processor = load_model(policy_folder).eval(), load_processor(policy_folder)
    trainer = PRMTrainer(model, processor, STEP_END, arguments(tmp_path), [group()], class_weights=(0.5, 4.0))
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([group()])).item()
    scores = ModelPRM(model, processor, STEP_END).score(PROBLEM, TEXTS)
    pairs = [(m, p) for ms, s in zip(LABELS, scores, strict=True) for m, p in zip(ms, s.values, strict=True)]
    terms = [-0.5 * m * math.log(p) - 4.0 * (1 - m) * math.log(1 - p) for m, p in pairs if m is not None]
    assert loss == pytest.approx(math.fsum(terms) / 4, abs=1e-5)


def test_adapters_train_alone_and_are_merged_when_saved(tmp_path: Path, policy_folder: Path) -> None:
    """The base stays as it was; the checkpoint holds adapters; the saved PRM scores as the adapted model does."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q_proj|v_proj|up_proj)")
    settings = arguments(tmp_path / "run", max_steps=3, learning_rate=0.05, save_strategy="steps", save_steps=3)
    processor = load_processor(policy_folder)
    trainer = PRMTrainer(load_model(policy_folder), processor, STEP_END, settings, [group()], peft_config=lora)
    trainer.train()
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    checkpoint = tmp_path / "run" / "checkpoint-3"
    assert (checkpoint / "adapter_model.safetensors").exists()
    assert not (checkpoint / "model.safetensors").exists()
    adapted = ModelPRM(trainer.model.get_base_model().eval(), processor, STEP_END).score(PROBLEM, TEXTS)
    trainer.save_model(str(tmp_path / "prm"))
    saved = ModelPRM.load(tmp_path / "prm").score(PROBLEM, TEXTS)
    base = ModelPRM(load_model(policy_folder).eval(), processor, STEP_END).score(PROBLEM, TEXTS)
    for a, b, untrained in zip(adapted, saved, base, strict=True):
        assert b.values == pytest.approx(a.values, abs=1e-5)
        assert max(abs(x - y) for x, y in zip(b.values, untrained.values, strict=True)) > 1e-3
    old, new = load_model(policy_folder).state_dict(), load_model(tmp_path / "prm").state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(name.rsplit(".", 2)[1] in ("q_proj", "v_proj", "up_proj") for name in changed)


def test_a_label_head_learns_no_text(tmp_path: Path, policy_folder: Path) -> None:
    with pytest.raises(ConfigError, match="text_weight must be 0 with a label head"):
        PRMTrainer(
            load_model(policy_folder),
            load_processor(policy_folder),
            QWEN_MATH_PRM,
            arguments(tmp_path),
            [group()],
            text_weight=0.5,
        )


def test_advantage_labels_and_their_loss_by_hand(tmp_path: Path, policy_folder: Path) -> None:
    """mc 1/4, 3/4, 3/4, 0 → none, +, =, -; the loss is the mean −log of the label's own share of the three."""
    counts = [MonteCarloCount(n, 4) for n in (1, 3, 3, 0)]
    assert LabelRule(advantage=0.2).labels(counts) == (None, 1.0, 0.5, 0.0)
    assert LabelRule(advantage=0.6).labels(counts) == (None, 0.5, 0.5, 0.0)
    with pytest.raises(ConfigError, match="advantage must be in"):
        LabelRule(advantage=0.1, soft=True)
    steps = split_on_blank_lines("Red is 3\n\nRed is 4\n\nBlue is 5\n\nBlue is 6")
    made = LabelledGroup(PROBLEM, (LabelledSolution(steps, LabelRule(advantage=0.2).labels(counts)),))
    model, processor = load_model(policy_folder).eval(), load_processor(policy_folder)
    trainer = PRMTrainer(model, processor, VISUALPRM_ADVANTAGE, arguments(tmp_path), [made])
    batch = trainer.data_collator([made])
    loss = trainer.compute_loss(trainer.model, batch).item()
    plus, minus, same = (processor.tokenizer.convert_tokens_to_ids(sign) for sign in "+-=")
    (row,) = logits_at(trainer.model, batch["inputs"], [batch["positions"][0]], (plus, minus, same))
    shares = row.softmax(-1)
    assert loss == pytest.approx(-(shares[1, 0].log() + shares[2, 2].log() + shares[3, 1].log()).item() / 3, abs=1e-5)
    (scores,) = ModelPRM(model, processor, VISUALPRM_ADVANTAGE).score(PROBLEM, ["\n\n".join(s.text for s in steps)])
    assert scores.values == pytest.approx((shares[:, 0] + shares[:, 2] / 2).tolist(), abs=1e-5)
    with pytest.raises(ConfigError, match="cannot be used with advantage labels"):
        PRMTrainer(model, processor, VISUALPRM_ADVANTAGE, arguments(tmp_path), [made], class_weights=(1.0, 2.0))


def test_two_thresholds_ignore_the_middle_and_say_why() -> None:
    """Right above 0.6, wrong below 0.4: both thresholds themselves are in the middle."""
    counts = [*(MonteCarloCount(n, 10) for n in (10, 7, 6, 5, 4, 3, 0)), None, MonteCarloCount(9, 10)]
    rule = LabelRule(good_above=0.6, bad_below=0.4)
    assert rule.labels(counts) == (1.0, 1.0, None, None, None, 0.0, 0.0, None, 1.0)
    assert rule.reasons(counts) == (*[None] * 2, *["between the thresholds"] * 3, None, None, "not counted", None)
    assert LabelRule(good_above=0.5, bad_below=0.5).labels(counts[2:5]) == (1.0, None, 0.0)
    after = replace(rule, until_first_error=True).reasons(counts)
    assert after[6:] == (None, "after the first error", "after the first error")
    assert LabelRule(advantage=0.05).reasons(counts)[0] == "no count before it"
    assert LabelRule(threshold=0.5, max_doubt=0.05).reasons(counts)[2] == "in doubt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"good_above": 0.6}, "expected good_above and bad_below together"),
        ({"bad_below": 0.6}, "expected good_above and bad_below together"),
        ({"good_above": 0.4, "bad_below": 0.6}, "0 < bad_below <= good_above < 1"),
        ({"good_above": 0.4, "bad_below": 0.0}, "0 < bad_below <= good_above < 1"),
        ({"good_above": 0.6, "bad_below": 0.4, "threshold": 0.5}, "cannot be combined with threshold"),
        ({"binomial": True, "max_doubt": 0.1, "threshold": 0.5}, "cannot be combined with threshold"),
        ({"binomial": True, "soft": True}, "soft labels and binomial are different ways"),
        ({"binomial": True, "good_above": 0.6, "bad_below": 0.4}, "different ways"),
        ({"advantage": 0.1, "binomial": True}, "different ways"),
    ],
)
def test_ways_to_label_exclude_each_other(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelRule(**change)


def test_which_counts_a_way_to_label_takes() -> None:
    """A likelihood takes counts whose drawing stopped at a success; thresholds take estimates alone."""
    rollouts = {
        name: [Rollout(Completion("a"), label_source=f"mc:{name}:4")] for name in ("full", "sequential", "bisect")
    }
    taken = {
        (rule.binomial, name)
        for rule in (LabelRule(binomial=True), LabelRule(good_above=0.6, bad_below=0.4))
        for name, some in rollouts.items()
        if _takes(rule, some)
    }
    assert taken == {(True, "full"), (True, "sequential"), (False, "full")}


def _takes(rule: LabelRule, rollouts: list[Rollout]) -> bool:
    try:
        rule.check_sources(rollouts)
    except ConfigError:
        return False
    return True
