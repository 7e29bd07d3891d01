"""The README's figure is drawn from a run's own folders, is well-formed, and treats what a model wrote as text."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

from tests.recipes.run_folders import make_run

ROOT = Path(__file__).resolve().parents[1]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loop_figure", ROOT / "docs" / "loop_figure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_it_shows_a_pair_and_a_choice_of_the_run(script: ModuleType, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", seed=0)
    svg = script.figure(run)
    shown = texts(svg)
    assert "What is the sum?" in shown
    assert any(line.startswith("chosen ✓ verified right") for line in shown)
    assert any(line.startswith("rejected ✗ verified wrong") for line in shown)
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}image"))) == 2
    assert shown.count("✓") >= 1  # the choice that is shown is right
    assert svg == script.figure(run)


def test_what_a_model_wrote_stays_text(script: ModuleType, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", seed=0, question='</text><script>alert("x")</script> & how many?')
    svg = script.figure(run)
    assert not list(ElementTree.fromstring(svg).iter(f"{SVG}script"))
    assert any("<script>" in line for line in texts(svg))


def test_the_committed_figure_loads_nothing_from_elsewhere() -> None:
    tree = ElementTree.parse(ROOT / "docs" / "loop.svg").getroot()
    links = [value for node in tree.iter() for name, value in node.attrib.items() if name.endswith("href")]
    assert links
    assert all(link.startswith("data:image/") for link in links)
