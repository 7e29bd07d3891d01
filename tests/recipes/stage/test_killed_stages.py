"""Every data stage killed at every failpoint; what a killed stage refuses to go on from; the failpoints themselves."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mpo.multimodal.errors import ConfigError, FingerprintError
from mpo.multimodal.failpoints import FAILPOINTS, reach
from recipes.cli import main
from recipes.config import LabelConfig, ScoreConfig, VerifyConfig
from recipes.data.label_steps import label
from recipes.data.score import score
from recipes.data.verify import verify
from recipes.stage.folder import MANIFEST
from recipes.stage.groups import GROUPS, read_groups
from recipes.stage.kept_calls import CALLS
from rewards.prm.formats import find_format
from rewards.prm.model_prm import ModelPRM, save_format
from rewards.types import Verdict
from tests.recipes.run_folders import make_groups, make_problems, stating, write_stage

SCRIPT = Path(__file__).parents[1] / "kill_pipeline.py"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def given(tmp_path: Path, policy_folder: Path) -> Path:
    """Six problems, a policy and a PRM with random weights, and samples with right, wrong and truncated answers."""
    folder = tmp_path / "given"
    rng = random.Random(0)
    problems = make_problems(folder, "questions", 6, rng)
    shutil.copytree(policy_folder, folder / "policy")
    save_format(shutil.copytree(policy_folder, folder / "prm"), find_format("step_end"))
    write_stage(folder / "made", stating(make_groups(problems, 6, 0.5, rng)), problems, name="sample")
    return folder


@pytest.mark.timeout(600)
def test_a_stage_killed_at_any_failpoint_ends_as_if_left_alone(given: Path) -> None:
    """Bytes of every file, keys of every store, counts of every manifest; in = out + rejected."""
    quick = ["--max_new_tokens", "6", "--verifier", "number"]  # a random policy never stops; math-verify starts slowly
    command = [sys.executable, str(SCRIPT), "--runs", "0", "--given", str(given), *quick]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"failpoints"')]
    kills = json.loads(line)["failpoints"]["kills"]
    files = {"mid_export", "before_rename", "after_rename", "before_manifest"}
    assert set(FAILPOINTS) == files | {"before_commit", "after_commit"}
    with_store = {f"{stage}/{point}" for stage in ("sample", "verify", "label-steps", "score") for point in FAILPOINTS}
    assert set(kills) == with_store | {f"{stage}/{point}" for stage in ("pairs", "convert-data") for point in files}


def verified(given: Path) -> Path:
    return verify(VerifyConfig(given / "made", given.parent / "verified"))


def test_a_call_that_was_made_is_not_made_again(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that breaks after three batches goes on with the fourth; then the scores are those of a straight run."""
    config = ScoreConfig(verified(given), given / "prm", given.parent / "killed", batch_rows=4)
    straight = score(ScoreConfig(config.groups, config.prm, given.parent / "straight", batch_rows=4))
    batches: list[list[str]] = []
    outcomes = ModelPRM.outcomes

    def until_the_fourth(prm: ModelPRM, items: list, **more: str) -> list:
        batches.append([text for _, text in items])
        if len(batches) == 4:
            raise KeyboardInterrupt
        return outcomes(prm, items, **more)

    monkeypatch.setattr(ModelPRM, "outcomes", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        score(config)
    assert not (config.out / MANIFEST).exists()
    score(config)
    assert batches[3] == batches[4]
    assert len(batches) == 1 + 9  # 36 responses, four a batch; the broken one twice
    assert (config.out / GROUPS).read_bytes() == (straight / GROUPS).read_bytes()


def test_work_of_other_settings_or_pictures_is_refused(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 4 with the keys that differ, and only those; what is in the store stays."""
    groups = verified(given)
    labelled, scored = given.parent / "labelled", given.parent / "scored"
    label(LabelConfig(groups, labelled, policy=given / "policy", num_continuations=1, max_new_tokens=2, responses=2))
    score(ScoreConfig(groups, given / "prm", scored))
    for folder in (labelled, scored):
        (folder / MANIFEST).unlink()
    before = (labelled / CALLS).read_bytes()
    flags = ["--groups", str(groups), "--policy", str(given / "policy"), "--out", str(labelled), "--responses", "2"]
    assert main(["label-steps", *flags, "--num_continuations", "1", "--max_new_tokens", "3", "--seed", "1"]) == 4
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds results of other max_new_tokens (2 then, 3 now), seed (0 then, 1 now); go back" in line
    assert (labelled / CALLS).read_bytes() == before
    with pytest.raises(FingerprintError, match=r"of other aggregation \('mean' then, 'min' now\);"):
        score(ScoreConfig(groups, given / "prm", scored, aggregation="min"))
    picture = Path(str(read_groups(groups)[0].problem.images[0]))
    shutil.copy(Path(str(read_groups(groups)[1].problem.images[0])), picture)
    with pytest.raises(FingerprintError, match=r"of other groups \("):
        score(ScoreConfig(groups, given / "prm", scored))


def test_a_verify_with_other_workers_goes_on_with_the_same_calls(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of answers per call is that of the first attempt; nothing is checked twice."""
    monkeypatch.setattr("recipes.data.verify.GROUPS_AT_A_TIME", 1)
    out = verified(given)
    expected = (out / GROUPS).read_bytes()
    (out / MANIFEST).unlink()
    asked: list[int] = []

    def wrong(verifier: object, pairs: list) -> list[Verdict]:
        asked.append(len(pairs))
        return [Verdict.WRONG] * len(pairs)

    monkeypatch.setattr("recipes.data.verify.verify_many", wrong)
    verify(VerifyConfig(given / "made", out, workers=3))
    assert asked == []
    assert (out / GROUPS).read_bytes() == expected


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPO_FAILPOINT", raising=False)
    reach("before_commit")
    monkeypatch.setenv("MPO_FAILPOINT", "")
    reach("before_commit")
    monkeypatch.setenv("MPO_FAILPOINT", "after_commit:3")
    reach("before_commit")


@pytest.mark.parametrize("value", ["before_comit", "before_commit:x", ":1"])
def test_a_misspelt_failpoint_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPO_FAILPOINT", value)
    with pytest.raises(ConfigError, match="expected name or name:number, of before_commit, after_commit"):
        reach("after_rename")
