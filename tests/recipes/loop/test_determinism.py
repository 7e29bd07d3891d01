"""Exports depend on data and settings alone: not on hash seeds, clock, time zone or the order of problems."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.config import PairsConfig
from recipes.data.pairs import pairs
from recipes.stage.kept_calls import CALLS
from rewards.interchange.trl_rows import read_trl_parquet
from rewards.pairing.limits import Limits
from rewards.pairing.rules import RULES, build_pairs
from tests.recipes.run_folders import make_groups, make_problems, score_all, write_stage

ROOT = Path(__file__).resolve().parents[3]
NO_EXPORTS = ("manifest.json", CALLS, f"{CALLS}.lock")  # how long a stage took; when a store was written

STAGES = """
import sys, time
real = time.time
time.time = lambda: real() + float(sys.argv[1])
from recipes.cli import main
given, out = sys.argv[2:]
codes = [main(["verify", "--groups", given, "--out", out + "/verified", "--workers", sys.argv[1][:1]])]
for rule in ("correctness", "correctness_and_prm", "prm_margin"):
    flags = ["--groups", given, "--out", f"{out}/{rule}", "--rule", rule, "--mmpr", "true"]
    codes.append(main(["pairs", *flags]))
codes.append(main(["convert-data", "mmpr", "trl", "--source", f"{out}/correctness/mmpr", "--out", f"{out}/back"]))
sys.exit(any(codes))
"""


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    rng = random.Random(0)
    problems = make_problems(tmp_path / "world", "p", 6, rng)
    return write_stage(tmp_path / "scored", score_all(make_groups(problems, 6, 0.5, rng), rng), problems, name="score")


@pytest.mark.timeout(500)
def test_exports_do_not_know_when_and_where_they_were_made(scored: Path, tmp_path: Path) -> None:
    """Other hash seeds, other worker numbers, thirty years and a day's time zones apart: the same bytes."""
    files = {}
    for name, (hash_seed, zone, clock) in {
        "a": ("0", "Pacific/Kiritimati", "1"),
        "b": ("4294967295", "America/St_Johns", "2e9"),
    }.items():
        out = tmp_path / name
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed, "TZ": zone}
        command = [sys.executable, "-c", STAGES, clock, str(scored), str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        files[name] = {
            str(path.relative_to(out)): path.read_bytes()
            for path in sorted(out.rglob("*"))
            if path.is_file() and path.name not in NO_EXPORTS
        }
    assert len(files["a"]) > 20
    moved = {str(tmp_path / "a").encode(): b"", str(tmp_path / "b").encode(): b""}
    for path, content in files["a"].items():
        other = files["b"][path]
        for folder, nothing in moved.items():  # cards and reports may name their inputs
            content, other = content.replace(folder, nothing), other.replace(folder, nothing)
        assert content == other, path
    assert files["a"].keys() == files["b"].keys()


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_order_of_problems_changes_no_pair(scored: Path, tmp_path: Path, rule: str) -> None:
    """Also where a rule draws: the draw is the problem's own."""
    from recipes.stage.groups import read_groups

    groups = read_groups(scored)
    first, _ = build_pairs(groups, rule=rule, limits=Limits(max_pairs=2))
    random.Random(1).shuffle(groups)
    second, _ = build_pairs(groups, rule=rule, limits=Limits(max_pairs=2))
    assert [pair.problem.id for pair in first] != [pair.problem.id for pair in second] or not first
    by_id = [sorted(found, key=lambda pair: (pair.problem.id, pair.meta["chosen_index"], pair.meta["rejected_index"]))
             for found in (first, second)]  # fmt: skip
    assert by_id[0] == by_id[1]


def test_twice_is_the_same(scored: Path, tmp_path: Path) -> None:
    made = [pairs(PairsConfig(scored, tmp_path / name)) / "pairs.parquet" for name in ("once", "again")]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert len(read_trl_parquet(made[0])) > 6
