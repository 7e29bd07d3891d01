import itertools
import json
import random
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

import rewards
from mpo.multimodal.errors import ConfigError, DataError
from recipes.answering.best_of_n import best_of_n
from recipes.cli import main
from recipes.config import BestOfNConfig
from recipes.report.summary import summarise
from recipes.report.tables import best_of_n_table
from recipes.stage.folder import RESULTS, manifest_of
from recipes.stage.groups import problems_of, read_groups
from rewards.choosing.curves import best_at_k
from rewards.choosing.evaluation import OF_SPREADS, SELECTORS, distinct_at_k, evaluate, within_problem_aucs
from rewards.choosing.selection import CHOICES
from rewards.types import Completion, FinishReason, Problem, Rollout, RolloutGroup, StepScores, Unseen
from tests.recipes.run_folders import C, U, W, make_groups, make_problems, make_run, write_stage
from tests.rewards.choosing.definitions import DEFINITIONS, brute_force


def group_of(*rows, id="p"):
    """rows: (answer or None, verdict, score or None); text is unique a row unless the answer repeats."""
    rollouts = []
    for answer, verdict, score in rows:
        text = "no idea" if answer is None else f"Final answer: {answer}"
        scores = None if score is None else StepScores((score,))
        rollouts.append(Rollout(Completion(text), verdict, scores, score))
    return RolloutGroup(Problem(id, "?"), tuple(rollouts))


GROUP = group_of(("7", C, 0.75), ("8", W, 0.5), ("8", W, 0.25), (None, U, None))


def test_golden_values_of_one_problem():
    results = evaluate([GROUP], [1, 2, 4])
    values = {name: [at[k][0] for k in "124"] for name, at in results["values"].items()}
    assert list(values) == [name for name in SELECTORS if name not in OF_SPREADS]
    # rollout 0 is the only right one and ranked first: it is in k of 4 subsets
    assert values["prm"] == values["orm"] == [0.25, 0.5, 1.0]
    assert values["oracle"] == [0.25, 0.5, 1.0]
    assert values["random"] == [0.25] * 3
    assert values["first"] == [1.0] * 3
    # "Final answer: 7" is longer than "no idea", and first among equals
    assert values["longest"] == [0.25, 0.5, 1.0]
    assert values["shortest"] == [0.25, pytest.approx(2 / 6), 0.0]  # of {0,1} and {0,2}; {0,3} picks 3
    # weights .75 against .5 + .25 = .75 for all four: the tie goes to the first
    assert values["weighted_vote"] == values["vote_prod"] == values["vote_min"] == [0.25, 0.5, 1.0]
    assert values["vote_min_4"] == [0.25, 0.5, 1.0]  # .75⁴ = .316 against .5⁴ + .25⁴ = .066
    assert values["majority"] == [0.25, 0.5, 0.0]
    assert results["unscored"] == 1
    assert results["verdicts"] == {"correct": 0.25, "unparsable": 0.25, "wrong": 0.5}
    assert results["degenerate"] == {"truncated": 0.0, "no_final_answer": 0.25, "repetition": 0.0}
    low = pytest.approx(0.2065, abs=1e-4)  # of one of one, by Wilson
    assert results["within_problem_auc"] == {"mean": 1.0, "low": low, "high": 1.0, "n": 1}
    assert results["estimates"]["prm"]["4"] == {"mean": 1.0, "low": low, "high": 1.0, "n": 1}


def test_unscored_rollouts_are_ranked_last_but_kept():
    group = group_of(("8", W, 0.0), ("7", C, None))
    values = evaluate([group], [1, 2])["values"]
    assert list(values["prm"]["2"]) == [0.0]  # even a reward of 0 beats none
    assert list(values["prm"]["1"]) == [0.5]  # alone it is still answered with
    assert list(values["oracle"]["2"]) == [1.0]
    assert within_problem_aucs([group]) == {}


def test_distinct_answers_equal_enumeration():
    """A seven and two eights; what states no answer is none."""
    answers = ["7", "8", "8", None]
    for k in (1, 2, 3, 4):
        sizes = [len({answers[i] for i in s} - {None}) for s in itertools.combinations(range(4), k)]
        assert distinct_at_k(GROUP, k) == pytest.approx(np.mean(sizes))


def test_auc_counts_ties_half():
    group = group_of(("7", C, 0.5), ("7", C, 1.0), ("8", W, 0.5), ("9", W, 0.25))
    assert within_problem_aucs([group, group_of(("7", C, 0.5), id="all right")]) == {"p": (0.5 + 1 + 1 + 1) / 4}


