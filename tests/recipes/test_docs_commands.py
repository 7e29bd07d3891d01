"""Every `mpo …` line of README, the docs, the settings files and the Makefile is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from recipes.cli import COMMANDS, _parsed

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "Makefile",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("recipes/configs/*.yaml")),
]
COMMAND = re.compile(r"^[\s#]*(?:\$\(BIN\)/)?mpo ((?:[a-z-]+)(?: [^\n]*?(?:\\\n[^\n]*?)*)?)$", re.MULTILINE)


def lines() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in COMMAND.finditer(text):
            line = match[1].replace("\\\n", " ").replace("$(SEEDS)", "0 1")
            if line.split()[0] in COMMANDS:
                found.append((page.name, re.sub(r"\s*#\s*$", "", line)))
    return found


LINES = lines()


def test_there_are_such_lines() -> None:
    assert len(LINES) > 25
    assert len({page for page, _ in LINES}) > 6


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page}: {line[:50]}" for page, line in LINES])
def test_it_is_taken(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that leaves something out (…) names known flags; any other is parsed as it stands."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.partition(" > ")[0], comments=True)
    if "…" not in line:
        _parsed(words)
        return
    module, _, config, *_ = COMMANDS[words[0]]
    known = {field.name for field in fields(getattr(import_module("recipes.config"), config))}
    named = {word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")}
    assert named <= known, f"{page}: {module} knows no {named - known}"
