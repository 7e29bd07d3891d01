"""The concentration head: its likelihood against scipy's, what it reads, what it learns, and how it is saved."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from scipy.special import comb
from scipy.stats import betabinom
from transformers import Qwen2Config, TrainingArguments

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.packing import LAYOUT
from rewards.errors import StepAlignmentError
from rewards.prm.concentration import BIAS, FILE, LEAST, MOST, START, WEIGHT, ConcentrationHead, attach_head
from rewards.prm.formats import CONTRACT, STEP_END
from rewards.prm.label_head import Qwen2ProcessRewardModel
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution, LabelRule
from rewards.prm.model_prm import ModelPRM, has_head, load_format
from rewards.prm.rendering import render
from rewards.prm.step_losses import Likelihood, beta_binomial_loss
from rewards.prm.trainer import PRMTrainer
from rewards.steps import split_on_blank_lines
from rewards.types import MonteCarloCount, Problem, StepScores
from tests.rewards.prm.test_step_losses import groups

COUNTS = [(0, 1), (1, 1), (0, 16), (16, 16), (5, 16), (2, 3), (1, 64)]
HEAD = Likelihood(per_step=True)


def trainer_for(
    folder: Path,
    policy: Path,
    likelihood: Likelihood = HEAD,
    train: list[LabelledGroup] | None = None,
    *,
    lora: bool = False,
    text_weight: float = 0.0,
    **changes: Any,
) -> PRMTrainer:
    arguments = TrainingArguments(
        str(folder), report_to=[], use_cpu=True, remove_unused_columns=False, disable_tqdm=True, **changes
    )
    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if lora else None
    return PRMTrainer(
        load_model(policy).eval(), load_processor(policy), STEP_END, arguments, train or groups(),
        likelihood=likelihood, peft_config=adapters, text_weight=text_weight,
    )  # fmt: skip


def of(trainer: PRMTrainer) -> ConcentrationHead:
    assert trainer.concentration_head is not None
    return trainer.concentration_head


def at_random(trainer: PRMTrainer) -> None:
    """A head that says something else of every hidden state."""
    with torch.no_grad():
        of(trainer).weight.copy_(
            0.2 * torch.randn(of(trainer).weight.shape, generator=torch.Generator().manual_seed(1))
        )


@pytest.mark.parametrize("margin", [-6.0, 0.0, 2.0])
def test_the_likelihood_of_a_concentration_per_step_is_scipys(margin: float) -> None:
    """float64, another κ for every step; the constant is log C(n, k)."""
    correct, total = (torch.tensor(side, dtype=torch.float64) for side in zip(*COUNTS, strict=True))
    kappas = torch.logspace(-1, 4, len(COUNTS), dtype=torch.float64)
    found = beta_binomial_loss(torch.full_like(correct, margin), correct, total, concentration=kappas)
    p = 1 / (1 + math.exp(-margin))
    oracle = [
        -betabinom.logpmf(k, n, kappa * p, kappa * (1 - p)) + math.log(comb(n, k))
        for (k, n), kappa in zip(COUNTS, kappas.tolist(), strict=True)
    ]
    assert found.numpy() == pytest.approx(np.array(oracle), rel=1e-6, abs=1e-7)


def test_gradients_of_the_concentration_are_right_and_finite_at_its_ends() -> None:
    correct, total = (torch.tensor(side, dtype=torch.float64) for side in zip(*COUNTS, strict=True))
    generator = torch.Generator().manual_seed(0)
    margin, log = (torch.randn(len(COUNTS), dtype=torch.float64, generator=generator) for _ in range(2))
    for value in (margin, log):
        value.requires_grad_()
    assert torch.autograd.gradcheck(lambda m, c: HEAD(m, correct, total, c), (margin, log))
    for end in (LEAST, MOST):
        far = torch.full((len(COUNTS),), end, requires_grad=True)
        HEAD(torch.zeros(len(COUNTS)), correct.float(), total.float(), far).sum().backward()
        assert far.grad is not None
        assert far.grad.isfinite().all()
    head = ConcentrationHead(2)
    assert head(1e6 * torch.ones(1, 2)).item() == pytest.approx(math.log(START))
    with torch.no_grad():
        head.weight.fill_(1.0)
    assert [head(sign * torch.full((1, 2), 1e6)).item() for sign in (-1, 1)] == pytest.approx([LEAST, MOST])


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("text_weight", [0.0, 0.5])
def test_before_training_it_is_the_one_concentration(
    tmp_path: Path, policy_folder: Path, lora: bool, text_weight: float
) -> None:
    losses = []
    for likelihood in (Likelihood(3.0), Likelihood(3.0, per_step=True), Likelihood(30.0, per_step=True)):
        trainer = trainer_for(tmp_path, policy_folder, likelihood, lora=lora, text_weight=text_weight)
        losses.append(trainer.compute_loss(trainer.model, trainer.data_collator(groups())).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


@pytest.mark.parametrize("text_weight", [0.0, 0.5])
def test_it_reads_the_hidden_state_that_the_lm_head_reads(
    tmp_path: Path, policy_folder: Path, text_weight: float
) -> None:
    """A batch of packed rows against each response alone, its last hidden states taken from the model's own output."""
    trainer = trainer_for(tmp_path, policy_folder, text_weight=text_weight)
    at_random(trainer)
    batch = trainer.data_collator(groups())
    assert LAYOUT in batch["inputs"]
    seen: list[torch.Tensor] = []
    trainer._count_terms = lambda logits, counts: seen.append(logits) or logits.sum()  # type: ignore[method-assign, func-returns-value]
    trainer.compute_loss(trainer.model, batch)
    oracle = []
    for group in groups():
        steps = [solution.steps for solution in group.solutions]
        for solution, row in zip(
            group.solutions, render(trainer.processing_class, STEP_END, group.problem, steps, []), strict=True
        ):
            ids = torch.tensor([[*row.prompt.input_ids.tolist(), *row.continuation]])
            hidden = trainer.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            for position, label in zip(row.read_positions, solution.labels, strict=True):
                if label is not None:
                    oracle.append((of(trainer).weight @ hidden[position] + of(trainer).bias).item())
    assert np.std(oracle) > 0.05
    assert seen[0][:, 2].tolist() == pytest.approx(oracle, abs=1e-4)


