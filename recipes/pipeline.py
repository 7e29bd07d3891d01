"""`mpo pipeline` and `mpo evidence`: the loop as one paragraph of stages.

The policy's own samples are verified and continued step by step, the counts train a process reward model, that
model picks chosen and rejected answers, MPO trains the policy on them, and the same model picks the best of N.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from mpo.multimodal.errors import ConfigError, StageError
from recipes import config as stages
from recipes.config import EvidenceArguments, PipelineArguments

if TYPE_CHECKING:
    from recipes.start import Start

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
WORLDS = (
    "world",
    "easy_vqa",
    "own",
)  # sections of which a file has one: where the problems and the first policy come from
BASELINE_SAMPLES = 4  # a problem, for arms of which only pass@1 is shown
# arm: (w_p, w_q, w_g), trained on the same pairs with the same steps
ARMS: dict[str, tuple[float, float, float]] = {
    "mpo": (0.8, 0.2, 1.0),
    "dpo": (1.0, 0.0, 0.0),
    "rft": (0.0, 0.0, 1.0),
    "dpo_lm": (1.0, 0.0, 1.0),
}


class Settings:
    """The YAML file of a run: one section a stage, each key a field of that stage's config, paths left out.

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
        if unknown := sorted(set(loaded) - set(SECTIONS)):
            raise ConfigError(f"{path}: unknown section {unknown[0]!r}; expected some of {', '.join(SECTIONS)}")
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


def pipeline(arguments: PipelineArguments) -> Path:
    """Run every stage that is not yet complete, then summarise and write the page."""
    settings = Settings(arguments.settings)
    if unknown := sorted(set(arguments.arms) - set(ARMS)):
        raise ConfigError(f"unknown arm {unknown[0]!r}: expected some of {', '.join(ARMS)}")
    loop(settings, arguments.run_dir, arguments.seed, arguments.arms)
    return _publish([arguments.run_dir], arguments.run_dir)


def loop(settings: Settings, run: Path, seed: int, arms: list[str]) -> None:
    """One seed, from the first policy to Best-of-N on held-out problems."""
    from recipes.start import start_of
    from recipes.train_mpo import train_mpo

    start = start_of(settings, run, seed)
    policy, prm = start.policy, start.prm or _trained_prm(settings, start, run, seed)
    made = paired(settings, run / "preference", run / "pairs", policy, start.preference, prm, seed)

    trained = {"policy": policy}
    for arm in arms:
        preference_weight, quality_weight, generation_weight = ARMS[arm]
        weights = {
            "preference_weight": preference_weight,
            "quality_weight": quality_weight,
            "generation_weight": generation_weight,
        }
        trained[arm] = train_mpo(
            settings.build("train_mpo", policy=policy, pairs=made, out=run / arm, seed=seed, **weights)
        )
    for arm, model in trained.items():
        answer(settings, run / "test" / arm, model, start.test, prm, seed, rerank=arm in ("policy", "mpo"))


def paired(settings: Settings, folder: Path, out: Path, policy: Path, problems: Path, prm: Path, seed: int) -> Path:
    """A policy's own samples of the preference problems, in `folder`, and the pairs that they give, in `out`."""
    from recipes.build_pairs import pairs

    pairing = settings.build("pairs", groups=folder / "scored", out=out)
    drawing = settings.build("preference_sample", policy=policy, problems=problems, out=folder / "samples", seed=seed)
    scored(settings, folder, drawing, prm, visual_dependence=pairing.min_visual_dependence is not None)
    return pairs(pairing)


def scored(settings: Settings, folder: Path, drawing: stages.SampleConfig, prm: Path, **flags: bool) -> Path:
    """Samples, verified and scored: three folders in `folder`; `flags` are of the scoring."""
    from recipes.sample import sample
    from recipes.score import score
    from recipes.verify import verify

    verified = verify(settings.build("verify", groups=sample(drawing), out=folder / "verified"))
    return score(settings.build("score", groups=verified, prm=prm, out=folder / "scored", **flags))


