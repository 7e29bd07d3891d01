"""The settings file of a run: one YAML section per stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from mpo.multimodal.errors import ConfigError, StageError
from recipes import config as stages

SECTIONS: dict[str, type] = {
    "world": stages.WorldConfig,
    "easy_vqa": stages.EasyVQAConfig,
    "own": stages.OwnConfig,
    "warm_start": stages.WarmStartConfig,
    "prm_sample": stages.SampleConfig,
    "label_steps": stages.LabelConfig,
    "deepen": stages.DeepenConfig,
    "train_prm": stages.TrainPRMConfig,
    "preference_sample": stages.SampleConfig,
    "pairs": stages.PairsConfig,
    "train_mpo": stages.TrainMPOConfig,
    "test_sample": stages.SampleConfig,
    "verify": stages.VerifyConfig,
    "score": stages.ScoreConfig,
    "best_of_n": stages.BestOfNConfig,
}


# sections of which a file has one: where the problems and the first policy come from
WORLDS = ("world", "easy_vqa", "own")


class Settings:
    """The YAML file of a run: one section per stage, each key a field of that stage's config, paths left out.

    Raises:
        ConfigError: no mapping, an unknown section or key, or a value of the wrong type, all named.
        StageError: no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise StageError(f"no settings at {path}: expected a YAML file such as recipes/configs/digits_demo.yaml")
        try:
            loaded = yaml.safe_load(path.read_bytes())
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from error
        if not isinstance(loaded, Mapping):
            raise ConfigError(f"{path}: expected a mapping of sections, got {type(loaded).__name__}")
        if unknown := sorted(map(str, set(loaded) - set(SECTIONS))):
            raise ConfigError(f"{path}: unknown section {unknown[0]!r}; expected some of {', '.join(SECTIONS)}")
        if len(worlds := [name for name in WORLDS if name in loaded]) > 1:
            raise ConfigError(f"{path}: sections {' and '.join(worlds)}; expected one of them")
        self.world = worlds[0] if worlds else WORLDS[0]
        self.sections = {name: loaded.get(name) or {} for name in SECTIONS}
        for name, section in self.sections.items():
            if not isinstance(section, Mapping) or not all(isinstance(key, str) for key in section):
                raise ConfigError(f"{path}: {name}: expected keys and values, got {section!r:.80}")
        for name, config_class in SECTIONS.items():
            if name == "own":  # has paths of the user's, none of the loop's
                if self.world == name:
                    self.build(name)
                continue
            required = [f.name for f in fields(config_class) if f.default is MISSING and f.default_factory is MISSING]
            self.build(name, **dict.fromkeys(required, Path()))  # the loop sets them; here only the keys are checked

    def build(self, section: str, **given: Any) -> Any:
        """The section's stage config; `given` are the paths and seeds that the loop sets."""
        config_class = SECTIONS[section]
        if set_twice := sorted(set(self.sections[section]) & set(given)):
            raise ConfigError(f"{self.path}: {section}.{set_twice[0]} is set by the loop; remove it")
        values = {**self.sections[section], **given}
        try:
            return TypeAdapter(with_config(ConfigDict(extra="forbid"))(config_class)).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join([section, *map(str, first["loc"])])
            known = ", ".join(f.name for f in fields(config_class))
            raise ConfigError(f"{self.path}: {key}: {first['msg']}; known keys of {section}: {known}") from error
