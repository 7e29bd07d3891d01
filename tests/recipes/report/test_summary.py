import io
import json
import shutil

import pytest
from rich.console import Console

from mpo.multimodal.errors import DataError, StageError
from recipes.answering.best_of_n import best_of_n
from recipes.config import BestOfNConfig
from recipes.report.summary import runs_of, summarise, write_summary
from recipes.report.tables import markdown_tables, print_summary, samples_of
from recipes.stage.groups import read_groups, read_problems, write_groups
from rewards.types import Completion, Rollout, RolloutGroup, StepScores
from tests.recipes.run_folders import (
    C,
    U,
    W,
    make_problems,
    make_run,
    unscored_without_picture,
    without_picture,
    write_stage,
)


def write_arm(run, problems, arm, verdicts, rewards=None):
    """verdicts: one list per problem, in file order; rewards likewise."""
    groups = []
    for index, problem in enumerate(read_problems(problems).values()):
        rollouts = []
        for i, verdict in enumerate(verdicts[index]):
            text = "…" if verdict is U else f"step {i}\n\nFinal answer: {problem.answer if verdict is C else -i - 1}"
            reward = rewards[index][i] if rewards else None
            scores = None if reward is None else StepScores((reward, reward) if verdict is not U else (reward,))
            rollouts.append(Rollout(Completion(text), verdict, scores, reward))
        groups.append(RolloutGroup(problem, tuple(rollouts)))
    return write_stage(run / "test" / arm / ("scored" if rewards else "verified"), groups, problems)


@pytest.fixture
def golden(tmp_path):
    """Two seeds, two problems, two samples, by hand."""
    import random

    for seed, policy, mpo in ((0, [[C, W], [W, W]], [[C, C], [C, W]]), (1, [[W, W], [C, W]], [[C, W], [C, U]])):
        run = tmp_path / f"seed{seed}"
        problems = make_problems(run / "world", "test", 2, random.Random(0))
        write_arm(run, problems, "policy", policy, [[0.75, 0.25], [0.25, 0.5]])
        folder = write_arm(run, problems, "mpo", mpo, [[0.5, 0.5], [0.25, 0.5]])
        best_of_n(BestOfNConfig(folder, run / "test" / "mpo" / "best_of_n", [1, 2]))
        write_groups(folder, [without_picture(group, 0.25) for group in read_groups(folder)])
    return tmp_path


def test_values_are_averaged_over_seeds_then_problems(golden):
    summary = summarise([golden])
    policy, mpo = summary["arms"]
    # policy: seed 0 (1/2, 0), seed 1 (0, 1/2) → problems (1/4, 1/4)
    # equal values: at most 1 − √0.05 of all problems differ, by 0.25 below or 0.75 above
    low, high = 0.25 * 0.05**0.5, 0.25 + (1 - 0.05**0.5) * 0.75
    assert policy["sampled"] == {
        **{"mean": 0.25, "low": pytest.approx(low), "high": pytest.approx(high)},
        **{"n": 2, "seeds": [0.25, 0.25]},
    }
    # mpo: seed 0 (1, 1/2), seed 1 (1/2, 1/2) → (3/4, 1/2)
    assert mpo["sampled"]["mean"] == 0.625
    assert mpo["sampled"]["seeds"] == [0.75, 0.5]
    assert mpo["degenerate"]["no_final_answer"]["seeds"] == [0.0, 0.25]
    assert mpo["degenerate"]["no_final_answer"]["mean"] == 0.125
    assert "greedy" not in mpo
    assert (summary["problems"], summary["samples"], summary["k"], summary["seeds"]) == (2, 2, 2, ["seed0", "seed1"])
    (claim,) = [c for c in summary["claims"] if c["name"] == "MPO > warm start (sampled)"]
    found = claim["difference"]
    assert (found["mean"], found["n"], found["seeds"], found["p"]) == (0.375, 2, [0.5, 0.25], 0.5)
    assert found["low"] < 0 < found["high"]  # two problems show nothing
    assert (claim["holds"], found["verdict"]) == (False, "not shown")


def test_best_of_n_and_prm_rows(golden):
    summary = summarise([golden])
    at = {(r["selector"], r["k"]): r["mean"] for r in summary["best_of_n"] if r["arm"] == "mpo"}
    # prm at 2: seed 0 (tie → first: 1, rollout 1 wrong: 0), seed 1 (tie → first: 1, 0)
    assert at["prm", 2] == 0.5
    assert at["oracle", 2] == 1.0
    assert at["prm", 1] == at["random", 1] == 0.625
    (row,) = [row for row in summary["prm"] if row["arm"] == "mpo"]
    assert (row["swap_drop"]["mean"], row["swap_drop"]["seeds"]) == (0.25, [0.25, 0.25])
    assert row["swap_drop"]["low"] < 0  # a fall can be a rise: two problems do not exclude it
    assert row["dependence_right"]["mean"] == row["dependence_wrong"]["mean"] == 0.25
    assert row["auc_swapped"] == row["auc"]  # all rewards fall alike
    # seed 0: problem 1 only, 0; seed 1: problem 0 tie 1/2, problem 1's other one could not be read: it says nothing
    assert row["auc"]["mean"] == 0.25
    assert row["auc"]["seeds"] == [0.0, 0.5]
    names = {claim["name"]: claim for claim in summary["claims"]}
    assert not names["MPO + PRM best@2 > MPO pass@1"]["holds"]
    assert "PRM best@2 > majority@2 (MPO)" in names
    assert not any("warm start + PRM" in name for name in names)  # no best-of-n of that arm


