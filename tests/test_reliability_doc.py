"""`docs/reliability.md` names tests: each of them exists, and each reliability test of the list has a row."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "reliability.md").read_text()


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", TEXT.replace("`tests/", "`"))
    assert len(named) > 80
    for file, test in named:
        path = ROOT / "tests" / file
        assert path.is_file(), file
        assert not test or re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE), f"{file}::{test}"


def test_the_list_is_complete() -> None:
    rows = re.findall(r"^\| ([PR]\d+) \|", TEXT, re.MULTILINE)
    assert rows == [*(f"P{i}" for i in range(1, 13)), *(f"R{i}" for i in range(1, 31))]