def _trained_prm(settings: Settings, start: Start, run: Path, seed: int) -> Path:
    """A PRM from Monte-Carlo labels of the policy's own samples."""
    from recipes.label_steps import label
    from recipes.sample import sample
    from recipes.train_prm import train_prm
    from recipes.verify import verify

    drawn = sample(
        settings.build(
            "prm_sample", policy=start.policy, problems=start.prm_problems, out=run / "prm_samples", seed=seed
        )
    )
    verified = verify(settings.build("verify", groups=drawn, out=run / "prm_verified"))
    labelled = label(
        settings.build("label_steps", groups=verified, policy=start.policy, out=run / "prm_labelled", seed=seed)
    )
    return train_prm(settings.build("train_prm", groups=labelled, model=start.prm_model, out=run / "prm", seed=seed))


def answer(settings: Settings, out: Path, model: Path, problems: Path, prm: Path, seed: int, *, rerank: bool) -> None:
    """Greedy, sampled and blind answers of one policy; with `rerank`, the PRM's choice among the samples."""
    from recipes.best_of_n import best_of_n
    from recipes.sample import sample
    from recipes.verify import verify

    greedy = settings.build("test_sample", policy=model, problems=problems, out=out / "greedy_samples", seed=seed)
    greedy = replace(greedy, temperature=0.0, num_samples=1)
    swapped = replace(greedy, out=out / "swapped_samples", swap_images=True)
    verify(settings.build("verify", groups=sample(greedy), out=out / "greedy"))
    verify(settings.build("verify", groups=sample(swapped), out=out / "swapped"))
    drawn = settings.build("test_sample", policy=model, problems=problems, out=out / "samples", seed=seed)
    if rerank:
        groups = scored(settings, out, drawn, prm, visual_dependence=True)
        best_of_n(settings.build("best_of_n", groups=groups, out=out / "best_of_n"))
    else:
        drawn = replace(drawn, num_samples=min(drawn.num_samples, BASELINE_SAMPLES))
        verify(settings.build("verify", groups=sample(drawn), out=out / "verified"))


def evidence(arguments: EvidenceArguments) -> Path:
    """Every arm, every seed, one table; seeds run in their own processes, `jobs` at a time."""
    Settings(arguments.settings)
    if arguments.jobs < 1 or len(set(arguments.seeds)) < len(arguments.seeds):
        raise ConfigError(f"expected jobs >= 1 and different seeds, got {arguments.jobs} and {arguments.seeds}")
    runs = [arguments.run_dir / f"seed{seed}" for seed in arguments.seeds]
    commands = [_command(arguments.settings, run, seed) for seed, run in zip(arguments.seeds, runs, strict=True)]
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        codes = list(pool.map(lambda command: _run_alone(command, threads), commands))
    if any(codes):
        failed = [str(run) for run, code in zip(runs, codes, strict=True) if code]
        raise StageError(f"these runs failed, see above; run the same command again to go on: {', '.join(failed)}")
    return _publish(runs, arguments.run_dir)


def _publish(runs: list[Path], folder: Path) -> Path:
    """`summary.json`, the page, and the tables in the terminal."""
    from recipes.report import report
    from recipes.summary import write_summary
    from recipes.tables import print_summary

    summary = write_summary(runs, folder / "summary.json")
    page = report(folder)
    print_summary(json.loads(summary.read_text()))
    print(f"report: {page}")
    return page


def _command(settings: Path, run: Path, seed: int) -> list[str]:
    flags = {"--settings": settings, "--run_dir": run, "--seed": seed}
    words = [str(word) for pair in flags.items() for word in pair]
    return [sys.executable, "-m", "recipes.cli", "pipeline", *words, "--arms", *ARMS]


def _run_alone(command: list[str], threads: int) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command, env=environment, check=False).returncode
