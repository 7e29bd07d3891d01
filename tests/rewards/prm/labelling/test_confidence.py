"""The posterior of a step's count, against integrals by hand; which counts have one."""

from __future__ import annotations

import math

import pytest

from mpo.multimodal.errors import ConfigError
from rewards.prm.labelling.confidence import decided_steps, posterior
from rewards.prm.labelling.labels import doubt
from rewards.prm.labelling.source import EXACT, counts_were_drawn, monte_carlo_source, require_draws
from rewards.types import Completion, MonteCarloCount, Rollout


def rollout(*pairs: tuple[int, int] | None, source: str | None = "mc:full:4") -> Rollout:
    counts = tuple(None if pair is None else MonteCarloCount(*pair) for pair in pairs)
    return Rollout(Completion("a"), mc=counts, label_source=source)


def test_golden_posteriors() -> None:
    """0 of 4, uniform: Beta(1, 5), P(mc > x) = (1 − x)^5. 4 of 4 is its mirror. 1 of 1: Beta(2, 1), P(mc < x) = x²."""
    none, one = posterior(MonteCarloCount(0, 4)), posterior(MonteCarloCount(1, 1))
    assert none.mean == pytest.approx(1 / 6)
    assert none.above == pytest.approx(0.5**5)
    assert (none.low, none.high) == pytest.approx((1 - 0.975**0.2, 1 - 0.025**0.2))
    all_of_them = posterior(MonteCarloCount(4, 4))
    assert (all_of_them.mean, all_of_them.low) == pytest.approx((5 / 6, 1 - none.high))
    assert (one.mean, one.above, one.low, one.high) == pytest.approx((2 / 3, 0.75, 0.025**0.5, 0.975**0.5))
    assert (none.side, all_of_them.side, one.side) == (False, True, None)


@pytest.mark.parametrize(("correct", "total"), [(0, 16), (3, 16), (9, 16), (16, 16), (2, 5)])
@pytest.mark.parametrize("prior", [(1.0, 1.0), (2.0, 3.0)])
def test_mean_interval_and_side_by_integration(correct: int, total: int, prior: tuple[float, float]) -> None:
    """Midpoint sums of p^(a+k−1)·(1−p)^(b+n−k−1)."""
    points = [(i + 0.5) / 20_000 for i in range(20_000)]
    mass = [p ** (correct + prior[0] - 1) * (1 - p) ** (total - correct + prior[1] - 1) for p in points]
    whole = math.fsum(mass)

    def share(low: float, high: float) -> float:
        return math.fsum(m for m, p in zip(mass, points, strict=True) if low < p < high) / whole

    found = posterior(MonteCarloCount(correct, total), threshold=0.25, level=0.9, prior=prior)
    assert found.mean == pytest.approx(math.fsum(m * p for m, p in zip(mass, points, strict=True)) / whole, abs=1e-6)
    assert share(0.0, found.low) == pytest.approx(0.05, abs=1e-3)
    assert share(found.high, 1.0) == pytest.approx(0.05, abs=1e-3)
    assert found.above == pytest.approx(share(0.25, 1.0), abs=1e-3)
    assert found.side == (None if 0.1 < found.above < 0.9 else found.above > 0.5)


def test_it_agrees_with_the_doubt_that_labels_are_dropped_by() -> None:
    for total in (1, 4, 16):
        for correct in range(total + 1):
            found, count = posterior(MonteCarloCount(correct, total)), MonteCarloCount(correct, total)
            assert min(found.above, 1 - found.above) == pytest.approx(min(doubt(count, threshold=0.5), 0.5), abs=1e-9)


def test_more_draws_of_one_share_decide() -> None:
    """6 of 8 is open, 12 of 16 is decided: P(mc > ½) is 0.91 and 0.975."""
    assert posterior(MonteCarloCount(6, 8)).side is None
    assert posterior(MonteCarloCount(12, 16)).side is True


@pytest.mark.parametrize("change", [{"threshold": 0.0}, {"threshold": 1.0}, {"level": 0.5}, {"prior": (0.0, 1.0)}])
def test_numbers_outside_their_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected 0 < threshold < 1"):
        posterior(MonteCarloCount(1, 2), **change)  # type: ignore[arg-type]


def test_every_step_is_accounted_for() -> None:
    """The last step of each response is its verdict's. Inferred and missing counts are counted apart."""
    full = rollout((4, 4), (0, 4), (2, 4), None, (0, 4))
    sequential = rollout((1, 2), (0, 4), (4, 4), source="mc:sequential:4")
    inferred = rollout((1, 1), (0, 4), (0, 4), source="mc:bisect:4")
    found = decided_steps([full, sequential, inferred, Rollout(Completion("not labelled"))])
    assert (found.above, found.below, found.open, found.not_drawn) == (1, 2, 2, 3)
    assert found.steps == 8
    assert str(found) == (
        "3 of 8 continued steps decided at 95% (1 above mc 0.5, 2 below, 3 without draws of their own)"
    )
    assert "counts are inferred" in str(decided_steps([inferred]))
    assert str(decided_steps([rollout((4, 4))])) == "no step was continued"


def test_which_counts_were_drawn() -> None:
    drawn = {name for name in ("full", "sequential", "bisect", "unknown") if counts_were_drawn(f"mc:{name}:16")}
    assert drawn == {"full", "sequential"}
    require_draws([rollout((1, 1), source=source) for source in (EXACT, "mc:sequential:4", None)], use="x")
    others = [rollout((1, 1), source=source) for source in (monte_carlo_source("bisect", 4), "someone's")]
    with pytest.raises(ConfigError, match=r"x needs counts of draws .* mc:bisect:4 \(1 rollouts\), someone's \(1"):
        require_draws(others, use="x")
