"""`mpo pairs` with every rule, its report and card, and `mpo convert-data` there and back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.images import load_image
from recipes.cli import main
from recipes.config import ConvertDataConfig, PairsConfig
from recipes.data.convert_data import convert_data
from recipes.data.pairs import pairs
from recipes.stage.folder import manifest_of
from recipes.stage.groups import problems_of, read_groups, read_problems
from rewards.interchange.mmpr import read_mmpr
from rewards.interchange.trl_rows import from_trl_row, read_trl_parquet, to_trl_row, trl_features
from rewards.types import Completion, MonteCarloCount, PreferencePair, Problem, Rollout, RolloutGroup
from tests.recipes.run_folders import C, W, make_groups, make_problems, score_all, without_picture, write_stage


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    rng = random.Random(0)
    problems = make_problems(tmp_path / "world", "preference", 8, rng)
    groups = score_all(make_groups(problems, 6, 0.5, rng), rng)
    return write_stage(tmp_path / "scored", groups, problems, name="score")


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def front_matter(folder: Path) -> tuple[dict, str]:
    _, head, body = (folder / "README.md").read_text().split("---\n", maxsplit=2)
    return yaml.safe_load(head), body


@pytest.mark.parametrize("rule", ["correctness", "correctness_and_prm", "prm_margin"])
def test_rules_balance_and_tell(scored: Path, tmp_path: Path, rule: str) -> None:
    out = pairs(PairsConfig(scored, tmp_path / "out", rule=rule))
    report, counts = report_of(out), manifest_of(out)["counts"]
    assert counts["in"] == 8 == counts["out"] + sum(counts["rejected"].values())
    assert len(read_trl_parquet(out / "pairs.parquet")) == counts["pairs"] == report["pairs"] > 0
    assert report["yields"][rule] == {"pairs": report["pairs"], "problems_with_pairs": counts["out"]}
    assert set(report["yields"]) == {"correctness", "correctness_and_prm", "prm_margin", "step_prefix"}
    assert set(report["blind_intervals"]) == {"longest", "shortest", "first"}


def test_options_reach_the_rule(scored: Path, tmp_path: Path) -> None:
    wide = report_of(pairs(PairsConfig(scored, tmp_path / "a", rule="prm_margin", margin=0.05)))
    narrow = report_of(pairs(PairsConfig(scored, tmp_path / "b", rule="prm_margin", margin=0.4)))
    assert narrow["pairs"] < wide["pairs"]
    free = report_of(pairs(PairsConfig(scored, tmp_path / "c", rule="correctness")))
    alike = report_of(pairs(PairsConfig(scored, tmp_path / "d", rule="correctness", max_length_ratio=1.0)))
    assert alike["pairs"] < free["pairs"]
    assert alike["blind_rulers"]["longest"] == 0.5  # every pair is a tie
    strict = report_of(pairs(PairsConfig(scored, tmp_path / "e", rule="correctness", format_negatives=False)))
    assert set(strict["sources"]) == {"correctness"}


def test_chosen_responses_that_need_the_picture(scored: Path, tmp_path: Path) -> None:
    """Half of the problems are scored as well without their images: no pair of those, and the report says why."""
    with pytest.raises(DataError, match=r"needs scores without the image.*mpo score --visual_dependence true"):
        pairs(PairsConfig(scored, tmp_path / "early", min_visual_dependence=0.1))
    groups = [without_picture(group, 0.3 * (i % 2)) for i, group in enumerate(read_groups(scored))]
    looked = write_stage(tmp_path / "looked", groups, problems_of(scored), name="score")
    whole = report_of(pairs(PairsConfig(looked, tmp_path / "whole")))
    out = pairs(PairsConfig(looked, tmp_path / "out", min_visual_dependence=0.1))
    report, ids = report_of(out), {group.problem.id for group in groups[1::2]}
    assert 0 < report["pairs"] < whole["pairs"]
    assert {row["problem_id"] for row in read_trl_parquet(out / "pairs.parquet")} <= ids
    assert report["rejected_rollouts"]["low_visual_dependence"] > 0
    assert report["mean_dependence"]["chosen"] > whole["mean_dependence"]["chosen"]
    assert report["yields"]["correctness_and_prm"]["pairs"] == report["pairs"]
    assert "| mean visual dependence | 0." in front_matter(out)[1]


def test_step_prefix_from_the_command_line(tmp_path: Path) -> None:
    problems = make_problems(tmp_path / "world", "p", 1, random.Random(0))
    (problem,) = read_problems(problems).values()
    counts = (MonteCarloCount(4, 4), MonteCarloCount(0, 4))
    wrong = Rollout(Completion("See 3\n\nFinal answer: 2"), W, mc=counts)
    right = Rollout(Completion("See 3\n\nFinal answer: 10"), C)
    given = write_stage(tmp_path / "labelled", [RolloutGroup(problem, (wrong, right))], problems)
    arguments = ["pairs", "--groups", str(given), "--out", str(tmp_path / "out"), "--rule", "step_prefix"]
    assert main(arguments) == 0
    assert report_of(tmp_path / "out")["sources"] == {"step_prefix": 1}


def test_dropout_ntp_with_a_real_policy(tmp_path: Path, policy_folder: Path) -> None:
    """Unverifiable questions: no reference answer, no verdict."""
    problems = make_problems(tmp_path / "world", "p", 2, random.Random(0))
    asked = [Problem(p.id, p.question, p.images) for p in read_problems(problems).values()]
    texts = ["See Red 3\n\nNow 3\n\nFinal answer: 3", "See Blue 4\n\nFinal answer: 4"]
    groups = [RolloutGroup(p, tuple(Rollout(Completion(text)) for text in texts)) for p in asked]
    given = write_stage(tmp_path / "sampled", groups, problems, name="sample")
    rows = problems.read_text().replace('"answer": "1', '"answer_was": "1')
    problems.write_text(rows)
    config = PairsConfig(
        given, tmp_path / "out", rule="dropout_ntp", policy=policy_folder, max_new_tokens=6, max_pairs=1
    )
    out = pairs(config)
    assert report_of(out)["sources"] == {"dropout_ntp": 2}
    for row in read_trl_parquet(out / "pairs.parquet"):
        chosen, rejected = (row[side][0]["content"][0]["text"] for side in ("chosen", "rejected"))
        assert chosen in texts
        assert chosen[:5] == rejected[:5]
        assert len(row["images"]) == 1


def test_wrong_settings_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError, match=r"unknown pairing rule 'best'.*dropout_ntp"):
        pairs(PairsConfig(missing, tmp_path / "out", rule="best"))
    with pytest.raises(ConfigError, match="needs the policy"):
        pairs(PairsConfig(missing, tmp_path / "out", rule="dropout_ntp"))
    with pytest.raises(ConfigError, match="max_pairs must be at least 1"):
        pairs(PairsConfig(missing, tmp_path / "out", max_pairs=0))
    with pytest.raises(ConfigError, match="takes no min_visual_dependence"):
        pairs(PairsConfig(missing, tmp_path / "out", rule="dropout_ntp", policy=tmp_path, min_visual_dependence=0.1))
    with pytest.raises(ConfigError, match="the other rules take no policy"):
        pairs(PairsConfig(missing, tmp_path / "out", policy=tmp_path))


def test_the_card(scored: Path, tmp_path: Path) -> None:
    out = pairs(PairsConfig(scored, tmp_path / "out", mmpr=True))
    head, body = front_matter(out)
    number = report_of(out)["pairs"]
    assert head["size_categories"] == ["n<1K"]
    assert head["configs"] == [{"config_name": "default", "data_files": "pairs.parquet"}]
    assert f"{number} pairs of responses" in body
    assert "| problems in | 8 |" in body
    assert "| pick the longest |" in body
    assert "| correctness_and_prm |" in body
    assert "- pairs: " in body
    assert "- score: " in body  # the stage before it
    assert str(tmp_path) not in body
    head, body = front_matter(out / "mmpr")
    assert "configs" not in head
    assert f"{number} pairs of responses" in body


def test_there_and_back(scored: Path, tmp_path: Path) -> None:
    made = pairs(PairsConfig(scored, tmp_path / "pairs", mmpr=True))
    mmpr = convert_data(ConvertDataConfig("trl", "mmpr", made / "pairs.parquet", tmp_path / "mmpr"))
    back = convert_data(ConvertDataConfig("mmpr", "trl", mmpr, tmp_path / "back"))
    before, after = (read_trl_parquet(folder / "pairs.parquet") for folder in (made, back))
    assert [dict(row, images=None) for row in after] == [dict(row, images=None) for row in before]
    for old, new in zip(before, after, strict=True):
        assert [load_image(i).tobytes() for i in old["images"]] == [load_image(i).tobytes() for i in new["images"]]
    counts = manifest_of(back)["counts"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (len(before), len(before), {})
    assert "convert-data" in front_matter(back)[1]
    answers = {problem.id: problem.answer for problem in read_problems(problems_of(scored)).values()}
    for pair in read_mmpr(made / "mmpr", on_reject=lambda *row: pytest.fail(str(row))):
        assert pair.problem.answer == answers[pair.problem.id]


def test_rows_that_cannot_be_converted_are_quarantined(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = to_trl_row(PreferencePair(Problem("good", "q"), Completion("a"), Completion("b"), "r"))
    turns = good | {"problem_id": "turns", "prompt": [*good["prompt"], *good["prompt"]]}
    secret = tmp_path / "secret.png"
    secret.write_text("token=hunter2")
    path = good | {"problem_id": "path", "images": [{"bytes": None, "path": str(secret)}]}
    path["prompt"] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}]
    equal = good | {"problem_id": "equal", "rejected": good["chosen"]}
    claims = to_trl_row(PreferencePair(Problem("claims", "q"), Completion("<image>"), Completion("b"), "r"))
    table = pa.Table.from_pylist([good, turns, path, equal, claims], schema=trl_features().arrow_schema)
    pq.write_table(table, tmp_path / "foreign.parquet")
    paths = ["--source", str(tmp_path / "foreign.parquet"), "--out", str(tmp_path / "out")]
    assert main(["convert-data", "trl", "mmpr", *paths]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in rows] == [
        ("foreign.parquet:1", "not a pair"),
        ("foreign.parquet:2", "unreadable image"),
        ("foreign.parquet:3", "not a pair"),
    ]
    counts = manifest_of(tmp_path / "out")["counts"]
    assert (counts["in"], counts["out"]) == (5, 1)
    assert counts["rejected"] == {"image placeholder in a text": 1, "not a pair": 2, "unreadable image": 1}
    exported = "".join(p.read_text(errors="replace") for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert "hunter2" not in exported


def test_what_cannot_be_converted_is_refused_with_what_can(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for source, target in (("trl", "visualprm"), ("groups", "mmpr"), ("trl", "trl"), ("csv", "trl")):
        with pytest.raises(ConfigError, match=rf"convert '{source}' to '{target}'; possible: trl to mmpr, mmpr to trl"):
            convert_data(ConvertDataConfig(source, target, tmp_path, tmp_path / "out"))
    with pytest.raises(ConfigError, match="image_root applies to visualprm only"):
        convert_data(ConvertDataConfig("trl", "mmpr", tmp_path, tmp_path / "out", image_root=tmp_path))
    with pytest.raises(ConfigError, match=r"pairs\.parquet is not a file"):
        convert_data(ConvertDataConfig("trl", "mmpr", tmp_path, tmp_path / "out"))
    (tmp_path / "meta.json").write_text('{"set": {"annotation": "rows.jsonl"}}')
    with pytest.raises(DataError, match=r"no row of .* could be converted: {'not a pair of MMPR': 1}"):
        convert_data(ConvertDataConfig("mmpr", "trl", tmp_path, tmp_path / "out"))


def test_a_row_with_more_than_a_pair_holds_is_refused() -> None:
    good = to_trl_row(PreferencePair(Problem("p", "q"), Completion("a"), Completion("b"), "r"))
    assert from_trl_row(good) == PreferencePair(Problem("p", "q"), Completion("a"), Completion("b"), "r")
    text = {"type": "text", "text": "q"}
    for prompt, said in [
        ([], r"turns \[\]; expected one of the user"),
        ([{"role": "system", "content": [text]}], r"turns \[\]; expected one of the user"),
        ([{"role": "system", "content": [text]}] * 2, r"turns \['system'\]"),
        ([{"role": "user", "content": [text, text]}], r"expected images, and a text before, between or after them"),
        ([{"role": "user", "content": [text, {"type": "image"}]}], r"1 image placeholders for 0 images"),
        ([{"role": "user", "content": [{"type": "image"}, text]}], r"1 image placeholders for 0 images"),
    ]:
        with pytest.raises(DataError, match=said):
            from_trl_row(good | {"prompt": prompt})
    with pytest.raises(DataError, match="chosen holds an image"):
        from_trl_row(good | {"chosen": [{"role": "assistant", "content": [{"type": "image"}, text]}]})