def test_every_column_is_the_mean_over_all_subsets():
    """Random groups with unscored rollouts, ties and answers that are missing: the definition, by brute force."""
    rng = random.Random(2)
    for index in range(30):
        rows = []
        for _ in range(6):
            answer = rng.choice(["7", "8", "99", None])
            rows.append((answer, C if answer == "7" else W, rng.choice([0.0, 0.25, 0.5, 1.0, None])))
        group = group_of(*rows, ("7", C, 0.25), id=f"p{index}")
        values = evaluate([group], [1, 3, 7])["values"]
        for (name, select), k in itertools.product(DEFINITIONS.items(), (1, 3, 7)):
            assert values[name][str(k)][0] == pytest.approx(brute_force(group, select, k)), (name, k, rows)


def test_the_library_recomputes_every_published_cell(tmp_path):
    """Read the groups of a run and its results.json: the public function gives each number, to the last bit."""
    run = make_run(tmp_path / "run")
    results = json.loads((run / "test" / "mpo" / "best_of_n" / RESULTS).read_text())
    groups = read_groups(run / "test" / "mpo" / "scored")
    for name, k in itertools.product(results["values"], results["ks"]):
        column = [rewards.accuracy_at_k(group, name, k) for group in groups]
        assert column == results["values"][name][str(k)], (name, k)
        estimate = rewards.mean_with_interval(column, resamples=2000)
        assert asdict(estimate) == results["estimates"][name][str(k)], (name, k)


def test_stage_writes_results_and_is_not_run_twice(tmp_path):
    run = make_run(tmp_path / "run")
    folder = run / "test" / "mpo" / "best_of_n"
    results, manifest = json.loads((folder / RESULTS).read_text()), manifest_of(folder)
    assert (results["problems"], results["samples"], results["ks"]) == (12, 4, [1, 2, 4])
    assert manifest["counts"]["in"] == manifest["counts"]["out"] == 48
    assert all(len(column["4"]) == 12 for column in results["values"].values())
    groups = make_groups(run / "world" / "test.jsonl", 1, 1.0, random.Random(0))
    assert results["problem_ids"] == [group.problem.id for group in groups]
    before = (folder / RESULTS).stat().st_mtime_ns
    best_of_n(BestOfNConfig(run / "test" / "mpo" / "scored", folder, [1, 2, 4]))
    assert (folder / RESULTS).stat().st_mtime_ns == before


def test_prm_is_best_at_k_where_all_are_scored():
    rng = random.Random(1)
    group = group_of(*((str(i), rng.choice([C, W]), rng.random()) for i in range(8)))
    rewards = [rollout.reward for rollout in group.rollouts]
    correct = [rollout.verdict is C for rollout in group.rollouts]
    values = evaluate([group], [1, 3, 8])["values"]["prm"]
    assert [values[k][0] for k in ("1", "3", "8")] == [best_at_k(rewards, correct, k) for k in (1, 3, 8)]


def test_orm_reads_the_last_step():
    scores = (StepScores((1.0, 0.25)), StepScores((0.25, 0.5)))
    rollouts = [
        Rollout(Completion(f"{v}\n\nFinal answer: {v}"), v, s, sum(s.values) / 2)
        for v, s in zip((C, W), scores, strict=True)
    ]
    values = evaluate([RolloutGroup(Problem("p", "?"), tuple(rollouts))], [2])["values"]
    assert [*values["prm"]["2"], *values["orm"]["2"]] == [1.0, 0.0]
    assert [*values["shortest"]["2"], *values["longest"]["2"]] == [0.0, 1.0]  # "correct" is the longer word


def test_refusals_name_what_is_wrong(tmp_path):
    problems = make_problems(tmp_path, "test", 3, random.Random(0))
    unscored = write_stage(tmp_path / "verified", make_groups(problems, 4, 0.5, random.Random(0)), problems)
    with pytest.raises(ConfigError, match=r"\[1, 8\].*4 rollouts"):
        best_of_n(BestOfNConfig(unscored, tmp_path / "out", [1, 8]))
    with pytest.raises(DataError, match="score the groups first"):
        best_of_n(BestOfNConfig(unscored, tmp_path / "out", [1, 4]))
    with pytest.raises(DataError, match="no problems"):
        evaluate([], [1])
    with pytest.raises(ConfigError, match="ks="):
        evaluate([GROUP], [0])


def test_large_enough_and_quick():
    rng = np.random.default_rng(0)
    groups = []
    for index in range(200):
        rows = [
            (str(a), C if a == 0 else W, float(s)) for a, s in zip(rng.integers(0, 4, 16), rng.random(16), strict=True)
        ]
        groups.append(group_of(*rows, id=f"p{index}"))
    truncated = Rollout(Completion("x", FinishReason.LENGTH), U)
    groups[0] = RolloutGroup(groups[0].problem, (*groups[0].rollouts, truncated))
    results = evaluate(groups, [1, 2, 4, 8, 16])
    mean = {name: column["16"]["mean"] for name, column in results["estimates"].items()}
    assert mean["oracle"] >= max(mean.values())
    assert results["estimates"]["majority"]["1"]["mean"] == pytest.approx(results["estimates"]["random"]["1"]["mean"])


