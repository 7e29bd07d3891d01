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
    "continue": stages.ContinueConfig,
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
            loaded = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from error
        if not isinstance(loaded, Mapping):
            raise ConfigError(f"{path}: expected a mapping of sections, got {type(loaded).__name__}")
        if unknown := sorted(set(loaded) - {*SECTIONS, "arms"}):
            raise ConfigError(f"{path}: unknown section {unknown[0]!r}; expected some of {', '.join(SECTIONS)}, arms")
        if len(worlds := [name for name in WORLDS if name in loaded]) > 1:
            raise ConfigError(f"{path}: sections {' and '.join(worlds)}; expected one of them")
        self.world = worlds[0] if worlds else WORLDS[0]
        self.sections = {name: loaded.get(name) or {} for name in SECTIONS}
        for name, config_class in SECTIONS.items():
            if name == "own":  # has paths of the user's, none of the loop's
                if self.world == name:
                    self.build(name)
                continue
            required = [f.name for f in fields(config_class) if f.default is MISSING and f.default_factory is MISSING]
            self.build(name, **dict.fromkeys(required, Path()))  # the loop sets them; here only the keys are checked
        self.arms = self._candidates(loaded.get("arms") or {})

    def build(self, section: str, **given: Any) -> Any:
        """The section's stage config; `given` are the paths and seeds that the loop sets."""
        config_class = SECTIONS[section]
        if set_twice := sorted(set(self.sections[section]) & set(given)):
            raise ConfigError(f"{self.path}: {section}.{set_twice[0]} is set by the loop; remove it")
        return self._checked(section, config_class, {**self.sections[section], **given})

    def _candidates(self, arms: Any) -> dict[str, list[dict[str, Any]]]:
        """Arm → the changes of `train_mpo` that may be tried for it (`recipes/loop/arms.py`)."""
        expected = "a mapping of an arm to a list of settings of train_mpo, e.g. rft: [{learning_rate: 0.0002}]"
        if not isinstance(arms, Mapping):
            raise ConfigError(f"{self.path}: arms: expected {expected}, got {type(arms).__name__}")
        for arm, candidates in arms.items():
            if not isinstance(candidates, list) or not all(isinstance(one, Mapping) for one in candidates):
                raise ConfigError(f"{self.path}: arms.{arm}: expected {expected}, got {candidates!r:.80}")
            for candidate in candidates:
                paths = dict.fromkeys(("policy", "pairs", "out"), Path())
                if set_twice := sorted({*paths, "seed"} & set(candidate)):
                    raise ConfigError(f"{self.path}: arms.{arm}: {set_twice[0]} is set by the loop; remove it")
                self._checked(f"arms.{arm}", stages.TrainMPOConfig, {**paths, **candidate})
        return {arm: [dict(candidate) for candidate in candidates] for arm, candidates in arms.items()}

    def _checked(self, section: str, config_class: type, values: Mapping[str, Any]) -> Any:
        try:
            return TypeAdapter(with_config(ConfigDict(extra="forbid"))(config_class)).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join([section, *map(str, first["loc"])])
            known = ", ".join(f.name for f in fields(config_class))
            raise ConfigError(f"{self.path}: {key}: {first['msg']}; known keys of {section}: {known}") from error
