"""The oldest torch that may be installed is the one that `make test-torch-min` installs and tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_lower_bound_of_torch_is_the_one_that_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = [line for line in project["dependencies"] if re.match(r"torch\b", line)]
    (tested,) = re.findall(r"'torch==([\d.]+)\.\*'", (ROOT / "Makefile").read_text())
    assert bound == f"torch>={tested}"
