"""The likelihood of counts: golden values by hand, scipy's as an oracle, gradients, and training with it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import comb
from scipy.stats import betabinom, binom
from transformers import TrainingArguments

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from rewards.errors import StepAlignmentError
from rewards.prm.formats import QWEN_MATH_PRM, STEP_END, VISUALPRM, VISUALPRM_ADVANTAGE
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution, LabelRule
from rewards.prm.model_prm import ModelPRM
from rewards.prm.step_losses import Likelihood, beta_binomial_loss, binomial_loss
from rewards.prm.trainer import PRMTrainer
from rewards.steps import split_on_blank_lines
from rewards.types import MonteCarloCount, Problem

RESPONSES: dict[str, list[tuple[int, int] | None]] = {
    "Red is 3\n\nRed is 4\n\nBlue is 5": [(4, 4), (1, 2), (0, 16)],
    "Blue is 3\n\nBlue is 4": [(0, 3), None],
    "Red is 7": [(16, 16)],
}


def groups(number: int = 4) -> list[LabelledGroup]:
    """One to three responses each, with different numbers of draws per step, and one step without a count."""
    made = []
    for i in range(number):
        solutions = []
        for text, pairs in list(RESPONSES.items())[: 1 + i % 3]:
            counts = tuple(None if pair is None else MonteCarloCount(*pair) for pair in pairs)
            labels = LabelRule(binomial=True).labels(counts)
            solutions.append(LabelledSolution(split_on_blank_lines(text), labels, counts))
        made.append(LabelledGroup(Problem(f"p{i}", f"How many of {i}?"), tuple(solutions)))
    return made


def trainer_for(folder: Path, policy: Path, likelihood: Likelihood | None, **changes: Any) -> PRMTrainer:
    arguments = TrainingArguments(
        str(folder), report_to=[], use_cpu=True, remove_unused_columns=False, disable_tqdm=True, **changes
    )
    model = load_model(policy).eval()
    return PRMTrainer(model, load_processor(policy), STEP_END, arguments, groups(), likelihood=likelihood)


def test_golden_values() -> None:
    """p = ¾ (margin ln 3), 3 of 4: −3·ln ¾ − ln ¼ = 2.2493. κ = 4 → α = 3, β = 1: 3·4·5·1 / (4·5·6·7) = 1/14."""
    margin, three, four = torch.tensor([math.log(3.0)]), torch.tensor([3.0]), torch.tensor([4.0])
    assert binomial_loss(margin, three, four).item() == pytest.approx(2.249341, abs=1e-6)
    assert beta_binomial_loss(margin, three, four, concentration=4.0).item() == pytest.approx(math.log(14), abs=1e-6)


COUNTS = [(0, 1), (1, 1), (0, 16), (16, 16), (5, 16), (2, 3), (1, 64)]


@pytest.mark.parametrize("margin", [-30.0, -6.0, -0.5, 0.0, 2.0, 12.0])
def test_it_is_scipys_up_to_the_number_of_orders(margin: float) -> None:
    """float64, every count, binomial and four concentrations; the constant is log C(n, k)."""
    correct, total = (torch.tensor(side, dtype=torch.float64) for side in zip(*COUNTS, strict=True))
    margins, p = torch.full_like(correct, margin), 1 / (1 + math.exp(-margin))
    orders = np.log([comb(n, k) for k, n in COUNTS])
    oracle = [-binom.logpmf(k, n, p) for k, n in COUNTS] + orders
    assert binomial_loss(margins, correct, total).numpy() == pytest.approx(oracle, rel=1e-7, abs=1e-9)
    for concentration in (0.3, 2.0, 40.0, 1e4):
        a, b = concentration * p, concentration / (1 + math.exp(margin))
        oracle = [-betabinom.logpmf(k, n, a, b) for k, n in COUNTS] + orders
        found = beta_binomial_loss(margins, correct, total, concentration=concentration)
        assert found.numpy() == pytest.approx(oracle, rel=1e-6, abs=1e-7), concentration


def test_a_large_concentration_is_the_binomial_and_float32_holds() -> None:
    margins = torch.linspace(-8, 8, 33)
    for k, n in COUNTS:
        correct, total = torch.full_like(margins, k), torch.full_like(margins, n)
        found = beta_binomial_loss(margins, correct, total, concentration=1e6)
        assert found.numpy() == pytest.approx(binomial_loss(margins, correct, total).numpy(), rel=5e-2, abs=1e-2)
    exact = beta_binomial_loss(margins.double(), correct.double(), total.double(), concentration=1e6)
    assert found.numpy() == pytest.approx(exact.numpy(), rel=1e-5)


@pytest.mark.parametrize("likelihood", [Likelihood(), Likelihood(0.5), Likelihood(20.0)])
def test_gradients_are_finite_and_right_where_the_prm_is_certain(likelihood: Likelihood) -> None:
    """Margins at which σ rounds to 0 and 1 in float32; elsewhere against differences in float64."""
    correct, total = (torch.tensor(side, dtype=torch.float32) for side in zip(*COUNTS, strict=True))
    for margin in (-200.0, 200.0):
        far = torch.full_like(correct, margin, requires_grad=True)
        likelihood(far, correct, total).sum().backward()
        assert far.grad is not None
        assert far.grad.isfinite().all()
    near = torch.randn(len(COUNTS), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: likelihood(m, correct.double(), total.double()), near)


@pytest.mark.parametrize("likelihood", [Likelihood(), Likelihood(0.5)])
def test_a_micro_batch_may_hold_no_labelled_step(likelihood: Likelihood) -> None:
    margin, none = torch.zeros(0, requires_grad=True), torch.zeros(0)
    loss = likelihood(margin, none, none).sum()
    loss.backward()
    assert loss.item() == 0.0


def test_alike_continuations_tell_less() -> None:
    """The gradient at p = ½ after 16 of 16: 8 for the binomial, less the smaller κ is; of one draw all are alike."""
    pulls = {}
    for likelihood in (Likelihood(), Likelihood(50.0), Likelihood(2.0)):
        for n in (1.0, 16.0):
            margin = torch.zeros(1, requires_grad=True)
            likelihood(margin, torch.tensor([n]), torch.tensor([n])).backward()
            assert margin.grad is not None
            pulls[likelihood.concentration, n] = -margin.grad.item()
    assert pulls[None, 16.0] == pytest.approx(8.0)
    assert pulls[None, 16.0] > pulls[50.0, 16.0] > pulls[2.0, 16.0] > 0.5
    assert {round(pulls[key, 1.0], 5) for key in (None, 50.0, 2.0)} == {0.5}


@pytest.mark.parametrize("concentration", [None, 3.0])
def test_the_loss_of_a_batch_by_an_independent_loop(
    tmp_path: Path, policy_folder: Path, concentration: float | None
) -> None:
    """Scores of ModelPRM → scipy's log-pmf, over all draws; the step without a count is not in it."""
    trainer = trainer_for(tmp_path, policy_folder, Likelihood(concentration))
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(groups())).item()
    prm, log_likelihood, draws = ModelPRM(trainer.model, trainer.processing_class, STEP_END), 0.0, 0
    for group in groups():
        for solution, (text, pairs) in zip(group.solutions, RESPONSES.items(), strict=False):
            assert len(solution.steps) == len(pairs)
            for p, pair in zip(prm.score(group.problem, [text])[0].values, pairs, strict=True):
                if pair is not None:
                    k, n = pair
                    beta = concentration and betabinom.logpmf(k, n, concentration * p, concentration * (1 - p))
                    log_likelihood += (beta or binom.logpmf(k, n, p)) - math.log(comb(n, k))
                    draws += n
    assert loss == pytest.approx(-log_likelihood / draws, rel=1e-5)


