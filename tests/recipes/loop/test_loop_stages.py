"""What a loop says before each stage: counted beforehand, and the time that is left, worked out by hand."""

from __future__ import annotations

from pathlib import Path

from recipes.config import SampleConfig, ScoreConfig, VerifyConfig
from recipes.loop.stages import Plan, Stages


def test_a_plan_runs_nothing_and_the_rest_is_by_responses(tmp_path: Path) -> None:
    """4 responses took 10 s, so 12 take 30 s; verify and score have no time yet; one without image counts thrice."""
    problems = tmp_path / "q.jsonl"
    problems.write_text('{"id": "a"}\n\n{"id": "b"}\n')
    plan = Plan()
    first = plan("sample", SampleConfig(problems, tmp_path / "a", num_samples=2), "of the first")
    second = plan("sample", SampleConfig(problems, tmp_path / "b", num_samples=6), "of the second")
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
