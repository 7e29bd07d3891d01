"""`mpo import-responses`: responses made elsewhere are verified, scored, reranked and paired like our own samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.cli import main
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups
from tests.recipes.run_folders import write_stage
from tests.rewards.published_forms import encoded, in_base64, json_lines


def run(command: str, *words: Any) -> None:
    assert main([command, *map(str, words)]) == 0


def table(folder: Path) -> Path:
    """A benchmark as VLMEvalKit holds it."""
    rows = [
        "index\timage\tquestion\tA\tB\tanswer",
        f"1\t{in_base64()}\tWhich colour?\tred\tblue\tA",
        "2\t1\tAnd here?\tno\tyes\tB",
    ]
    (folder / "toy.tsv").write_text("\n".join(rows))
    return folder / "toy.tsv"


def predictions(path: Path, *said: str) -> Path:
    """As VLMEvalKit writes them, one file per run of the model."""
    asked = ("Which colour?", "And here?")
    rows = [f"{i}\t{asked[i - 1]}\tA\t{text}" for i, text in enumerate(said, start=1)]
    path.write_text("\n".join(["index\tquestion\tanswer\tprediction", *rows]))
    return path


def test_predictions_of_several_runs_become_samples(tmp_path: Path) -> None:
    """Ids, indexes and images survive; what cannot be joined is counted by its reason."""
    first = predictions(tmp_path / "run1.tsv", "The answer is A.", "The answer is A.")
    second = predictions(tmp_path / "run2.tsv", "The answer is B.", "Failed to obtain answer via API.")
    third = json_lines(
        tmp_path / "run3.jsonl",
        [
            {"index": 1, "responses": ["Answer: A", ""]},
            {"index": 2, "question": "Something else entirely", "response": "Answer: B"},
            {"index": 9, "response": "Answer: B"},
            {"index": 2, "response": "Answer: B", "sample_index": 4},
            {"index": 2, "response": "Answer: A", "sample_index": 4},
        ],
    )
    run("import-responses", first, second, third, "--problems", table(tmp_path), "--out", tmp_path / "samples")
    groups = read_groups(tmp_path / "samples")
    assert [(g.problem.id, len(g.problem.images), [r.completion.text for r in g.rollouts]) for g in groups] == [
        ("1", 1, ["The answer is A.", "The answer is B.", "Answer: A"]),
        ("2", 1, ["The answer is A.", "Answer: B"]),
    ]
    account = manifest_of(tmp_path / "samples")["counts"]
    assert (account["in"], account["out"]) == (10, 5)
    assert account["rejected"] == {
        **{"another question": 1, "empty response": 1, "index occurs twice": 1, "the server failed": 1},
        "unknown problem": 1,
    }
    run("verify", "--groups", tmp_path / "samples", "--out", tmp_path / "verified")
    verdicts = [[str(r.verdict) for r in g.rollouts] for g in read_groups(tmp_path / "verified")]
    assert verdicts == [["correct", "wrong", "correct"], ["wrong", "correct"]]
    run("pairs", "--groups", tmp_path / "verified", "--out", tmp_path / "pairs", "--rule", "correctness")
    assert manifest_of(tmp_path / "pairs")["counts"]["pairs"] == 3


def test_files_that_hold_their_questions_need_no_problems(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    rows = [
        {"id": "a", "question": "1 + 1?", "answer": 2, "image": "a.png", "responses": ["Final answer: 2"] * 2},
        {"id": "b", "question": "1 + 2?", "answer": 3, "image": "gone.png", "responses": ["Final answer: 2"] * 3},
    ]
    run("import-responses", json_lines(tmp_path / "a.jsonl", rows), "--out", tmp_path / "out")
    (group,) = read_groups(tmp_path / "out")
    assert (group.problem.answer, len(group.problem.images), len(group.rollouts)) == ("2", 1, 2)
    account = manifest_of(tmp_path / "out")["counts"]
    assert (account["in"], account["out"], account["rejected"]) == (5, 2, {"unreadable image": 3})
    run("import-responses", tmp_path / "a.jsonl", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": 1, "text": "?"}], "are of no known form of responses"),
        ([{"id": 1, "response": "2"}], "no column holds the question.*or give the problems with --problems"),
        ([{"id": 1, "question": "?", "response": ""}], "no response of .* can be used: .*'empty response': 1"),
    ],
)
def test_what_cannot_be_taken_in_is_one_line(rows: Any, said: str, tmp_path: Path, capsys: Any) -> None:
    import re

    path = json_lines(tmp_path / "a.jsonl", rows)
    assert main(["import-responses", str(path), "--out", str(tmp_path / "out")]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_rerank_prints_the_best_first(tmp_path: Path, capsys: Any) -> None:
    """By falling reward; a response without one is last; ids and indexes are those of the file."""
    rows = [{"id": "a", "question": "1 + 1?", "answer": 2, "responses": ["2", "3", "4"]}]
    run("import-responses", json_lines(tmp_path / "a.jsonl", rows), "--out", tmp_path / "samples")
    (group,) = read_groups(tmp_path / "samples")
    rewards = (0.25, None, 0.75)
    scored = [r.with_(reward=reward) for r, reward in zip(group.rollouts, rewards, strict=True)]
    made, problems = [type(group)(group.problem, tuple(scored))], tmp_path / "samples" / "problems.jsonl"
    folder = write_stage(tmp_path / "scored", made, problems, name="score")
    capsys.readouterr()
    run("rerank", folder, "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["problem_id"], line["rank"], line["index"], line["reward"]) for line in lines] == [
        ("a", 1, 2, 0.75),
        ("a", 2, 0, 0.25),
        ("a", 3, 1, None),
    ]
    run("rerank", folder, "--top", "1")
    assert capsys.readouterr().out.splitlines() == ["a: 1 + 1?", "    1.    0.7500  #2  4"]
    assert main(["rerank", str(tmp_path / "samples")]) == 2
    assert "has a reward; run `mpo score --groups" in capsys.readouterr().err