def test_equal_draws_are_soft_labels(tmp_path: Path, policy_folder: Path) -> None:
    """With n = 4 everywhere, the loss is that of mc itself."""
    counts = (MonteCarloCount(4, 4), MonteCarloCount(1, 4), MonteCarloCount(0, 4))
    steps = split_on_blank_lines("Red is 3\n\nRed is 4\n\nBlue is 5")
    made = LabelledGroup(Problem("p", "q"), (LabelledSolution(steps, LabelRule(soft=True).labels(counts), counts),))
    losses = []
    for likelihood in (None, Likelihood()):
        trainer = trainer_for(tmp_path, policy_folder, likelihood)
        losses.append(trainer.compute_loss(trainer.model, trainer.data_collator([made])).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("likelihood", [Likelihood(), Likelihood(5.0)])
def test_micro_batches_do_not_matter(tmp_path: Path, policy_folder: Path, likelihood: Likelihood) -> None:
    """Three groups with 22, 25 and 41 draws in steps of 4, 2 and 1: the same losses and the same weights."""
    settings: dict[str, Any] = {
        "max_steps": 2,
        "learning_rate": 0.1,
        "optim": "sgd",
        "logging_steps": 1,
        "save_strategy": "no",
    }
    found = []
    for size in (4, 2, 1):
        trainer = trainer_for(
            tmp_path / str(size), policy_folder, likelihood,
            per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, max_grad_norm=0.0, **settings,
        )  # fmt: skip
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        found.append((losses, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])))
    for losses, weights in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-5)
        assert (weights - found[0][1]).abs().max() < 1e-5


