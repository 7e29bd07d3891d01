"""The whole loop, every stage for real, in the smallest setting; then again, to see that nothing is done twice."""

import gc
import json
import shutil
from pathlib import Path

import pytest
import yaml

from mpo.trainer import MPOTrainer
from recipes.cli import main
from recipes.loop.settings import Settings
from recipes.loop.stages import Stages
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups
from rewards.interchange.trl_rows import read_trl_parquet
from rewards.prm.model_prm import ModelPRM
from rewards.scoring.other_images import blanked

SETTINGS = Path(__file__).parents[1] / "digits_tiny.yaml"
ARMS = ["rft", "mpo_grpo"]  # MPO → GRPO needs MPO, which is trained as well


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loop") / "run"
    assert main(["pipeline", "--settings", str(SETTINGS), "--run_dir", str(folder), "--arms", *ARMS]) == 0
    return folder


def manifests(run: Path) -> dict[str, float]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("manifest.json")}


def test_every_stage_balances_its_account(run):
    counts = [manifest_of(run / path)["counts"] for path in (Path(p).parent for p in manifests(run))]
    balanced = [c for c in counts if "in" in c]
    assert len(balanced) > 15
    assert all(c["in"] == c["out"] + sum(c["rejected"].values()) for c in balanced)


def test_scored_groups_have_a_score_a_step_and_a_verdict(run):
    groups = read_groups(run / "test" / "mpo" / "scored")
    assert len(groups) == 8
    for group in groups:
        assert len(group.rollouts) == 4
        assert all(rollout.verdict is not None for rollout in group.rollouts)
        assert all((rollout.reward is None) == (rollout.step_scores is None) for rollout in group.rollouts)
    assert any(rollout.reward is not None for group in groups for rollout in group.rollouts)


def test_test_answers_are_scored_without_their_picture_too(run):
    """As the PRM itself says of a blank image; preference answers are not, since these pairs do not ask for it."""
    groups = read_groups(run / "test" / "mpo" / "scored")
    prm = ModelPRM.load(run / "prm")
    rollouts = [(group.problem, r) for group in groups for r in group.rollouts if r.step_scores]
    assert all(r.blank is not None for _, r in rollouts)
    assert any(r.swapped is not None for _, r in rollouts)
    problem, rollout = rollouts[0]
    (alone,) = prm.score(blanked(problem), [rollout.completion.text])
    assert rollout.blank.step_scores.values == pytest.approx(alone.values, abs=1e-5)
    assert rollout.blank.step_scores.values != rollout.step_scores.values
    lacking = manifest_of(run / "test" / "mpo" / "scored")["counts"]["without_other_picture"]
    assert sum(lacking.values()) == sum(r.swapped is None for _, r in rollouts)
    assert all(r.blank is None for g in read_groups(run / "preference" / "scored") for r in g.rollouts)


def test_pairs_are_trl_rows(run):
    rows = read_trl_parquet(run / "pairs" / "pairs.parquet")
    assert len(rows) == manifest_of(run / "pairs")["counts"]["pairs"] > 0
    assert {"images", "prompt", "chosen", "rejected"} <= set(rows.column_names)


def test_training_moved_the_policy_and_logged_the_three_losses(run):
    history = json.loads((run / "mpo" / "log_history.json").read_text())
    first = next(entry for entry in history if "loss/preference" in entry)
    assert {"loss/quality", "loss/generation", "bco/delta"} <= set(first)
    before = (run / "policy" / "model.safetensors").read_bytes()
    assert before != (run / "mpo" / "model.safetensors").read_bytes()


def test_a_stage_leaves_no_trainer_behind(run, tmp_path):
    """Its model would stay on the device beside the next stage's, and a worker forked later would inherit it."""
    settings = Settings(SETTINGS)
    config = settings.build("train_mpo", policy=run / "policy", pairs=run / "pairs", out=tmp_path / "mpo", seed=0)
    before = {id(one) for one in gc.get_objects() if isinstance(one, MPOTrainer)}
    gc.disable()  # the collector comes when it likes
    try:
        Stages()("train-mpo", config, "once more")
        assert not [one for one in gc.get_objects() if isinstance(one, MPOTrainer) and id(one) not in before]
    finally:
        gc.enable()