def test_micro_batches_do_not_matter(tmp_path: Path, policy_folder: Path) -> None:
    found = []
    for size in (4, 2, 1):
        trainer = trainer_for(
            tmp_path / str(size), policy_folder, max_steps=2, learning_rate=0.1, optim="sgd", save_strategy="no",
            per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, max_grad_norm=0.0,
        )  # fmt: skip
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        assert of(trainer).weight.abs().max() > 1e-4
    for weights in found[1:]:
        assert (weights - found[0]).abs().max() < 1e-5


def test_it_learns_where_counts_scatter(tmp_path: Path, policy_folder: Path) -> None:
    """The same two steps in every problem: of one the counts are 0 or 16 of 16, of the other always 8. Both have p = ½,
    which one κ for all cannot tell apart."""
    made = []
    for i in range(8):
        pairs = {"Red is 3": (16 * (i % 2), 16), "Blue is nine": (8, 16)}
        solutions = tuple(
            LabelledSolution(
                split_on_blank_lines(text), LabelRule(binomial=True).labels(counts := (MonteCarloCount(*pair),)), counts
            )
            for text, pair in pairs.items()
        )
        made.append(LabelledGroup(Problem(f"p{i}", "How many?"), solutions))
    trainer = trainer_for(
        tmp_path, policy_folder, train=made, max_steps=40, learning_rate=0.02, save_strategy="no",
        per_device_train_batch_size=8, lora=True,
    )  # fmt: skip
    trainer.train()
    trainer.model.eval()
    seen: list[torch.Tensor] = []
    trainer._count_terms = lambda logits, counts: seen.append(logits) or logits.sum()  # type: ignore[method-assign, func-returns-value]
    trainer.compute_loss(trainer.model, trainer.data_collator(made[:1]))
    scattered, steady = seen[0][:, 2].exp().tolist()
    assert scattered < START / 2
    assert steady > 2 * START


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_has_the_same_head(tmp_path: Path, policy_folder: Path, lora: bool) -> None:
    """Four steps in one go and two plus two: head and weights have the same bits; the file of the weights lacks it."""
    settings: dict[str, Any] = {
        "max_steps": 4, "save_steps": 2, "learning_rate": 0.01, "per_device_train_batch_size": 2, "lora": lora,
    }  # fmt: skip
    whole = trainer_for(tmp_path / "run", policy_folder, **settings)
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert json.loads((checkpoint / CONTRACT).read_text())["concentration_head"] == FILE
    kept = [name for file in checkpoint.glob("*.safetensors") if file.name != FILE for name in load_file(file)]
    assert kept
    assert not [name for name in kept if "concentration" in name]
    again = trainer_for(tmp_path / "run", policy_folder, **settings)
    again.train(resume_from_checkpoint=str(checkpoint))
    before = load_file(checkpoint / FILE)
    assert not torch.equal(before[WEIGHT], of(whole).weight)
    named = dict(again.model.named_parameters())
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, named[name]), name
    assert any("concentration_head" in name for name in named)
    whole.save_model(str(tmp_path / "out"))
    assert not isinstance(whole.model, PeftModel)
    assert has_head(tmp_path / "out")
    assert load_format(tmp_path / "out") == STEP_END
    assert torch.equal(load_file(tmp_path / "out" / FILE)[BIAS], of(whole).bias)
    load_model(tmp_path / "out")  # whole, with nothing left over


def test_a_run_with_a_head_is_another_run(tmp_path: Path, policy_folder: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 2}
    trainer_for(tmp_path / "run", policy_folder, **settings).train()
    with pytest.raises(ConfigError, match="concentration_head: True then, None now"):
        trainer_for(tmp_path / "run", policy_folder, Likelihood(), **settings).train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1")
        )
    trainer_for(tmp_path / "plain", policy_folder, Likelihood(), **settings).train()
    with pytest.raises(ConfigError, match="concentration_head: None then, True now"):
        trainer_for(tmp_path / "plain", policy_folder, **settings).train(
            resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-1")
        )


