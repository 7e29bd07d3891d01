"""Counts that stopped early are never read as estimates of mc."""

from __future__ import annotations

import pytest

from mpo.multimodal.errors import ConfigError
from rewards.prm.labelling.budgets import BUDGETS
from rewards.prm.labelling.source import EXACT, counts_estimate_mc, monte_carlo_source, require_estimates
from rewards.types import Completion, Rollout


def test_every_budget_but_full_is_refused() -> None:
    estimating = {name for name in BUDGETS if counts_estimate_mc(monte_carlo_source(name, 16))}
    assert estimating == {"full"}
    require_estimates([Rollout(Completion("a"), label_source=source) for source in (EXACT, "mc:full:4", None)], use="x")


def test_the_refusal_says_what_came_and_what_to_do() -> None:
    sources = ["mc:bisect:8", "mc:sequential:16", "mc:sequential:16", "mc:full:16"]
    with pytest.raises(ConfigError) as caught:
        require_estimates([Rollout(Completion("a"), label_source=source) for source in sources], use="soft labels")
    said = str(caught.value)
    assert said.startswith("soft labels need counts that estimate mc")
    assert "mc:bisect:8 (1 rollouts), mc:sequential:16 (2 rollouts)" in said
    assert "`--budget full`" in said
