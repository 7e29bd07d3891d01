"""`mpo prm-eval` with a tiny real PRM: all three kinds of labels, the split, the canaries, the account of every row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.loading import load_model, load_processor
from recipes.answering.prm_eval import RESULTS, SCORES, blanked, prm_eval
from recipes.cli import main
from recipes.config import PRMEvalConfig
from recipes.stage.folder import manifest_of, open_stage
from recipes.stage.groups import write_groups, write_problems
from recipes.worlds.digits.truth import step_truth
from recipes.worlds.digits.world import QUESTIONS, scenes, solution, to_problem
from rewards.prm.formats import VISUALPRM
from rewards.prm.model_prm import ModelPRM, save_format
from rewards.steps import split_on_blank_lines
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, RolloutGroup
from tests.model_server import ModelServer
from tests.served_model import ServedModel

SOURCES = ("MMMU", "MathVision")


@pytest.fixture(scope="module")
def prm_folder(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("prm") / "prm"
    shutil.copytree(policy_folder, folder)
    save_format(folder, VISUALPRM)
    return folder


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 problems of two sources, one of them with two images, one with 14 steps; and three bad rows."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        names = [f"images/{i}-{j}.png" for j in range(2 if i == 7 else 1)]
        for name in names:
            Image.fromarray(rng.integers(0, 255, (32, 64, 3), dtype=np.uint8)).save(folder / name)
        signs = [int(sign) for sign in rng.choice([1, -1, 0], size=14 if i == 5 else 3)]
        signs[0] = 1 if i % 2 else -1
        rows.append(
            {
                "image": names,
                "question": f"<image>\nWhat is shown in image {i}?",
                "answer": "3",
                "response": {"steps": [f"Red {j}" for j in range(len(signs))], "process_correctness": signs},
                "policy_model": "toy",
                "data_source": SOURCES[i % 4 == 0],
            }
        )
    bad = [
        rows[0] | {"image": ["images/none.png"]},
        rows[0] | {"response": {"steps": ["a"], "process_correctness": [1, 1]}},
        rows[1] | {"response": {"steps": ["a<|im_end|>"], "process_correctness": [1]}},
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *bad]))
    return folder / "test.jsonl"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, prm_folder: Path, benchmark: Path) -> Path:
    return prm_eval(PRMEvalConfig(prm_folder, benchmark, tmp_path_factory.mktemp("eval") / "out", batch_rows=8))


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RESULTS).read_text())


def scores_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SCORES).read_text().splitlines()]


def test_every_row_is_accounted_for(done: Path) -> None:
    counts = manifest_of(done)["counts"]
    assert (counts["in"], counts["out"]) == (43, 40)
    assert counts["rejected"] == {
        "an image is missing": 1,
        "steps and process_correctness differ in number": 1,
        "control token": 1,
    }
    assert counts["development"] + counts["test"] == 40
    assert counts["merged"] == results_of(done)["merged"] == 1
    assert len(scores_of(done)) == 40


def test_the_numbers_are_those_of_the_scores(done: Path) -> None:
    """Recomputed with scikit-learn from scores.jsonl; the threshold sees the development rows alone."""
    metrics = pytest.importorskip("sklearn.metrics")
    found, rows = results_of(done), scores_of(done)

    def macro(split: str, threshold: float, source: str | None = None) -> float:
        pairs = [
            (label, score >= threshold)
            for row in rows
            if row["split"] == split and source in (None, row["source"])
            for label, score in zip(row["labels"], row["scores"], strict=True)
            if label is not None
        ]
        truth, said = zip(*pairs, strict=True)
        return metrics.f1_score(truth, said, average="macro")

    chosen = found["threshold"]["chosen"]
    assert found["threshold"]["development_value"] == pytest.approx(macro("development", chosen))
    tried = np.linspace(0, 1, 401)
    assert macro("development", chosen) >= max(macro("development", t) for t in tried) - 1e-9
    for key, threshold in (("test", chosen), ("test_at_fixed", 0.5)):
        per_source = {source: macro("test", threshold, source) for source in SOURCES}
        assert found[key]["macro_f1"]["pooled"]["mean"] == pytest.approx(macro("test", threshold))
        assert found[key]["macro_f1"]["mean_of_sources"]["mean"] == pytest.approx(sum(per_source.values()) / 2)
        for source, row in found[key]["per_source"].items():
            assert row["macro_f1"]["mean"] == pytest.approx(per_source[source])
    assert found["test"]["macro_f1"]["pooled"]["low"] < found["test"]["macro_f1"]["pooled"]["high"]


def test_pictures_reach_the_prm(done: Path, prm_folder: Path, benchmark: Path) -> None:
    """The random PRM's scores depend a little on the image, so the drops are not exactly 0; and the scores of the row
    with two images are those of a problem with two images."""
    found = results_of(done)
    tests = found["test"]["responses"]
    assert found["blank"]["responses"] == tests
    assert found["blank"]["score"]["mean"] != 0.0 != found["swapped"]["score"]["mean"]
    two = next(row for row in scores_of(done) if row["id"] == "row 8")
    images = tuple(benchmark.parent / f"images/7-{j}.png" for j in range(2))
    prm = ModelPRM.load(prm_folder)
    problem = Problem("p", "What is shown in image 7?", images)
    assert two["scores"] == pytest.approx(prm.score(problem, ["Red 0\n\nRed 1\n\nRed 2"])[0].values, abs=1e-5)
    assert blanked(problem).images[0].getpixel((0, 0)) == (255, 255, 255)


def test_a_second_run_does_nothing_and_other_settings_are_refused(
    done: Path, prm_folder: Path, benchmark: Path
) -> None:
    before = (done / RESULTS).stat().st_mtime_ns
    prm_eval(PRMEvalConfig(prm_folder, benchmark, done, batch_rows=8))
    assert (done / RESULTS).stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="was made with other seed"):
        prm_eval(PRMEvalConfig(prm_folder, benchmark, done, batch_rows=8, seed=1))


def processbench(folder: Path, name: str, numbers: range) -> Path:
    rows = [
        {
            "id": f"gsm8k-{i}",
            "generator": "toy",
            "problem": f"What is {i} + 1?",
            "steps": [f"{i} + 1", f"= {i + 1}", "Done"],
            "final_answer_correct": i % 2 == 0,
            "label": i % 4 - 1,
        }
        for i in numbers
    ]
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def test_processbench_with_a_development_file_of_other_problems(
    tmp_path: Path, prm_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = processbench(tmp_path, "gsm8k.json", range(20))
    development = processbench(tmp_path, "dev.json", range(16, 40))  # four of them are test problems
    arguments = ["prm-eval", "--kind", "processbench", "--prm", str(prm_folder), "--benchmark", str(test)]
    assert main([*arguments, "--development", str(development), "--out", str(tmp_path / "out")]) == 0
    counts, found = manifest_of(tmp_path / "out")["counts"], results_of(tmp_path / "out")
    assert counts["rejected"] == {"development problem that is in the benchmark too": 4}
    assert (counts["in"], counts["development"], counts["test"]) == (44, 20, 20)
    assert found["threshold"]["objective"] == "first_error_f1"
    assert list(found["test"]["per_source"]) == ["gsm8k"]
    assert found["blank"] is found["swapped"] is None  # no images to take away
    screen = capsys.readouterr().out
    assert "first-error F1, pooled" in screen
    assert "AUC within a problem" in screen


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit problems with a right answer and one whose first digit is misread, with the world's own labels."""
    import random

    folder, rng, groups = tmp_path_factory.mktemp("groups"), random.Random(0), []
    (folder / "images").mkdir()
    for i, scene in enumerate(scenes("test", 24, 5)):
        problem = to_problem(scene, f"p{i}")
        path = folder / "images" / f"{i}.png"
        problem.images[0].save(path)
        problem = Problem(problem.id, problem.question, (path,), problem.answer, problem.meta)
        digits = dict(problem.meta["digits"])
        first = next(iter(digits))
        texts = [solution(problem.meta["kind"], digits, rng)]
        texts.append(solution(problem.meta["kind"], digits | {first: (digits[first] + 1) % 10}, rng))
        rollouts = []
        for text in texts:
            truth = step_truth(problem, [step.text for step in split_on_blank_lines(text)])
            rollouts.append(Rollout(Completion(text), mc=tuple(MonteCarloCount(int(t), 1) for t in truth)))
        groups.append(RolloutGroup(problem, (*rollouts, Rollout(Completion("Final answer: 1")))))
    write_problems(folder / "problems.jsonl", [group.problem for group in groups])
    stage = open_stage("label-exact", PRMEvalConfig(folder, folder, folder / "exact"), inputs=[])
    write_groups(stage.out, groups)
    return stage.finish({"problems": str(folder / "problems.jsonl")})


