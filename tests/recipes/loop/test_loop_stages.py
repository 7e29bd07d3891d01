"""What a loop says before each stage: counted beforehand, and the time that is left, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpo.multimodal.errors import ConfigError
from recipes.config import PairsConfig, SampleConfig, ScoreConfig, TrainGRPOConfig, TrainPRMConfig, VerifyConfig
from recipes.loop.stages import Plan, Stages


def test_a_plan_runs_nothing_and_the_rest_is_by_responses(tmp_path: Path) -> None:
    """4 responses took 10 s, so 12 take 30 s; verify and score have no time yet; one without image counts thrice."""
    problems = tmp_path / "q.jsonl"
    problems.write_text('{"id": "a"}\n\n{"id": "b"}\n')
    plan = Plan()
    first = plan("sample", SampleConfig(problems, tmp_path / "a", policy=Path("policy"), num_samples=2), "of the first")
    second = plan(
        "sample", SampleConfig(problems, tmp_path / "b", policy=Path("policy"), num_samples=6), "of the second"
    )
    checked = plan("verify", VerifyConfig(second, tmp_path / "c"), "of the second")
    plan("score", ScoreConfig(checked, Path("prm"), tmp_path / "d", visual_dependence=True), "of the second")
    assert [*tmp_path.iterdir()] == [problems]
    assert first == tmp_path / "a"
    stages = Stages(plan.stages)
    sizes = [stages._size(stage.name, stage.config) for stage in plan.stages]
    assert sizes == [4, 12, 12, 36]
    stages._begun = 1
    assert stages._forecast() == ""
    stages._seconds["sample"], stages._units["sample"], stages._begun = 10.0, 4, 2
    assert (
        stages._forecast()
        == " (10 s so far; about 30 s to go at this rate, not counting verify, score: none has run yet)"
    )


def test_settings_that_exclude_each_other_end_a_plan_and_name_the_stage(tmp_path: Path) -> None:
    """They would otherwise be found hours later, when their stage's turn comes."""
    plan = Plan()
    counts = TrainPRMConfig(tmp_path, tmp_path, tmp_path / "prm", loss="binomial", injected=2)
    with pytest.raises(ConfigError, match=r"train-prm \(on these steps\): loss binomial .* leave injected out"):
        plan("train-prm", counts, "on these steps")
    whole = TrainGRPOConfig(tmp_path, tmp_path, tmp_path / "grpo", batch_size=10, num_generations=4)
    with pytest.raises(ConfigError, match=r"train-grpo \(grpo\): batch_size=10 .* must be a multiple"):
        plan("train-grpo", whole, "grpo")
    dropout = PairsConfig(tmp_path, tmp_path / "pairs", rule="dropout_ntp")
    with pytest.raises(ConfigError, match=r"pairs \(of these\): .* needs the policy"):
        plan("pairs", dropout, "of these")
    assert plan.stages == []
