"""The package easy-vqa through the whole loop at minute size; what its problems and demonstrations hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mpo.multimodal.errors import ConfigError, DataError
from recipes.cli import main
from recipes.config import EasyVQAConfig
from recipes.loop.settings import Settings
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups, read_problems
from recipes.worlds.easy_vqa import Question, compose, facts_of, load_package, split_by_picture
from rewards.interchange.trl_rows import read_trl_parquet
from rewards.types import Verdict
from rewards.verifying.verification import exact_verifier

CONFIG = Path(__file__).parents[3] / "recipes" / "configs" / "easy_vqa.yaml"
SMALLER = {
    "easy_vqa": {"num_warm_start": 60, "num_prm": 12, "num_preference": 16, "num_development": 4, "num_test": 8},
    "warm_start": {"max_steps": 80},
    "prm_sample": {"num_samples": 6},
    "label_steps": {"num_continuations": 2},
    "train_prm": {"max_steps": 6},
    "train_mpo": {"max_steps": 4, "batch_size": 4},
    "test_sample": {"num_samples": 4},
    "best_of_n": {"ks": [1, 2, 4]},
}


@pytest.fixture(scope="module")
def package():
    return load_package()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The shipped settings with fewer problems and steps."""
    folder = tmp_path_factory.mktemp("easy_vqa")
    shipped = yaml.safe_load(CONFIG.read_text())
    assert set(SMALLER) <= set(shipped)
    settings = {name: section | SMALLER.get(name, {}) for name, section in shipped.items()}
    (folder / "small.yaml").write_text(yaml.safe_dump(settings))
    assert main(["pipeline", "--settings", str(folder / "small.yaml"), "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


def test_every_stage_of_the_loop_balances_its_account(run):
    counts = [manifest_of(path.parent)["counts"] for path in run.rglob("manifest.json")]
    balanced = [c for c in counts if "in" in c]
    assert len(balanced) > 12
    assert all(c["in"] == c["out"] + sum(c["rejected"].values()) for c in balanced)
    assert len(read_trl_parquet(run / "pairs" / "pairs.parquet")) == manifest_of(run / "pairs")["counts"]["pairs"] > 0
    assert (run / "mpo" / "model.safetensors").read_bytes() != (run / "policy" / "model.safetensors").read_bytes()
    assert "<html" in (run / "report.html").read_text()[:500]
    scored = read_groups(run / "test" / "mpo" / "scored")
    assert [len(group.rollouts) for group in scored] == [4] * 8
    assert all(rollout.verdict is not None for group in scored for rollout in group.rollouts)


def test_demonstrations_have_two_steps_and_the_packages_answer(run):
    groups = read_groups(run / "world")
    assert len(groups) == 60
    for group in groups:
        for rollout in group.rollouts:
            assert len(rollout.completion.text.split("\n\n")) == 3
            assert exact_verifier(group.problem, rollout.completion.text) is Verdict.CORRECT


def test_no_picture_in_two_splits_and_the_test_split_is_the_packages(run, package):
    questions, _ = package
    whole = {name: {(q.split, q.image) for q in pool} for name, pool in split_by_picture(questions).items()}
    assert sum(map(len, whole.values())) == len(set().union(*whole.values())) == 5000
    assert {split for split, _ in whole["test"]} == {"test"}
    assert len(whole["test"]) == 1000
    pictures = {name: {image for p in read_problems(run / "world" / f"{name}.jsonl").values() for image in p.images}
                for name in whole}  # fmt: skip
    assert sum(map(len, pictures.values())) == len(set().union(*pictures.values()))


def test_every_fact_of_the_package_is_consistent(package):
    """Of 4,000 train images 3,542 have both facts in their questions; none has two shapes or two colors."""
    questions, pictures = package
    facts = {key: facts_of(rows) for key, rows in questions.items()}
    assert sum(len(rows) for rows in questions.values()) == 48_248
    assert (len(pictures["train"]), len(pictures["test"])) == (4000, 1000)
    assert sum(len(found) == 2 for (split, _), found in facts.items() if split == "train") == 3542


def test_contradicting_answers_are_an_error():
    rows = [Question("what shape is present?", answer, "train", 7) for answer in ("circle", "triangle")]
    with pytest.raises(DataError, match="image train 7"):
        facts_of(rows)


def test_test_questions_do_not_change_with_the_seed(tmp_path):
    sizes = {f"num_{name}": 5 for name in ("warm_start", "prm", "preference", "development", "test")}
    first, second = (compose(EasyVQAConfig(tmp_path / str(seed), seed=seed, **sizes)) for seed in (0, 1))
    same = {name: (first / name).read_text() == (second / name).read_text() for name in ("test.jsonl", "prm.jsonl")}
    assert same == {"test.jsonl": True, "prm.jsonl": False}


def test_a_file_with_two_worlds_is_refused(tmp_path):
    (tmp_path / "both.yaml").write_text("world: {num_prm: 3}\neasy_vqa: {num_prm: 3}\n")
    with pytest.raises(ConfigError, match="world and easy_vqa"):
        Settings(tmp_path / "both.yaml")
