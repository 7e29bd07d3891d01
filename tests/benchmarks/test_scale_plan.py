"""The numbers of `docs/scale.md` against sums worked by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import scale_plan
from benchmarks.scale_estimates import CASES, RESPONSE, TFLOPS, estimate
from benchmarks.scale_plan import Cost, Data, Model

MODEL = Model(layers=3e9, head=1e9, vision=0.5e9)
DATA = Data(questions=10, responses=4, prompt=1000, patches=2000, response=100, steps=5, continuations=16, picture=1e5)
ONE_HOUR = TFLOPS * 1e12 * 3600  # FLOP


def flops(cost: Cost) -> float:
    """What of a stage is not decoding."""
    return cost.gpu_hours * ONE_HOUR


def test_sampling() -> None:
    """10 questions of 1000 tokens are read: 2·3e9·10,000 = 6e13 FLOP, their patches 2·0.5e9·20,000 = 2e13: 8e13 FLOP.

    40 responses of 100 tokens are written: 4,000 tokens at 5,000 a second: 0.8 s.
    """
    cost = scale_plan.sampling(DATA, MODEL)
    assert (cost.pieces, cost.tokens) == (40, 14_000)
    assert cost.gpu_hours * 3600 == pytest.approx(8e13 / 3e14 + 0.8)


def test_labels() -> None:
    """40 responses × 5 steps × 16 = 3,200 continuations.

    After step i of 5 there are (5 − i)·20 tokens left: 80, 60, 40, 20, 0, 40 on the mean: 128,000 tokens are written.
    With a cache 10·1000 + 40·100 = 14,000 tokens are read, and 20,000 patches: 2·3e9·14,000 + 2e13 = 1.04e14 FLOP.
    Without one per continuation reads 1000 + (20 + 40 + 60 + 80 + 100)/5 = 1,060 tokens and 2,000 patches: 3,200 times
    2·3e9·1,060 + 2·0.5e9·2,000 = 8.36e12 FLOP; 200 times that if the 16 of a step read together.
    """
    cached = scale_plan.monte_carlo(DATA, MODEL)
    assert (cached.pieces, cached.tokens) == (3_200, pytest.approx(142_000))
    assert cached.gpu_hours * 3600 == pytest.approx(1.04e14 / 3e14 + 128_000 / 5_000)
    anew = scale_plan.monte_carlo(DATA, MODEL, together=1)
    assert anew.tokens == pytest.approx(3_200 * 1_060 + 128_000)
    assert anew.gpu_hours * 3600 == pytest.approx(3_200 * 8.36e12 / 3e14 + 25.6)
    step = scale_plan.monte_carlo(DATA, MODEL, together=16)
    assert step.gpu_hours * 3600 == pytest.approx(200 * 8.36e12 / 3e14 + 25.6)


def test_scoring_and_prm_training() -> None:
    """A question with 4 responses is 1,400 tokens: 14,000 in all, 2·3e9·14,000 = 8.4e13 FLOP, images 2e13.

    Training: 4·8.4e13 + 2e13 = 3.56e14.
    """
    assert flops(scale_plan.scoring(DATA, MODEL)) == pytest.approx(1.04e14)
    cost = scale_plan.prm_training(DATA, MODEL)
    assert (cost.pieces, cost.tokens, flops(cost)) == (40, 14_000, pytest.approx(3.56e14))


def test_mpo_training() -> None:
    """6 pairs of 1,200 tokens: 2·3e9·7,200 = 4.32e13; head 2·1e9·1,200 = 2.4e12; 12,000 patches 1.2e13; 5 times all.

    That is 5·5.76e13 = 2.88e14.
    """
    cost = scale_plan.mpo_training(6, DATA, MODEL)
    assert (cost.pieces, cost.tokens, flops(cost)) == (6, 7_200, pytest.approx(2.88e14))


def test_verification_storage_and_wall_time() -> None:
    """90,000 answers at 25 a second are an hour. 10 images of 1e5 bytes, 40 responses of 400 + 210 bytes: 1,024,400.

    3e9 + 2·1e9 + 0.5e9 weights: 5.5e9·12 = 6.6e10 bytes a checkpoint; in bfloat16 1.1e10 bytes, three times at 50e9
    a second: 0.66 s. 512 GPU hours on 1000 GPUs of which 256 can be used take 2 hours.
    """
    assert scale_plan.verification(90_000).core_hours == pytest.approx(1)
    assert scale_plan.stored_bytes(DATA) == pytest.approx(1_024_400)
    assert scale_plan.checkpoint_bytes(MODEL) == pytest.approx(6.6e10)
    assert scale_plan.gather_seconds(MODEL, bandwidth=50e9) == pytest.approx(0.66)
    cost = Cost(0, 0, gpu_hours=512)
    assert scale_plan.wall_hours(cost, gpus=1000, at_most=256) == 2
    assert scale_plan.wall_hours(cost, gpus=1024) == 0.5


def test_the_document_shows_what_is_computed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every line that the program prints stands in docs/scale.md, and both estimators agree on MPO for 8B."""
    scale_plan.main()
    document = (Path(__file__).resolve().parents[2] / "docs" / "scale.md").read_text()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > 10
    assert [line for line in printed if line.startswith("|") and line not in document] == []
    numbers = [re.findall(r"[\d.]+ (?:GB|s)\b", line) for line in printed if not line.startswith("|")]
    assert all(number in document for some in numbers for number in some)


def test_the_estimate_of_one_recipe() -> None:
    """InternVL3-1B: a layer of Qwen2.5-0.5B has 896·(896 + 128 + 128) + 1,152 for q, k, v, 896·896 for o,
    3·896·4,864 for the MLP and 2·896 for the norms: 14,912,384; 24 of them 357,897,216. Its head has 151,674·896 =
    135,899,904 weights. A pair has 1,920 + 600 tokens; 5 passes; what is no language model is the tower.
    """
    case = CASES[0]
    memory, one_gpu, seconds = estimate(case)
    language, head = 357_897_216, 135_899_904
    tower = memory.weights / 4 - language - 2 * head
    assert 0.30e9 < tower < 0.32e9  # InternViT-300M and the projector
    text = 2 * language * 2_520 + 2 * head * 2 * RESPONSE
    assert seconds * 3e14 == pytest.approx(5 * (text + 2 * tower * 7_175))
    assert memory.optimizer == pytest.approx(2 * memory.weights, rel=1e-3)
    assert one_gpu > memory.weights * 5  # weights, reference, gradients, two states