def test_the_better_candidate_of_an_arm_is_kept(run):
    """RFT has two in the tiny settings: both are trained, and the better on development stands in its folder."""
    tuning = json.loads((run / "tuning" / "rft" / "tuning.json").read_text())
    assert [one["learning_rate"] for one in tuning["candidates"]] == [0.0002, 0.0006]
    accuracy = tuning["development_accuracy"]
    assert tuning["chosen"] == accuracy.index(max(accuracy))
    assert (run / "rft").resolve() == (run / "tuning" / "rft" / str(tuning["chosen"])).resolve()
    weights = [(run / "tuning" / "rft" / name / "model.safetensors").read_bytes() for name in "01"]
    assert weights[0] != weights[1]
    assert manifest_of(run / "test" / "rft" / "greedy_samples")["sources"]["policy"][1] == str(run / "rft")
    paper = manifest_of(run / "pairs_paper")["fingerprint"]["settings"]
    assert (paper["rejected_span"], paper["min_step_score"]) == ("full", 0.0)


def test_grpo_goes_on_from_mpo(run):
    """With the run's own PRM, and the prompt that the preference samples were asked with."""
    manifest = manifest_of(run / "mpo_grpo")
    assert manifest["sources"]["policy"][1] == str(run / "mpo")
    assert manifest["sources"]["prm"][1] == str(run / "prm")
    assert manifest["fingerprint"]["settings"]["prompt"] == "direct"
    account = manifest["counts"]["training"]
    assert account["steps"] == 2
    assert set(account["rewards"]) == {"verifier", "prm", "format"}
    assert (run / "mpo_grpo" / "model.safetensors").read_bytes() != (run / "mpo" / "model.safetensors").read_bytes()


def test_the_page_and_the_summary_are_there(run):
    summary = json.loads((run / "summary.json").read_text())
    assert [arm["arm"] for arm in summary["arms"]] == ["policy", "mpo", "rft", "mpo_grpo"]
    assert {row["arm"] for row in summary["best_of_n"]} == {"policy", "mpo", "rft", "mpo_grpo"}
    assert "MPO → GRPO > MPO (sampled)" in {claim["name"] for claim in summary["comparisons"]}
    assert "<html" in (run / "report.html").read_text()[:500]


def test_running_again_does_nothing_and_other_settings_are_refused(run, tmp_path, capsys):
    before = manifests(run)
    assert main(["pipeline", "--settings", str(SETTINGS), "--run_dir", str(run), "--arms", *ARMS]) == 0
    assert manifests(run) == before
    changed = tmp_path / "changed.yaml"
    changed.write_text(SETTINGS.read_text().replace("max_pairs: 2", "max_pairs: 1"))
    capsys.readouterr()
    assert main(["pipeline", "--settings", str(changed), "--run_dir", str(run), "--arms", *ARMS]) == 4
    assert "max_pairs (2 then, 1 now)" in capsys.readouterr().err


def test_rounds_go_on_from_each_other_and_keep_what_the_guard_says(run, tmp_path, capsys):
    out = tmp_path / "rounds"
    given = ["--settings", SETTINGS, "--policy", run / "policy", "--prm", run / "prm", "--out", out]
    given += ["--problems", run / "world" / "preference.jsonl", "--guard", run / "world" / "test.jsonl"]
    assert main(["rounds", *map(str, given), "--rounds", "1"]) == 0
    first = manifests(out)
    assert main(["rounds", *map(str, given), "--rounds", "2"]) == 0  # goes on
    assert {name: time for name, time in manifests(out).items() if name.startswith(("round0", "round1"))} == {
        name: time for name, time in first.items() if name != "manifest.json"
    }
    found = json.loads((out / "rounds.json").read_text())
    start, *changed = found["rounds"]
    assert start["change"] is None
    assert start["gold"]["n"] == 8
    for row in changed:
        assert row["pairs"] > 0
        before = found["rounds"][row["round"] - 1]
        assert row["change"]["gold"]["mean"] == pytest.approx(row["gold"]["mean"] - before["gold"]["mean"])
    fell = [row["change"]["gold"]["mean"] < 0 < row["change"]["reward"]["mean"] for row in changed]
    assert not any(fell[:-1])
    assert found["stopped"] == fell[-1]
    assert found["stopped"] or len(changed) == 2
    kept = found["rounds"][-2 if found["stopped"] else -1]["policy"]
    assert found["policy"] == kept
    assert manifest_of(out / "round1" / "policy")["sources"]["policy"][1] == str(run / "policy")
    assert "policy that is kept" in capsys.readouterr().out


def test_a_guard_that_is_trained_on_is_refused(run, tmp_path, capsys):
    given = ["--settings", SETTINGS, "--policy", run / "policy", "--prm", run / "prm", "--out", tmp_path / "out"]
    given += ["--problems", run / "world" / "test.jsonl", "--guard", run / "world" / "test.jsonl"]
    assert main(["rounds", *map(str, given)]) == 2
    assert "the guard must be held out" in capsys.readouterr().err


