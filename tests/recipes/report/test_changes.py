"""What changed between two policies, by kind of problem and between two runs: counted by hand, and on the page."""

import io
import random
import shutil
from dataclasses import replace

import pytest
from rich.console import Console
from scipy.stats import binomtest

from mpo.multimodal.errors import DataError
from recipes.config import ReportConfig
from recipes.report.compare import compare, print_comparison
from recipes.report.headline import lede
from recipes.report.identity import UNKNOWN, identity
from recipes.report.page import report, report_stage
from recipes.report.shown.changes import GREEDY, PICK, change_tables, changed, telling
from recipes.report.shown.problems import problem_views
from recipes.report.summary import summarise
from recipes.stage.groups import read_groups, read_problems, write_groups, write_problems
from recipes.stage.numbers import real_minus
from rewards.types import Completion, Problem, Rollout, RolloutGroup, StepScores, Verdict
from tests.recipes.run_folders import C, U, W, make_problems, make_run, write_stage

BEFORE = [C, C, W, W, W, U, W, C, W, Verdict.ERROR]
AFTER = [C, W, C, C, C, C, C, C, W, C]  # kept right 2, broken 1, fixed 5, kept wrong 1, one not checked


def arm(run, name, problems, verdicts, rewards=None):
    """One greedy response per problem, and with rewards two samples of which the first has the higher one."""
    greedy = []
    for index, problem in enumerate(problems.values()):
        text = f"Final answer: {problem.answer if verdicts[index] is C else -index}"
        greedy.append(RolloutGroup(problem, (Rollout(Completion(text, num_tokens=5), verdicts[index]),)))
    write_stage(run / "test" / name / "greedy", greedy, run / "world" / "test.jsonl")
    both = [
        replace(
            group,
            rollouts=(
                group.rollouts[0].with_(step_scores=StepScores((0.9,)), reward=0.9),
                Rollout(Completion("?", num_tokens=1), W, StepScores((0.1,)), 0.1),
            ),
        )
        for group in greedy
    ]
    write_stage(run / "test" / name / "scored", both, run / "world" / "test.jsonl")


@pytest.fixture
def run(tmp_path):
    problems = make_problems(tmp_path / "run" / "world", "test", len(BEFORE), random.Random(0))
    kinds = [
        replace(problem, meta={"source": "photos" if index < 4 else "charts", "kind": "count"})
        for index, problem in enumerate(read_problems(problems).values())
    ]
    write_problems(problems, kinds)
    for name, verdicts in (("policy", BEFORE), ("mpo", AFTER)):
        arm(tmp_path / "run", name, read_problems(problems), verdicts)
    return tmp_path / "run"


def test_fixed_and_broken_are_counted(run):
    tables = change_tables([run], before="policy", after="mpo")
    assert [table.of for table in tables] == [GREEDY, PICK]
    for table in tables:
        assert table.counts == {"kept right": 2, "fixed": 5, "broken": 1, "kept wrong": 1}
        assert (table.unchecked, table.no_answer) == (1, (1, 0))
        assert table.p == binomtest(1, 6, 0.5).pvalue
        assert table.verdict == "not shown"
    assert change_tables([run], before="policy", after="dpo") == []


def test_the_page_shows_both_sides(run):
    html = " ".join(report(run).read_text().split())
    assert '<td class="good">5<span class="range">fixed</span></td>' in html
    assert '<td class="bad">1<span class="range">broken</span></td>' in html
    assert "1 could not be checked and are in no cell" in html
    assert "before: warm start, greedy response" in html
    assert "after: MPO, greedy response" in html
    assert "Responses of MPO" in html
    assert "2 responses of warm start, before MPO" in html
    (view, *_) = problem_views(run, 20)["changes"]
    (pair,) = view.pairs
    assert (view.change, pair.chosen.verdict, pair.rejected.verdict) == ("fixed", "wrong", "right")
    assert pair.rejected.steps[0].score == 0.9  # the greedy text was sampled and scored as well


def test_what_moved_comes_first(run):
    found = changed(run, GREEDY, before="policy", after="mpo")
    kinds = [one.kind for one in telling(found, 8)]
    assert kinds == ["fixed", "broken", "fixed", "fixed", "fixed", "fixed", "kept wrong", "kept right"]
    anchors = [view.anchor for views in problem_views(run, 20).values() for view in views]
    assert len(set(anchors)) == len(anchors)