def test_evaluation_has_the_loss_of_the_whole_set(tmp_path: Path, policy_folder: Path) -> None:
    losses = []
    for size in (1, 4):
        trainer = trainer_for(tmp_path, policy_folder, Likelihood(), per_device_eval_batch_size=size)
        losses.append(trainer.evaluate(groups())["eval_loss"])
    whole = trainer.compute_loss(trainer.model, trainer.data_collator(groups())).item()
    assert losses == pytest.approx([whole, whole], rel=1e-5)


def test_what_cannot_be_learned_by_a_likelihood(tmp_path: Path, policy_folder: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False)
    model, processor = load_model(policy_folder), load_processor(policy_folder)
    without = [replace(groups()[0], solutions=(replace(groups()[0].solutions[0], counts=None),))]
    with pytest.raises(ConfigError, match="problem 'p0': a response has step labels but no counts"):
        PRMTrainer(model, processor, STEP_END, arguments, without, likelihood=Likelihood())
    with pytest.raises(ConfigError, match="problem 'p0'"):
        PRMTrainer(
            model, processor, STEP_END, arguments, groups(), likelihood=Likelihood(), eval_dataset={"a": without}
        )
    for prm_format, more in (
        (STEP_END, {"class_weights": (1.0, 2.0)}),
        (VISUALPRM, {"as_released": True}),
        (VISUALPRM_ADVANTAGE, {}),
    ):
        with pytest.raises(ConfigError, match="a likelihood of counts needs two labels"):
            PRMTrainer(model, processor, prm_format, arguments, groups(), likelihood=Likelihood(), **more)  # type: ignore[arg-type]
    for concentration in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="concentration must be a number above 0"):
            Likelihood(concentration)
    assert not QWEN_MATH_PRM.neutral  # a label head can learn counts


def test_counts_and_labels_must_match() -> None:
    steps = split_on_blank_lines("a\n\nb")
    with pytest.raises(StepAlignmentError, match="2 steps but 1 counts"):
        LabelledSolution(steps, (1.0, None), (MonteCarloCount(1, 1),))
    with pytest.raises(StepAlignmentError, match="a label but no count"):
        LabelledSolution(steps, (1.0, 0.0), (MonteCarloCount(1, 1), None))