def test_adaptive_n_is_reported_beside_all_samples():
    """Sixteen equal answers stop at 8 in a vote; 16 different ones never do."""
    same = group_of(*[("7", C, 0.5)] * 16, id="same")
    different = group_of(*[(str(i), C if i == 7 else W, i / 16) for i in range(16)], id="different")
    found = evaluate([same, different], [1, 16])["adaptive"]
    assert found["majority"]["samples"]["mean"] == (8 + 16) / 2
    assert found["majority"]["samples_saved"] == 1 - 24 / 32
    assert found["majority"]["changed"]["mean"] == found["majority"]["difference"]["mean"] == 0.0
    assert set(found) == {"error", "orders", *CHOICES} - {*OF_SPREADS}


def test_warnings_are_printed_and_stored(tmp_path, capsys):
    """Scored as if no image were looked at: the command says so at its end, and the results keep it."""
    run = make_run(tmp_path / "run")
    scored, seen = run / "test" / "mpo" / "scored", tmp_path / "blind"
    same = [
        replace(g, rollouts=tuple(r.with_(swapped=Unseen(r.step_scores, r.reward)) for r in g.rollouts))
        for g in read_groups(scored)
    ]
    write_stage(seen, same, problems_of(scored))
    for folder, flagged in ((seen, True), (scored, False)):
        out = tmp_path / f"results-{flagged}"
        capsys.readouterr()
        best_of_n(BestOfNConfig(folder, out, [1, 4]))
        results, printed = json.loads((out / RESULTS).read_text()), capsys.readouterr().err
        assert ("image_blind" in [warning["name"] for warning in results["warnings"]]) is flagged
        assert ("blind: with another problem's image" in printed) is flagged
        assert (results["image_drop"]["mean"] == 0.0) is flagged


def test_the_lower_bound_is_shown_where_the_prm_told_spreads(tmp_path, capsys):
    """A run whose groups have spreads: a row in results, closing line, summary and table; settings, and a count."""
    run = make_run(tmp_path / "run")
    assert "lower_bound" not in {row["selector"] for row in summarise([run])["best_of_n"]}
    folder, rng = run / "test" / "mpo", random.Random(5)
    groups = []
    for group in read_groups(folder / "scored"):
        rollouts = [
            one.with_(step_scores=replace(scores, spreads=tuple(rng.uniform(0, 0.5) for _ in scores.values)))
            if (scores := one.step_scores)
            else one
            for one in group.rollouts
        ]
        groups.append(replace(group, rollouts=tuple(rollouts)))
    first = groups[0].rollouts[0]
    groups[0] = replace(
        groups[0], rollouts=(first.with_(step_scores=replace(first.step_scores, spreads=None)), *groups[0].rollouts[1:])
    )
    problems = problems_of(folder / "scored")
    for name in ("scored", "best_of_n"):
        shutil.rmtree(folder / name)
    write_stage(folder / "scored", groups, problems, name="score")
    flags = ["--groups", str(folder / "scored"), "--ks", "1", "2", "4"]
    capsys.readouterr()
    assert main(["best-of-n", *flags, "--out", str(folder / "best_of_n")]) == 0
    assert ", lower bound " in capsys.readouterr().err
    results = json.loads((folder / "best_of_n" / RESULTS).read_text())
    assert results["lower_bound"] == {"how": "mean", "z": 1.0, "without_spread": 1}
    assert manifest_of(folder / "best_of_n")["counts"]["without_spread"] == 1
    assert results["values"]["lower_bound"] != results["values"]["prm"]
    summary = summarise([run])
    _, rows = best_of_n_table(summary)
    assert {row[1] for row in rows if row[0] == "MPO"} >= {"PRM best of k", "PRM lower bound, best of k"}
    assert "PRM lower bound@4 > PRM best@4 (MPO)" in {claim["name"] for claim in summary["claims"]}
    assert main(["best-of-n", *flags, "--out", str(tmp_path / "min"), "--pessimism", "2", "--aggregation", "min"]) == 0
    again = json.loads((tmp_path / "min" / RESULTS).read_text())
    assert again["lower_bound"] == {"how": "min", "z": 2.0, "without_spread": 1}
    assert again["values"]["prm"] == results["values"]["prm"]
    assert again["values"]["lower_bound"] != results["values"]["lower_bound"]
