"""Gumbel-max with a generator a row: the distribution is transformers' own, the noise is the row's own."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mpo.multimodal.errors import ConfigError
from rewards.sampling.generator import SamplingParams
from rewards.sampling.row_sampler import RowSampler

CPU = torch.device("cpu")
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 0.5])  # two equal ones
EXPECTED = {  # settings: transformers' warpers, in the order in which `generate` applies them
    (1.0, 1.0, 0): [],
    (0.5, 1.0, 0): [TemperatureLogitsWarper(0.5)],
    (1.3, 0.8, 0): [TemperatureLogitsWarper(1.3), TopPLogitsWarper(0.8)],
    (1.0, 1.0, 3): [TopKLogitsWarper(3)],
    (2.0, 0.7, 5): [TemperatureLogitsWarper(2.0), TopKLogitsWarper(5), TopPLogitsWarper(0.7)],
}


def picks(params: SamplingParams, seeds: list[int], logits: list[Tensor]) -> Tensor:
    """The tokens picked step by step, (steps, R); logits (R, V) a step."""
    sampler = RowSampler(params, seeds, device=CPU)
    left = [sampler(torch.zeros(len(seeds), 1, dtype=torch.long), scores) for scores in logits]
    for scores in left:
        assert torch.equal(scores.exp().sum(dim=-1), torch.ones(len(seeds))), "one token is left a row"
    return torch.stack([scores.argmax(dim=-1) for scores in left])


@pytest.mark.parametrize("settings", EXPECTED)
def test_the_distribution_is_that_of_transformers_warpers(settings: tuple[float, float, int]) -> None:
    """200 rows x 100 steps; chi-square against softmax of the warped logits, and nothing outside their support."""
    warped = LogitsProcessorList(EXPECTED[settings])(torch.zeros(1, 1, dtype=torch.long), LOGITS[None])[0]
    probabilities = warped.softmax(dim=-1).double()
    temperature, top_p, top_k = settings
    drawn = picks(
        SamplingParams(temperature, top_p, top_k), list(range(200)), [LOGITS.expand(200, -1) for _ in range(100)]
    )
    counts = drawn.flatten().bincount(minlength=len(LOGITS)).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    if settings != (1.0, 1.0, 0) and settings != (0.5, 1.0, 0):
        assert not possible.all()
    expected = probabilities[possible] / probabilities[possible].sum() * counts.sum()
    assert chisquare(counts[possible].numpy(), expected.numpy()).pvalue > 1e-3


def test_rows_and_steps_are_independent() -> None:
    """Pairs of neighbouring rows, and of neighbouring steps, over two equally likely tokens: four equal cells."""
    drawn = picks(SamplingParams(), list(range(400)), [torch.zeros(400, 2)] * 50)
    for first, second in ((drawn[:, ::2], drawn[:, 1::2]), (drawn[::2], drawn[1::2])):
        cells = (2 * first + second).flatten().bincount(minlength=4)
        assert chisquare(cells.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("vocabulary", [5, 3000, 9000])
def test_a_rows_noise_is_its_own(vocabulary: int) -> None:
    """The same row alone, in another place, beside other rows; noise is refilled in the middle of the run or not."""
    logits = [torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(step)) for step in range(7)]
    alone = picks(SamplingParams(), [42], logits)[:, 0]
    for seeds in ([42, 1, 2], [9, 8, 7, 42]):
        row = seeds.index(42)
        crowd = [torch.randn(len(seeds), vocabulary) for _ in logits]
        for mine, scores in zip(logits, crowd, strict=True):
            scores[row] = mine[0]
        assert torch.equal(picks(SamplingParams(), seeds, crowd)[:, row], alone)
    assert not torch.equal(picks(SamplingParams(), [43], logits)[:, 0], alone)


def test_the_global_random_state_takes_no_part() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = picks(SamplingParams(), [1, 2], [torch.zeros(2, 50)] * 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(picks(SamplingParams(), [1, 2], [torch.zeros(2, 50)] * 3), first)


def test_greedy_picks_the_largest() -> None:
    assert picks(SamplingParams(temperature=0), [1, 2], [torch.stack([LOGITS, -LOGITS])]).tolist() == [[0, 5]]


def test_logprobs_are_the_policys_own() -> None:
    """Temperature and top_k change what is picked, not what is told: log softmax of the raw logits."""
    sampler = RowSampler(SamplingParams(0.5, 1.0, 1), [3], device=CPU, keep_logprobs=True)
    for _ in range(2):
        sampler(torch.zeros(1, 1, dtype=torch.long), LOGITS[None].clone())
    (values,) = sampler.logprobs() or []
    assert values == pytest.approx([LOGITS.log_softmax(dim=-1)[0].item()] * 2)
    assert RowSampler(SamplingParams(), [3], device=CPU).logprobs() is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"max_new_tokens": 0},
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected temperature >= 0"):
        SamplingParams(**wrong)  # type: ignore[arg-type]