def pair_counts(run: Path) -> dict[str, object]:
    counts = manifest_of(run / "pairs")["counts"]
    return {name: count for name, count in counts.items() if name != "problems"}  # a path


def own_settings(folder: Path, run: Path, *, drop: tuple[str, ...] = (), **own: str) -> Path:
    """The tiny settings with the world's files as the user's own."""
    settings = {key: value for key, value in yaml.safe_load(SETTINGS.read_text()).items() if key not in drop}
    problems = {f"{name}_problems": str(run / "world" / f"{name}.jsonl") for name in ("preference", "test")}
    settings["own"] = {"policy": str(run / "policy"), **problems, **own}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("ready", [True, False])
def test_own_model_and_problems(run, tmp_path, ready):
    """The loop without a world: the same stages on files that are given, down to the page; done once."""
    drop = ("world", "warm_start", "deepen")
    if ready:
        drop = (*drop, "prm_sample", "label_steps", "train_prm")
        own = {"prm": str(run / "prm")}
    else:
        own = {"prm_problems": str(run / "world" / "prm.jsonl"), "prm_model": str(run / "prm_init")}
    settings = own_settings(tmp_path, run, drop=drop, **own)
    folder = tmp_path / "run"
    command = ["pipeline", "--settings", str(settings), "--run_dir", str(folder)]
    assert main(command) == 0
    made = {Path(path).parts[0] for path in manifests(folder)}
    trained = {"prm_samples", "prm_verified", "prm_labelled", "prm"}
    assert made == {"preference", "pairs", "mpo", "test"} | (set() if ready else trained)
    assert manifest_of(folder / "mpo")["sources"]["policy"][1] == str(run / "policy")
    if not ready:
        assert manifest_of(folder / "prm")["sources"]["model"][1] == str(run / "prm_init")
    summary = json.loads((folder / "summary.json").read_text())
    cells = {(row["arm"], row["selector"], row["k"]) for row in summary["best_of_n"]}
    assert {
        (arm, selector, k) for arm in ("policy", "mpo") for selector in ("prm", "majority") for k in (1, 4)
    } <= cells
    assert "<html" in (folder / "report.html").read_text()[:500]
    assert list((folder / "plots").iterdir())
    # the same data and seed as in the world's own run: the same pairs
    assert pair_counts(folder) == pair_counts(run)
    before = manifests(folder)
    assert main(command) == 0
    assert manifests(folder) == before


def test_test_problems_that_are_trained_on_are_refused(run, tmp_path, capsys):
    """Also under another id and another path of the image: what counts is question and pixels."""
    rows = [json.loads(line) for line in (run / "world" / "test.jsonl").read_text().splitlines()]
    row = json.loads((run / "world" / "preference.jsonl").read_text().splitlines()[0])
    shutil.copytree(run / "world" / "images", tmp_path / "images")
    moved = tmp_path / "images" / "moved.png"
    shutil.copy(run / "world" / row["images"][0], moved)
    rows.append({**row, "id": "mine", "images": ["images/moved.png"]})
    mixed = tmp_path / "test.jsonl"
    mixed.write_text("".join(json.dumps(one) + "\n" for one in rows))
    drop = ("world", "warm_start", "deepen", "prm_sample", "label_steps", "train_prm")
    settings = own_settings(tmp_path, run, drop=drop, prm=str(run / "prm"), test_problems=str(mixed))
    command = ["pipeline", "--settings", str(settings), "--run_dir", str(tmp_path / "run")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"1 of 9 questions of own.test_problems {mixed} are also in own.preference_problems" in error
    assert "'mine'" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("drop", "own", "message"),
    [
        (("world",), {"prm": "p"}, "section 'warm_start' is not used in a run from these `own` data"),
        (("world", "warm_start", "deepen"), {"prm": "p"}, "section 'prm_sample' is not used"),
        (("world",), {}, "expected one of prm (a finished PRM) and prm_problems (to train one on), got None and None"),
        (("world",), {"prm": "p", "prm_model": "m"}, "with own.prm no PRM is trained"),
        ((), {"prm": "p"}, "sections world and own; expected one of them"),
        (("world",), {"prn": "p"}, "own.prn is unknown; did you mean 'prm'?"),
    ],
)
def test_own_settings_that_cannot_work(run, tmp_path, capsys, drop, own, message):
    settings = own_settings(tmp_path, run, drop=drop, **own)
    assert main(["pipeline", "--settings", str(settings), "--run_dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
