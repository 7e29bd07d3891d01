"""What a newcomer meets: few names that type checkers see, a whole wheel, hidden packages named."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mpo
import rewards

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("package", [mpo, rewards], ids=["mpo", "rewards"])
def test_names_are_few_and_static(package: object) -> None:
    """What `__getattr__` finds is what a type checker reads, name for name and module for module."""
    home = package._HOME  # type: ignore[attr-defined]
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))  # type: ignore[attr-defined]
    (guarded,) = [n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    static = {
        alias.asname: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert static == home
    assert len(home) <= 45
    assert set(home) | {"__version__"} <= set(dir(package))
    for name in home:
        assert getattr(package, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'; it has "):
        _ = package.Nothing  # type: ignore[attr-defined]


def test_versions_agree() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert mpo.__version__ == rewards.__version__
    assert mpo.__version__ in (project["version"], "unknown")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_file_of_the_users_that_hides_a_package_is_named(tmp_path: Path) -> None:
    """Python alone would say "'rewards' is not a package", or blame a file of ours."""
    (tmp_path / "rewards.py").write_text("own = 1\n")
    (tmp_path / "script.py").write_text("import mpo\nfrom mpo import RewardShift\nfrom rewards.types import Problem\n")
    done = run(tmp_path, "script.py")
    assert done.returncode == 1  # the last line; MPO alone works beside such a file
    assert f"`import rewards` gives {tmp_path}/rewards.py, which hides the package" in done.stderr

    (tmp_path / "rewards.py").rename(tmp_path / "mpo.py")
    done = run(tmp_path, "-c", "import rewards")
    assert done.stderr.splitlines()[-1].endswith("gives " + f"{tmp_path}/mpo.py, which hides it: rename it")

    done = run(tmp_path, "-P", "-W", "error", "-c", "import mpo, rewards")
    assert (done.returncode, done.stderr) == (0, "")


def test_without_an_extra_the_extra_is_named(tmp_path: Path) -> None:
    """What a bare wheel lacks: `openai` for servers, scikit-learn for the digits."""
    code = "import sys; sys.modules[{!r}] = None; "
    done = run(tmp_path, "-c", code.format("openai") + "from rewards import OpenAIGenerator")
    assert "ImportError: rewards.OpenAIGenerator needs the extra: pip install -e '.[server]'" in done.stderr
    world = "from recipes.cli import main; sys.exit(main(['world', '--out', 'w']))"
    done = run(tmp_path, "-c", code.format("sklearn.datasets") + world)
    assert (done.returncode, done.stderr.count("mpo: ")) == (2, 1), done.stderr
    assert "the digits need the extra: pip install -e '.[digits]'" in done.stderr


def test_a_wheel_is_whole(tmp_path: Path) -> None:
    """Everything that is read at run time is inside: templates, settings, accelerate's files, `py.typed`."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel without a network")
    source = tmp_path / "source"  # setuptools writes into the tree that it builds
    for name in ("mpo", "rewards", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(ROOT))
        for package in ("mpo", "rewards", "recipes")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= inside, sorted(expected - inside)
    assert {"mpo/py.typed", "rewards/py.typed", "recipes/py.typed", "recipes/configs/own_data.yaml"} <= inside
    assert not [name for name in inside if name.startswith(("tests", "benchmarks", "examples"))]
    metadata = zipfile.ZipFile(wheel).read(f"mpo_prm-{wheel.name.split('-')[1]}.dist-info/METADATA").decode()
    assert "Classifier: Typing :: Typed" in metadata
    assert "Keywords: " in metadata