def test_labelled_groups_of_the_digits_world(tmp_path: Path, prm_folder: Path, labelled: Path) -> None:
    common = {"kind": "groups", "source_key": "kind", "development_share": 0.4}
    whole = prm_eval(PRMEvalConfig(prm_folder, labelled, tmp_path / "whole", **common))
    counts, found = manifest_of(whole)["counts"], results_of(whole)
    assert (counts["in"], counts["out"], counts["rejected"]) == (72, 48, {"no step labels": 24})
    assert set(found["test"]["per_source"]) <= set(QUESTIONS)
    assert found["swapped"]["responses"] > 0
    rows = scores_of(whole)
    assert {row["split"] for row in rows if row["problem_id"] == "p0"} != {"development", "test"}
    assert all(row["labels"] == [True] * len(row["labels"]) for row in rows if row["id"].endswith("/0"))
    assert all(False in row["labels"] for row in rows if row["id"].endswith("/1"))

    until = prm_eval(PRMEvalConfig(prm_folder, labelled, tmp_path / "until", until_first_error=True, **common))
    assert results_of(until)["test"]["unlabelled_steps"] > 0 == found["test"]["unlabelled_steps"]
    assert all(row["labels"].count(False) <= 1 for row in scores_of(until))


def test_refusals(tmp_path: Path, prm_folder: Path, benchmark: Path, labelled: Path) -> None:
    def config(**changes: Any) -> PRMEvalConfig:
        return PRMEvalConfig(**{"prm": prm_folder, "benchmark": benchmark, "out": tmp_path / "out", **changes})

    with pytest.raises(ConfigError, match=r"unknown kind 'prmbench'.*processbench"):
        prm_eval(config(kind="prmbench"))
    for bad in ({"development_share": 1.0}, {"fixed_threshold": 0.0}, {"batch_rows": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            prm_eval(config(**bad))
    test = processbench(tmp_path, "few.json", range(20))
    with pytest.raises(DataError, match=r"0 development and 20 test responses.*development_share"):
        prm_eval(config(kind="processbench", benchmark=test, development_share=1e-9))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_prm_on_a_server_gives_the_same_scores(done: Path, tmp_path: Path, prm_folder: Path, benchmark: Path) -> None:
    served = ServedModel(load_model(prm_folder).eval(), load_processor(prm_folder))
    with ModelServer(reply=served, tokenize=served.tokenize, models=("prm",)) as server:
        canaries = {"blank_images": False, "swap_images": False}
        there = {"base_url": [server.base_url], "model": "prm"}
        prm_eval(PRMEvalConfig(prm_folder, benchmark, tmp_path / "out", **there, **canaries))
        assert server.requests
    for ours, theirs in zip(scores_of(done), scores_of(tmp_path / "out"), strict=True):
        assert theirs["scores"] == pytest.approx(ours["scores"], abs=1e-4)
