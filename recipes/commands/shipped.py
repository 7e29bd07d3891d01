"""The settings files that come with the package: found by name from any folder, listed, and printed to be changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpo.multimodal.errors import ConfigError, StageError
from recipes.commands.words import did_you_mean

if TYPE_CHECKING:
    from recipes.config import SettingsConfig

PACKAGE = Path(__file__).resolve().parents[1]


def find_settings(name: str | Path) -> Path:
    """The user's file, if there is one of that name, else the shipped one, with or without `.yaml`.

    Raises:
        StageError: neither.

    Example:
        >>> find_settings("own_data").name
        'own_data.yaml'
    """
    for path in (Path(name), Path(f"{name}.yaml")):
        if path.is_file():
            return path
    shipped = {file.stem: file for file in _files()}
    stem = str(name).removesuffix(".yaml")
    if stem in shipped:
        return shipped[stem]
    known = did_you_mean(Path(stem).name, shipped, else_list=False)
    raise StageError(f"no settings at {name}: expected a YAML file, or a name that `mpo settings` lists{known}")


def read_mapping(name: str | Path) -> tuple[Path, dict[str, Any]]:
    """The settings file of that name, and its keys and values.

    Raises:
        ConfigError: it is no YAML, or no mapping of words.
        StageError: there is no such file.
    """
    import yaml

    path = find_settings(name)
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded):
        raise ConfigError(f"{path}: expected a mapping of keys and values, got {type(loaded).__name__}")
    return path, dict(loaded)


def show(config: SettingsConfig) -> None:
    """Print the file that is named; without a name, the list."""
    if config.name is not None:
        path = find_settings(config.name)
        try:
            print(path.read_text(encoding="utf-8"), end="")
        except ValueError as error:
            raise ConfigError(f"{path}: not a text file in UTF-8: {error}") from error
        return
    files = _files()
    width = max(len(file.stem) for file in files)
    for heading, kind in (
        ("for `mpo pipeline` and `mpo evidence`: a section per stage", "loop"),
        ("for `mpo evaluate`: policies, benchmarks and critics", "matrix"),
        ("for one command, as in `mpo train-mpo NAME --policy …`", "command"),
        ("for `accelerate launch --config_file FILE`", "accelerate"),
    ):
        print(f"{heading}:")
        for file in files:
            if _kind(file) == kind:
                print(f"  {file.stem:<{width}}  {first_sentence(file)}")
        print()
    print("`mpo settings NAME > my.yaml` writes one out. A file of yours wins over a shipped one of its name.")


def first_sentence(file: Path) -> str:
    """What the comment at the top of a settings file says first."""
    top = re.match(r"(?:#.*\n)+", file.read_text(encoding="utf-8"))
    text = " ".join(re.sub(r"(?m)^#\s?", "", top[0]).split()) if top else ""
    return re.split(r"(?<=[\w`)])\.(?=\s|$)", text)[0]


def _files() -> list[Path]:
    return sorted(file for folder in ("configs", "accelerate") for file in (PACKAGE / folder).glob("*.yaml"))


def _kind(file: Path) -> str:
    if file.parent.name == "accelerate":
        return "accelerate"
    text = file.read_text(encoding="utf-8")
    kinds = {"loop": r"(?m)^test_sample:", "matrix": r"(?m)^policies:"}
    return next((kind for kind, sign in kinds.items() if re.search(sign, text)), "command")