def test_kinds_of_problems(run):
    """Photos: 2 of 4 before, 3 of 4 after; of the two samples of each the second is wrong, which halves all shares."""
    rows = {(row["by"], row["value"]): row for row in summarise([run])["breakdown"]}
    assert set(rows) == {("", ""), ("source", "photos"), ("source", "charts")}  # one kind and one verifier say nothing
    photos = rows["source", "photos"]
    assert photos["problems"] == 4
    assert [side["accuracy"] for side in photos["arms"].values()] == [0.25, 0.375]
    assert photos["difference"]["mean"] == 0.125
    assert photos["difference"]["verdict"] == "not shown"
    charts = rows["source", "charts"]["arms"]["policy"]["verdicts"]
    assert charts == pytest.approx({"right": 1 / 12, "wrong": 9 / 12, "no answer": 1 / 12, "not checked": 1 / 12})
    assert rows["", ""]["arms"]["mpo"]["lengths"]["tokens"] == 3.0
    assert "source: photos" in report(run).read_text()


def test_the_headline_names_the_best_selector_and_what_is_shown(tmp_path):
    summary = summarise([make_run(tmp_path / "run")])
    best = summary["best_selector"]
    means = {row["selector"]: row["mean"] for row in summary["best_of_n"] if row["arm"] == "mpo" and row["k"] == 4}
    assert best["mean"] == max(means[name] for name in means if name not in ("oracle", "first", "longest", "shortest"))
    text = lede(summary)
    assert "is right on" in text
    assert text.count("shown") == 2
    assert "-" not in text.replace("held-out", "")


def test_the_identity_names_what_is_recorded(tmp_path):
    made = make_run(tmp_path / "run", problems=3, samples=2, ks=(1,), optional=False)
    rows = dict(identity([made]))
    assert rows["machine"].endswith("GiB") or "cores" in rows["machine"]
    assert rows["commit"] != ""
    assert rows["made"].endswith("UTC")
    assert rows["tokens drawn"] == UNKNOWN  # no stage of it drew anything
    assert rows["time"].endswith("min")
    assert rows["policy"] == ""


def test_two_runs_are_compared_on_what_they_share(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    path = other / "world" / "test.jsonl"
    problems = [replace(p, question="Which?") if p.id == "test-001" else p for p in read_problems(path).values()]
    more = Problem("extra", "What?", problems[0].images, "7")
    write_problems(path, [*problems, more])
    for folder in ("policy", "mpo"):
        for name in ("greedy", "scored"):
            groups = read_groups(other / "test" / folder / name)
            groups.append(RolloutGroup(more, groups[0].rollouts))
            write_groups(other / "test" / folder / name, groups)
    found = compare(run, other)
    assert found.shared == 9
    assert found.left_out == ("1 is only in B, 1 is in both with another question or answer; they are left out")
    by_name = {(row.arm, row.what): row for row in found.rows}
    assert by_name["MPO", "greedy"].means[0] == pytest.approx(
        8 / 9
    )  # right: all but test-001, which is left out, and test-008
    assert all(row.difference.mean == 0 and row.difference.verdict == "not shown" for row in found.rows)
    screen = io.StringIO()
    print_comparison(found, console=Console(file=screen, width=80))
    assert "The test problems differ: 1 is only in B" in screen.getvalue()
    assert max(map(len, screen.getvalue().splitlines())) <= 80
    page = report_stage(ReportConfig(run, against=other))
    assert page == other / "comparison.html"
    html = page.read_text()
    assert "The test problems differ" in html
    assert "<script" not in html


def test_runs_that_share_nothing_are_refused(run, tmp_path):
    other = make_run(tmp_path / "other", problems=3, samples=2, ks=(1,), optional=False, question="What else?")
    with pytest.raises(DataError, match="share no test problem"):
        compare(run, other)


def test_a_run_against_another_shows_a_clear_difference(tmp_path):
    """Twenty problems, all wrong in A and right in B."""
    for name, verdict in (("a", W), ("b", C)):
        problems = make_problems(tmp_path / name / "world", "test", 20, random.Random(0))
        arm(tmp_path / name, "mpo", read_problems(problems), [verdict] * 20)
    (row, *_) = [row for row in compare(tmp_path / "a", tmp_path / "b").rows if row.what == "greedy"]
    assert row.means == (0.0, 1.0)
    assert row.difference.verdict == "holds"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("by -0.5 [-1, 2]", "by −0.5 [−1, 2]"),
        ("best-of-8", "best-of-8"),
        ("2-3 of 4", "2-3 of 4"),
        ("a -.5", "a −.5"),
        ("--flag -x", "--flag -x"),
    ],
)
def test_only_negative_numbers_get_a_minus_sign(text, expected):
    assert real_minus(text) == expected
