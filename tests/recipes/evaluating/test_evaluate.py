"""`mpo evaluate` from files of two made-up policies, three critics and three benchmarks in their published forms."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpo.multimodal.errors import ConfigError
from recipes.cli import main
from recipes.data.overlap import OVERLAP, counts_of
from recipes.evaluating.page import PAGE
from recipes.evaluating.results import EVALUATION
from recipes.evaluating.settings import Matrix
from recipes.stage.folder import MANIFEST, manifest_of
from tests.recipes.evaluating.made import BENCHMARKS, CRITICS, POLICIES, make, settings
from tests.recipes.killing import KILLED
from tests.recipes.report.browser import chromium, look, visit

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, and a run over them in `out`."""
    folder = tmp_path_factory.mktemp("matrix") / "made"
    make(folder)
    assert main(["evaluate", str(folder / "matrix.yaml"), "--out", str(folder / "out")]) == 0
    return folder


@pytest.fixture(scope="module")
def evaluation(made: Path) -> dict[str, Any]:
    return json.loads((made / "out" / "results" / EVALUATION).read_text())


def cells_of(evaluation: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [one for one in evaluation["cells"] if all(one[key] == value for key, value in wanted.items())]


def test_every_policy_critic_benchmark_and_n_has_a_cell(evaluation: dict[str, Any]) -> None:
    critics = {*CRITICS, "Self-consistency", "pass@1", "oracle", "first", "longest", "shortest"}
    assert {one["critic"] for one in evaluation["cells"]} == critics
    assert len(evaluation["cells"]) == len(POLICIES) * len(BENCHMARKS) * len(critics) * 3
    assert len(evaluation["overall"]) == len(POLICIES) * len(critics) * 3
    metrics = {one["name"]: one["metric"] for one in evaluation["benchmarks"]}
    assert metrics == {"MMMU": "accuracy", "DynaMath": "worst case", "WeMath": "strict"}
    problems = {one["name"]: one["problems"] for one in evaluation["benchmarks"]}
    assert problems == {"MMMU": 12, "DynaMath": 15, "WeMath": 20}  # without MMMU's development rows


def test_cells_agree_with_the_responses(made: Path, evaluation: dict[str, Any]) -> None:
    """pass@1 and the worst case, recounted from the files of responses."""
    asked = {one["id"]: one for one in map(json.loads, (made / "Beta-8B-DynaMath.jsonl").read_text().splitlines())}
    rows = csv.DictReader((made / "DynaMath.tsv").open(), delimiter="\t")
    shares: dict[str, list[float]] = {}
    for row in rows:
        texts = asked[row["index"]]["responses"]
        right = sum(text.endswith(f"Final answer: {row['answer']}") for text in texts) / len(texts)
        shares.setdefault(row["qid"], []).append(right)
    (cell,) = cells_of(evaluation, policy="Beta-8B", benchmark="DynaMath", critic="pass@1", n=1)
    assert cell["accuracy"]["mean"] == pytest.approx(sum(sum(own) / 3 for own in shares.values()) / len(shares))
    worst = [own[0] * own[1] * own[2] for own in shares.values()]
    assert cell["official"]["mean"] == pytest.approx(sum(worst) / len(worst))


def test_a_good_critic_is_above_the_vote_and_below_the_oracle(evaluation: dict[str, Any]) -> None:
    for policy in POLICIES:
        totals = {
            one["critic"]: one["official"]["mean"]
            for one in evaluation["overall"]
            if (one["policy"], one["n"]) == (policy, 6)
        }
        assert totals["pass@1"] < totals["GoodPRM"] <= totals["oracle"]
        assert totals["Self-consistency"] < totals["GoodPRM"]
    ties = [one for one in evaluation["overall"] if one["n"] == 1]
    assert all(one["minus_majority"]["mean"] == 0 for one in ties if one["critic"] not in ("first",))


def test_equal_tokens_give_the_vote_twice_the_responses(evaluation: dict[str, Any]) -> None:
    for one in evaluation["cells"]:
        if one["critic"] in CRITICS:
            assert one["equal_tokens_k"] == {1: 2, 3: 6, 6: None}[one["n"]]
            assert (one["minus_majority_equal_tokens"] is None) == (one["n"] == 6)
        elif one["critic"] == "Self-consistency":
            assert one["equal_tokens_k"] == one["n"]


def test_two_verifiers_are_compared(evaluation: dict[str, Any]) -> None:
    (told,) = [r for r in evaluation["responses"] if (r["policy"], r["benchmark"]) == ("Beta-8B", "WeMath")]
    assert (told["problems"], told["responses"], told["unparsable"], told["disputed"]) == (20, 120, 0.0, 0.0)
    assert told["compared"] == 120


def test_tables_have_the_layout_of_the_paper(made: Path, evaluation: dict[str, Any]) -> None:
    markdown = (made / "out" / "results" / "table.md").read_text()
    first = markdown.split("\n\n")[1].splitlines()
    assert first[0] == "| policy | MMMU | DynaMath | WeMath | Overall |"
    labels = [line.split("|")[1].strip() for line in first[2:8]]
    assert labels == ["Alpha-2B", "+ GoodPRM (best of 6)", "gain", "+ NoisyPRM (best of 6)", "gain",
                      "+ Self-consistency (best of 6)"]  # fmt: skip
    latex = (made / "out" / "results" / "table.tex").read_text()
    assert latex.startswith("\\begin{tabular}{lrrrr}\n\\toprule\nModel & MMMU & DynaMath & WeMath & Overall \\\\")
    assert latex.count("\\midrule") == len(POLICIES)
    assert "\\quad $\\Delta$ & +" in latex
    lines = list(csv.DictReader((made / "out" / "results" / "cells.csv").open()))
    assert len(lines) == len(evaluation["cells"])
    assert float(lines[0]["official_mean"]) == evaluation["cells"][0]["official"]["mean"]


def test_the_page_holds_figure_and_table_and_loads_nothing(made: Path) -> None:
    page = (made / "out" / "results" / PAGE).read_text()
    assert page.count("<svg") == len(POLICIES)
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert sorted(path.suffix for path in (made / "out" / "results" / "plots").iterdir()) == [
        ".png",
        ".png",
        ".svg",
        ".svg",
    ]


def test_the_page_in_a_browser(made: Path, tmp_path: Path) -> None:
    """Nothing is asked for, nothing is said on the console, and a phone needs no sideways scrolling of the page."""
    with chromium(tmp_path / "profile") as session:
        address = (made / "out" / "results" / PAGE).as_uri()
        visit(session, address)  # what the browser's own first page asks for comes now
        seen = visit(session, address)
        assert (seen["requests"], seen["console"], seen["title"]) == ([], [], "Best of N on 3 benchmarks")
        for width, dark in ((1200, False), (1200, True), (390, False)):
            look(session, width=width, dark=dark)
            assert session.execute_script("return document.documentElement.scrollWidth") <= width
        colours = session.execute_script("return getComputedStyle(document.querySelector('td.up')).color")
        assert colours


def test_a_run_killed_anywhere_ends_with_the_same_bytes(made: Path, tmp_path: Path) -> None:
    failpoints = ["mid_export:2", "before_manifest:2", "before_commit:2", "after_rename:9", "before_manifest:15",
                  "before_rename:12"]  # fmt: skip
    command = [
        sys.executable,
        str(ROOT / "tests/recipes/kill_evaluate.py"),
        str(made / "matrix.yaml"),
        str(tmp_path / "out"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *failpoints], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["codes"] == [KILLED] * len(failpoints) + [0]
    assert contents(tmp_path / "out" / "results") == contents(made / "out" / "results")


def contents(folder: Path) -> dict[str, bytes]:
    """Name → bytes of every file but the manifest, which tells the seconds."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, ".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_spelling_noise_changes_no_cell(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    folder = tmp_path / "noisy"
    make(folder, spelling=True)
    path = settings(
        folder, policies={"Beta-8B": {"responses": {n: str(folder / f"Beta-8B-{n}.jsonl") for n in BENCHMARKS}}}
    )
    assert len(set((folder / "Beta-8B-MMMU.jsonl").read_text().split("Final"))) > 10
    assert main(["evaluate", str(path), "--out", str(tmp_path / "out")]) == 0
    noisy = json.loads((tmp_path / "out" / "results" / EVALUATION).read_text())
    rulers = ("longest", "shortest")  # which read the spelling, and nothing else
    ours, theirs = (
        [one for one in cells_of(some, policy="Beta-8B") if one["critic"] not in rulers] for some in (evaluation, noisy)
    )
    assert ours == theirs


def test_a_further_critic_scores_and_nothing_else_runs_again(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    critics = json.loads((made / "matrix.yaml").read_text())["critics"]
    other = f"{made}/NoisyPRM-{{policy}}-{{benchmark}}.jsonl"
    again = {
        **critics,
        "Another": {"scores": other.replace("/made/", "/made/./")},
        "Cheap": {**critics["GoodPRM"], "cost": 0},
    }
    path = settings(made, critics=again).rename(tmp_path / "more.yaml")
    settings(made)
    assert main(["evaluate", str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert said.count("verify: complete already") == said.count("import-responses: complete already") == 6
    assert len(re.findall(r"^rate: \d+ in", said, re.MULTILINE)) == 6  # of Another; Cheap has GoodPRM's rewards
    found = json.loads((tmp_path / "out" / "results" / EVALUATION).read_text())
    for name, like in (("GoodPRM", "Cheap"), ("NoisyPRM", "Another")):
        for one, same in zip(cells_of(found, critic=name), cells_of(found, critic=like), strict=True):
            assert one["accuracy"] == same["accuracy"]
    assert not list((tmp_path / "out").rglob("critics/Cheap"))


def test_planted_duplicates_are_counted_and_listed(made: Path, tmp_path: Path) -> None:
    """Training problems that are MMMU's first two validation problems: one as it is, one as a JPEG in capitals."""
    import io

    from PIL import Image

    problems = (made / "out" / "benchmarks" / "MMMU" / "problems.jsonl").read_text().splitlines()
    rows = []
    for place, line in enumerate(problems[:2]):
        row = json.loads(line)
        image = Image.open(made / "out" / "benchmarks" / "MMMU" / row["images"][0])
        name = f"{place}.png" if place == 0 else f"{place}.jpg"
        buffer = io.BytesIO()
        (image if place == 0 else image.resize((48, 32))).save(buffer, "PNG" if place == 0 else "JPEG")
        (tmp_path / name).write_bytes(buffer.getvalue())
        question = row["question"] if place == 0 else row["question"].upper()
        rows.append({"id": f"train{place}", "question": question, "images": [name], "answer": row["answer"]})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(made / "out", tmp_path / "out")
    path = settings(made, training=str(tmp_path / "train.jsonl")).rename(tmp_path / "with_training.yaml")
    settings(made)
    assert main(["evaluate", str(path), "--out", str(tmp_path / "out")]) == 0
    results = tmp_path / "out" / "results"
    found = {one["name"]: one["overlap"] for one in json.loads((results / EVALUATION).read_text())["benchmarks"]}
    assert found["MMMU"] == {"problems": 12, "near": 2, "identical": 1, "images": 0}
    assert found["DynaMath"]["near"] == found["WeMath"]["near"] == 0
    listed = [json.loads(line) for line in (results / OVERLAP).read_text().splitlines()]
    assert [(row["benchmark"], row["test"], row["training"]) for row in listed] == [
        ("MMMU", "validation_2", "train0"),
        ("MMMU", "validation_3", "train1"),
    ]
    assert "| MMMU | 12 | 2 | 1 | 0 | 16.7 |" in (results / "table.md").read_text()


def test_overlap_of_pairs_with_a_benchmark(made: Path, tmp_path: Path) -> None:
    """The command, from a folder of scored groups whose problems are the benchmark's own."""
    rewards = made / "out/policies/Beta-8B/WeMath/n6/critics/GoodPRM/rewards"
    tests = [made / "we.parquet", made / "DynaMath.tsv"]
    command = ["overlap", "--training", str(rewards), "--test", *map(str, tests), "--out", str(tmp_path / "out")]
    columns = [(one.problems, one.near) for one in counts_of(tmp_path / "out")] if main(command) == 0 else []
    assert columns == [(20, 20), (15, 0)]


def test_a_critic_that_lacks_scores_is_told_and_takes_no_other_cell(made: Path, tmp_path: Path) -> None:
    """A file with half of the scores: the rest ranks last and is counted."""
    (tmp_path / "half").mkdir()
    for path in made.glob("GoodPRM-*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        (tmp_path / "half" / path.name).write_text("".join(lines[::2]) + "not json\n")
    critics = {"Half": {"scores": f"{tmp_path}/half/GoodPRM-{{policy}}-{{benchmark}}.jsonl"}}
    path = settings(made, critics=critics).rename(tmp_path / "half.yaml")
    settings(made)
    shutil.copytree(made / "out", tmp_path / "out")
    assert main(["evaluate", str(path), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "results" / EVALUATION).read_text())
    assert {one["unscored"] for one in cells_of(found, critic="Half")} == {0.5}
    rated = tmp_path / "out/policies/Beta-8B/MMMU/n6/critics/Half/rewards"
    counts = manifest_of(rated)["counts"]
    assert counts["unscored"] == {"no score in the file": 36}
    assert sum(counts["bad_scores"].values()) == 1


def test_responses_to_other_problems_are_refused_by_name(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished folder of WeMath's responses in the place of MMMU's."""
    other = made / "out/policies/Beta-8B/WeMath/responses"
    path = settings(
        made,
        policies={"B": {"responses": {"MMMU": str(other)}}},
        benchmarks={"MMMU": {"problems": str(made / "MMMU_DEV_VAL.tsv")}},
        critics={},
    ).rename(tmp_path / "other.yaml")
    settings(made)
    assert main(["evaluate", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "is to a problem of MMMU: its first problem is '0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"polices": {}}, "'polices' is unknown; did you mean 'policies'?"),
        ({"policies": {}}, "policies: expected a mapping of a name to its settings"),
        ({"policies": {"A": {}}}, "policies.A: expected either policy"),
        ({"policies": {"A": {"policy": "m", "responses": {"MMMU": "f"}}}}, "policies.A: expected either policy"),
        ({"policies": {"A": {"policy": "m", "problems": "p"}}}, "policies.A.problems is set by mpo evaluate"),
        ({"policies": {"A": {"policy": "m", "temprature": 1}}}, "policies.A.temprature is unknown; did you mean"),
        ({"policies": {"A": {"responses": {"MMMUU": "f"}}}}, "responses.MMMUU: no such benchmark in this file"),
        ({"policies": {"A b": {"policy": "m"}, "A-b": {"policy": "m"}}}, "one name as folders"),
        ({"benchmarks": {"Mine": {}}}, "benchmarks.Mine: expected problems"),
        ({"benchmarks": {"DynaMath": {}}}, "its file is https://opencompass"),
        ({"benchmarks": {"MMMU": {"metric": "worst"}}}, "benchmarks.MMMU.metric: unknown 'worst'"),
        ({"benchmarks": {"M": {"benchmark": "MMUM"}}}, "benchmarks.M.benchmark: unknown; did you mean 'MMMU'?"),
        ({"critics": {"C": {}}}, "critics.C: expected one of prm"),
        ({"critics": {"C": {"prm": "p", "vote": "majority"}}}, "critics.C: expected one of prm"),
        ({"critics": {"C": {"vote": "plurality"}}}, "critics.C.vote: expected majority"),
        ({"critics": {"C": {"prm": "p", "select": "best"}}}, "critics.C.select: unknown 'best'"),
        ({"critics": {"C": {"prm": "p", "aggregation": "sum"}}}, "critics.C.aggregation: expected one of mean"),
        ({"critics": {"C": {"scores": "f", "aggregation": "min"}}}, "C: expected one of prm"),
        ({"critics": {"C": {"judge_url": ["http://x/v1"]}}}, "needs both judge_url and judge_model"),
        ({"ns": [0, 2]}, "ns: expected numbers of responses from 1"),
        ({"ns": ["two"]}, "ns: expected a whole number"),
        ({"seed": 1.5}, "seed: expected a whole number"),
        ({"verify": {"verifier": "maths", "groups": "g"}}, "verify.groups is set by mpo evaluate"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = settings(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        Matrix(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_names_are_text_everywhere(made: Path, tmp_path: Path) -> None:
    """HTML, Markdown, LaTeX, a figure's mathematics, a spreadsheet's formula: none of them means anything in a name."""
    policy, critic = "<img src=x onerror=alert(1)> $x^2$ | 50% & _a_", "=SUM(A1) <script>alert(2)</script>"
    path = settings(
        made,
        ns=[1, 2],
        policies={policy: {"responses": {"MMMU": str(made / "Beta-8B-MMMU.jsonl")}}},
        benchmarks={"MMMU": {"problems": str(made / "MMMU_DEV_VAL.tsv")}},
        critics={critic: {"scores": str(made / "GoodPRM-Beta-8B-MMMU.jsonl")}},
    ).rename(tmp_path / "hostile.yaml")
    settings(made)
    assert main(["evaluate", str(path), "--out", str(tmp_path / "out")]) == 0
    results = tmp_path / "out" / "results"
    page = (results / PAGE).read_text()
    assert "<img src=x" not in page
    assert "<script>" not in page
    assert "&lt;img src=x" in page
    assert (results / "table.md").read_text().count("\\| 50% &") > 1
    assert r"\$x\textasciicircum{}2\$ | 50\% \& \_a\_" in (results / "table.tex").read_text()
    rows = list(csv.DictReader((results / "cells.csv").open()))
    assert {row["critic"] for row in rows if "SUM" in row["critic"]} == {f"'{critic}"}
    assert all(folder.name.isascii() for folder in (tmp_path / "out" / "policies").iterdir())
