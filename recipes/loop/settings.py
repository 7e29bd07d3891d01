"""The settings file of a run: one YAML section per stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError
from recipes import config as stages
from recipes.commands.parse import build
from recipes.commands.shipped import read_mapping
from recipes.commands.words import did_you_mean
from recipes.loop.reinforced import REINFORCED

SECTIONS: dict[str, type] = {
    "world": stages.WorldConfig,
    "easy_vqa": stages.EasyVQAConfig,
    "own": stages.OwnConfig,
    "warm_start": stages.WarmStartConfig,
    "prm_sample": stages.SampleConfig,
    "label_steps": stages.LabelConfig,
    "deepen": stages.DeepenConfig,
    "train_prm": stages.TrainPRMConfig,
    "refresh_prm": stages.TrainPRMConfig,
    "preference_sample": stages.SampleConfig,
    "continue": stages.ContinueConfig,
    "pairs": stages.PairsConfig,
    "train_mpo": stages.TrainMPOConfig,
    "train_grpo": stages.TrainGRPOConfig,
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
        StageError: no such file, nor a shipped one of that name.
    """

    def __init__(self, path: Path) -> None:
        path, loaded = read_mapping(path)
        self.path = path
        if unknown := sorted(set(loaded) - {*SECTIONS, "arms"}):
            raise ConfigError(
                f"{path}: unknown section {unknown[0]!r}{did_you_mean(str(unknown[0]), [*SECTIONS, 'arms'])}"
            )
        if len(worlds := [name for name in WORLDS if name in loaded]) > 1:
            raise ConfigError(f"{path}: sections {' and '.join(worlds)}; expected one of them")
        self.world = worlds[0] if worlds else WORLDS[0]
        self.sections = {name: loaded.get(name) or {} for name in SECTIONS}
        for name, values in self.sections.items():
            if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
                raise ConfigError(f"{path}: {name}: expected a mapping of keys and values, got {values!r:.60}")
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
        if set_twice := sorted(set(self.sections[section]) & set(given)):
            raise ConfigError(f"{self.path}: {section}.{set_twice[0]} is set by the loop; remove it")
        values = {**self._shared(section), **self.sections[section], **given}
        return build(SECTIONS[section], values, where=lambda key: f"{self.path}: {section}.{key}")

    @property
    def preference_samples(self) -> int:
        """Responses to each problem that pairs are made of."""
        number: int = self.sections["preference_sample"].get("num_samples", stages.SampleConfig.num_samples)
        return number

    def _shared(self, section: str) -> dict[str, Any]:
        """What one section says for another: the format of the steps that are labelled and trained on, the prompt of
        the policy that is sampled and rewarded, and how a PRM is trained that continues, but for a length of its own.
        """
        length = {"max_steps", "epochs"}
        own_length = length if length & set(self.sections[section]) else set()
        fields, source = {
            "label_steps": (("prm_format",), "train_prm"),
            "train_grpo": (("prompt", "system"), "preference_sample"),
            "refresh_prm": (set(self.sections["train_prm"]) - own_length, "train_prm"),
        }.get(section, ((), section))
        said = self.sections[source]
        return {name: said[name] for name in fields if said.get(name) is not None}

    def _candidates(self, arms: Any) -> dict[str, list[dict[str, Any]]]:
        """Arm → the changes of `train_mpo` or `train_grpo` that may be tried for it (`recipes/loop/arms.py`)."""
        expected = "a mapping of an arm to a list of settings of train_mpo, e.g. rft: [{learning_rate: 0.0002}]"
        if not isinstance(arms, Mapping):
            raise ConfigError(f"{self.path}: arms: expected {expected}, got {type(arms).__name__}")
        for arm, candidates in arms.items():
            if not isinstance(candidates, list) or not all(isinstance(one, Mapping) for one in candidates):
                raise ConfigError(f"{self.path}: arms.{arm}: expected {expected}, got {candidates!r:.80}")
            for candidate in candidates:
                self._check_candidate(arm, candidate)
        return {arm: [dict(candidate) for candidate in candidates] for arm, candidates in arms.items()}

    def _check_candidate(self, arm: str, candidate: Mapping[str, Any]) -> None:
        section, paths = (
            ("train_grpo", ("problems", "prm", "guard")) if arm in REINFORCED else ("train_mpo", ("pairs",))
        )
        given = dict.fromkeys(("policy", "out", *paths), Path())
        if set_twice := sorted({*given, "seed"} & set(candidate)):
            raise ConfigError(f"{self.path}: arms.{arm}: {set_twice[0]} is set by the loop; remove it")
        build(SECTIONS[section], {**given, **candidate}, where=lambda key: f"{self.path}: arms.{arm}.{key}")