def test_a_model_without_an_lm_head_has_no_place_for_it() -> None:
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen2ProcessRewardModel(Qwen2Config(**size, num_key_value_heads=2, vocab_size=16))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Qwen2ProcessRewardModel has none: use a format that reads label tokens"):
        attach_head(model)
    assert not hasattr(model, "concentration_head")


@pytest.fixture(scope="module")
def prm_folder(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Path:
    """A PRM with a head that says something else of every hidden state, as `PRMTrainer` saves it."""
    folder = tmp_path_factory.mktemp("prm")
    trainer = trainer_for(folder / "run", policy_folder)
    at_random(trainer)
    trainer.save_model(str(folder / "prm"))
    return folder / "prm"


def test_a_loaded_prm_tells_the_spread_of_each_step(prm_folder: Path) -> None:
    """√(p·(1 − p) / (κ + 1)) with κ from the hidden states of each response alone, against packed rows in passes."""
    prm = ModelPRM.load(prm_folder)
    assert prm.concentration is not None
    responses = ["Red is 3\n\nRed is 4\n\nBlue is 5", "Blue is 3\n\nBlue is 4", "Red is 7"]
    problem = Problem("p", "How many?")
    found = prm.score(problem, responses)
    short = ModelPRM(prm.model, prm.processor, STEP_END, max_pass_tokens=8, concentration=prm.concentration)
    for response, scores in zip(responses, found, strict=True):
        row = render(prm.processor, STEP_END, problem, [prm.steps(response)], [])[0]
        ids = torch.tensor([[*row.prompt.input_ids.tolist(), *row.continuation]])
        with torch.no_grad():
            hidden = prm.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, list(row.read_positions)]
            kappas = prm.concentration(hidden)[:, 0].exp().tolist()
        assert scores.spreads is not None
        expected = [(p * (1 - p) / (kappa + 1)) ** 0.5 for p, kappa in zip(scores.values, kappas, strict=True)]
        assert scores.spreads == pytest.approx(expected, rel=1e-3)
    assert len({round(spread, 4) for scores in found for spread in scores.spreads or ()}) > 3
    for scores, again in zip(found, short.score(problem, responses), strict=True):
        assert again.spreads == pytest.approx(scores.spreads, rel=1e-3)
    merged = ModelPRM(prm.model, prm.processor, replace(STEP_END, max_steps=2), concentration=prm.concentration)
    (four,) = merged.score_steps([(problem, ["Red is 3", "Red is 4", "Blue is 5", "Blue is 6"])])
    assert isinstance(four, StepScores)
    assert four.spreads is not None
    assert four.spreads[0] == four.spreads[1] != four.spreads[2] == four.spreads[3]
    without = ModelPRM(prm.model, prm.processor, STEP_END).score(problem, responses)
    assert [scores.spreads for scores in without] == [None] * 3
    assert [scores.values for scores in without] == [scores.values for scores in found]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "names concentration_head.safetensors, which is not there: copy it too"),
        ("other tensors", r"expected finite concentration_head.weight \(1, 32\) and concentration_head.bias \(1,\)"),
        ("wrong shape", r"got .*\(1, 31\)"),
        ("NaN", "expected finite"),
        ("damaged", "concentration_head.safetensors cannot be read"),
        ("another name", "expected concentration_head to be 'concentration_head.safetensors', or nothing of that name"),
    ],
)
def test_a_head_is_whole_or_refused(prm_folder: Path, tmp_path: Path, damage: str, message: str) -> None:
    folder = tmp_path / "prm"
    shutil.copytree(prm_folder, folder)
    whole = load_file(folder / FILE)
    wrong = {
        "other tensors": {WEIGHT: whole[WEIGHT]},
        "wrong shape": {**whole, WEIGHT: torch.zeros(1, 31)},
        "NaN": {**whole, BIAS: torch.tensor([math.nan])},
    }
    if damage in wrong:
        save_file(wrong[damage], folder / FILE)
    elif damage == "missing":
        (folder / FILE).unlink()
    elif damage == "damaged":
        (folder / FILE).write_bytes(b"\x00" * 40)
    else:
        contract = json.loads((folder / CONTRACT).read_text())
        (folder / CONTRACT).write_text(json.dumps(contract | {"concentration_head": "../other.safetensors"}))
    with pytest.raises(ConfigError, match=message):
        ModelPRM.load(folder)


def test_spreads_are_one_per_step_and_in_range() -> None:
    with pytest.raises(StepAlignmentError, match="expected one spread per step, got 1 for 2"):
        StepScores((0.5, 0.5), spreads=(0.1,))
    for spread in (-0.1, 0.6, math.nan):
        with pytest.raises(StepAlignmentError, match="the spread of a step must be in"):
            StepScores((0.5,), spreads=(spread,))