def test_the_lead_over_the_plain_vote_is_told_at_every_k_above_1(golden):
    summary = summarise([golden])
    at = {(r["selector"], r["k"]): r for r in summary["best_of_n"]}
    leads = {(lead["arm"], lead["selector"], lead["k"]): lead["difference"] for lead in summary["leads"]}
    assert leads.keys() == {("mpo", "prm", 2), ("mpo", "vote_prod", 2)}
    assert at["majority", 2]["mean"] == 1.0  # of two answers the first wins, and all the first ones are right
    assert (leads["mpo", "prm", 2]["mean"], leads["mpo", "prm", 2]["seeds"]) == (-0.5, [-0.5, -0.5])
    assert leads["mpo", "vote_prod", 2]["mean"] == at["vote_prod", 2]["mean"] - 1.0
    assert "| MPO | PRM best of k | −50.0 [−" in markdown_tables(summary)


def test_a_whole_run(tmp_path):
    run = make_run(tmp_path / "run", hostile="<b>x</b>")
    summary = summarise([run])
    assert [arm["label"] for arm in summary["arms"]] == ["warm start", "MPO", "DPO"]
    assert len(summary["claims"]) == 11
    assert {c["name"] for c in summary["comparisons"]} == {"MPO > DPO (sampled)", "MPO > DPO (greedy)"}
    assert {arm["arm"] for arm in summary["arms"] if "swapped" in arm} == {"policy", "mpo", "dpo"}
    assert all(0.3 < row["auc_swapped"]["mean"] < 0.7 < row["auc"]["mean"] for row in summary["prm"])
    assert all(row["swap_drop"]["low"] > 0 for row in summary["prm"])
    assert all(row["dependence_right"]["low"] > row["dependence_wrong"]["high"] for row in summary["prm"])
    folders = [stage["folder"] for stage in summary["stages"]]
    assert {"pairs", "prm_labelled", "test/mpo/scored", "test/dpo/verified"} <= set(folders)
    assert summary["pairs"][0]["problems_in"] == 6
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_what_is_missing_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", optional=False)
    for folder in ("test/mpo/best_of_n", "test/mpo/greedy", "pairs"):
        shutil.rmtree(run / folder)
    folder = run / "test" / "policy" / "scored"
    write_groups(folder, [unscored_without_picture(group) for group in read_groups(folder)])
    (run / "test" / "mpo" / "swapped" / "manifest.json").unlink()  # killed half way
    summary = summarise([run])
    names = [claim["name"] for claim in summary["claims"]]
    assert "MPO > warm start (greedy)" not in names
    assert "PRM best@4 > majority@4 (warm start)" in names
    assert not any("MPO + PRM" in name for name in names)
    assert "swapped" not in summary["arms"][1]
    assert summary["pairs"] == summary["comparisons"] == []
    assert set(summary["prm"][0]) == {"arm", "label", "auc"}
    print_summary(summary, console=Console(file=io.StringIO()))


def test_an_arm_that_only_some_seeds_have(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"seed{seed}", seed=seed, problems=5)
    shutil.rmtree(tmp_path / "seed1" / "test" / "dpo")
    summary = summarise([tmp_path])
    assert [len(arm["sampled"]["seeds"]) for arm in summary["arms"]] == [2, 2, 1]
    assert [len(c["difference"]["seeds"]) for c in summary["comparisons"]] == [1, 1]


def test_seeds_must_share_their_problems(tmp_path):
    make_run(tmp_path / "seed0", problems=3)
    make_run(tmp_path / "seed1", problems=4)
    with pytest.raises(DataError, match=r"different test problems.*3, 4"):
        summarise([tmp_path])


def test_runs_of(tmp_path):
    for name in ("seed10", "seed2", "other"):
        (tmp_path / name / "test").mkdir(parents=True)
    assert [run.name for run in runs_of(tmp_path)] == ["seed2", "seed10"]
    assert runs_of(tmp_path / "other") == [tmp_path / "other"]
    with pytest.raises(StageError, match="run the pipeline"):
        runs_of(tmp_path / "nothing")
    with pytest.raises(StageError, match="at least one"):
        summarise([])


def test_written_printed_and_in_markdown(golden):
    path = write_summary([golden / "seed0", golden / "seed1"], golden / "out" / "summary.json")
    summary = json.loads(path.read_text())
    assert summary == summarise([golden])
    summary["arms"][0]["label"] = "[red]bold|\x1b[31m"
    screen = io.StringIO()
    print_summary(summary, console=Console(file=screen, width=80))
    assert "[red]bold" in screen.getvalue()
    assert "\x1b" not in screen.getvalue()
    assert max(map(len, screen.getvalue().splitlines())) <= 80
    text = markdown_tables(summary)
    assert "| MPO | – | 62.5 [" in text
    assert "| MPO | PRM best of k | 62.5 [" in text
    assert "| MPO > warm start (sampled) | +37.5 [−" in text
    assert "] | +50.0, +25.0 | not shown |" in text
    assert "[red]bold\\|␛[31m" in text


def test_the_caption_names_the_range_of_samples():
    """The baselines draw fewer samples than the arms that are reranked."""
    assert samples_of({"samples": 4, "most_samples": 16}) == "4 to 16"
    assert samples_of({"samples": 8, "most_samples": 8}) == "8"
