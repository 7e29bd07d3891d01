"""Arms that end with GRPO: which policy each continues, and for how many steps.

An arm that continues a trained policy has that policy's responses behind it already: the samples that its pairs were
made of. GRPO from the first policy gets as many responses more, so that all these arms have generated equally many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpo.multimodal.errors import ConfigError
from recipes import config as stages
from recipes.loop.stages import lines_of

if TYPE_CHECKING:
    from recipes.loop.chains import Do
    from recipes.loop.settings import Settings
    from recipes.loop.start import Start

FIRST = "policy"
# arm → the arm whose policy it continues; the cascade MPO → GRPO is InternVL3.5's (arXiv 2508.18265) and
# Skywork R1V2's (arXiv 2504.16656)
REINFORCED = {"grpo": FIRST, "mpo_grpo": "mpo", "mpo_first_error_grpo": "mpo_first_error", "rft_grpo": "rft"}


def with_origins(arms: Sequence[str]) -> list[str]:
    """The arms, each after the one that it continues, which is trained as well.

    >>> with_origins(["rft", "mpo_grpo", "grpo"])
    ['rft', 'mpo', 'mpo_grpo', 'grpo']
    """
    chained = [name for arm in arms for name in (REINFORCED.get(arm, arm), arm) if name != FIRST]
    return list(dict.fromkeys(chained))


def check_reinforced(arms: Sequence[str], settings: Settings) -> None:
    """Refuse GRPO with the defaults of a large model.

    Raises:
        ConfigError: there is such an arm, and no section `train_grpo`.
    """
    asked = [arm for arm in arms if arm in REINFORCED]
    if asked and not settings.sections["train_grpo"]:
        raise ConfigError(
            f"{settings.path}: arm {asked[0]} needs a section train_grpo, e.g. train_grpo: {{max_steps: 100, "
            "batch_size: 64, learning_rate: 1.0e-6}; add it, or leave the arm out"
        )


def reinforce(
    do: Do, settings: Settings, start: Start, arm: str, model: Path, prm: Path, seed: int,
    out: Path, candidate: dict[str, Any],
) -> Path:  # fmt: skip
    """A policy that continues `model`, rewarded on the preference problems; development problems guard it."""
    given: dict[str, Any] = {"policy": model, "prm": prm, "guard": start.development, "out": out, "seed": seed}
    config = replace(settings.build("train_grpo", **given, **start.asking(start.preference)), **candidate)
    if REINFORCED[arm] == FIRST and not do.planning:
        config = replace(config, max_steps=config.max_steps + _steps_of_samples(settings, start, config))
    return do("train-grpo", config, f"{arm}{words_of(candidate, out, arm)}")


def words_of(candidate: Mapping[str, Any], out: Path, arm: str) -> str:
    """What an arm is trained with beside its section, in words.

    >>> words_of({"learning_rate": 0.1}, Path("run/rft"), "rft"), words_of({}, Path("run/tuning/rft/0"), "rft")
    (' with learning_rate 0.1', ', candidate 0')
    """
    changes = ", ".join(f"{name} {value}" for name, value in candidate.items())
    return f", candidate {out.name}" * (out.name != arm) + f" with {changes}" * bool(changes)


def _steps_of_samples(settings: Settings, start: Start, config: stages.TrainGRPOConfig) -> int:
    """Optimizer steps in which GRPO generates as many responses as pairs are made of."""
    responses = settings.preference_samples * (lines_of(start.preference) or 0)
    return ceil(responses * config.updates_per_generation / config.batch_size)
