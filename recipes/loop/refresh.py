"""On-policy refresh of `mpo rounds`: the PRM continues on the responses of the policy that came out.

A PRM learned from one policy's responses, and MPO makes a policy that writes others: with 32 samples the PRM's lead
over the majority is gone after it (docs/log.md). So after each round that is kept, some of the new policy's responses
get step labels by that policy's own continuations, at most `refresh_budget` of them, and the PRM continues from its
weights on these labels, on those of earlier refreshes and on the given `prm_labels`.

After the guard and not before it: the guard asks whether the policy has learned the mistakes of the PRM that chose its
pairs, so it asks that PRM. For the next round the kept policy's guard responses are scored again, and both sides of
that comparison are of one PRM. The responses that are labelled are those that the next round's pairs are made of, so
none is sampled for the labels alone; after the last round they are in the folder of a round that a later run may add.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.files import read_json
from recipes.config import LabelConfig, RoundsConfig, TrainPRMConfig
from recipes.loop.chains import PREFERENCE, Do, preference_drawing, verified
from recipes.loop.settings import Settings
from recipes.stage.exclusive import labels_for_a_refresh, refuse_exclusive
from recipes.stage.folder import RESULTS, manifest_of
from recipes.stage.groups import read_groups
from recipes.stage.label_rule import label_rule
from recipes.stage.numbers import percent, signed
from rewards.choosing.round_guard import RoundMeasure, measure_round
from rewards.prm.formats import find_format
from rewards.prm.labelling.source import monte_carlo_source
from rewards.prm.model_prm import has_head, load_format
from rewards.statistics import paired_difference
from rewards.types import Completion, Rollout


@dataclass(frozen=True)
class Critic:
    """A PRM, and the folders of labels that it has learned from as far as they are known."""

    prm: Path
    labels: tuple[Path, ...] = ()


def check_refresh(settings: Settings, config: RoundsConfig) -> None:
    """Refuse a refresh that cannot work, before anything runs.

    Raises:
        ConfigError: `prm_labels` without a budget; a budget that does not suffice for one step; labels that the
            training cannot use; a PRM on a server, or of another format than `train_prm` or `refresh_prm` asks for.
        StageError: the PRM has no `prm.json`.
    """
    labels_for_a_refresh(config)
    if not config.refresh_budget:
        return
    folder, where = config.out, settings.path
    training = _training(settings, folder, folder, Critic(config.prm, tuple(config.prm_labels)), 0)
    labelling = _labelling(settings, config, folder, folder, config.policy, 0)
    scoring = settings.build("score", groups=folder, prm=config.prm, out=folder)
    for told in (training, labelling):
        refuse_exclusive(told)
    if scoring.base_url:
        raise ConfigError(
            f"{where}: score.base_url: a PRM behind a server cannot continue its training; expected one in this "
            "process with refresh_budget, so leave base_url and model out, or leave refresh_budget out"
        )
    if config.refresh_budget < labelling.num_continuations:
        raise ConfigError(
            f"refresh_budget={config.refresh_budget} has no room for one step: expected at least "
            f"label_steps.num_continuations, {labelling.num_continuations}, and many times that for labels worth "
            "training on"
        )
    if labelling.responses < 2:
        raise ConfigError(f"{where}: label_steps.responses: expected at least 2 with refresh_budget, got 1")
    if labelling.choose == "uncertain":
        raise ConfigError(
            f"{where}: label_steps.choose: the refresh labels responses before they are scored, so none has a spread; "
            "expected another rule than uncertain"
        )
    contract = load_format(config.prm)
    if find_format(training.prm_format) != contract:
        raise ConfigError(
            f"{where}: train_prm.prm_format is {training.prm_format!r}, and {config.prm} is a PRM of the format "
            f"{contract.name!r}, in which the refresh has to train it; name that one"
        )
    if has_head(config.prm) and not training.concentration_head:
        raise ConfigError(
            f"{where}: {config.prm} has a concentration head, which the refresh would lose: add "
            "refresh_prm: {loss: binomial, concentration_head: true}"
        )
    source = monte_carlo_source(labelling.budget, labelling.num_continuations)
    label_rule(training).check_sources([Rollout(Completion(""), label_source=source)])


def refresh(
    do: Do, settings: Settings, config: RoundsConfig, policy: Path, critic: Critic, number: int
) -> tuple[Critic, RoundMeasure, dict[str, Any]]:
    """After round `number`: label the kept policy's next samples, continue the PRM, and measure it on the guard.

    Returns:
        The refreshed PRM; the kept policy under it, for the next comparison; and what `rounds.json` tells.
    """
    guard, folder = config.out / f"round{number}" / "guard", config.out / f"round{number + 1}"
    seed, asked = config.seed + number + 1, {"problems": config.problems, "image_root": config.image_root}
    groups = verified(
        do, settings, folder, preference_drawing(settings, folder, policy, seed, **asked), f"{PREFERENCE}, refresh"
    )
    labelling = _labelling(settings, config, groups, folder / "labelled", policy, seed)
    labelled = do("label-steps", labelling, f"at most {config.refresh_budget} continuations by the new policy")
    training = _training(settings, labelled, folder / "prm", critic, seed)
    prm = do("train-prm", training, "on these steps, from its weights")
    scoring = settings.build(
        "score", groups=guard / "verified", prm=prm, out=folder / "guard_before" / "scored", visual_dependence=False
    )
    scored = do("score", scoring, f"responses to the guard's problems, after round{number}, again")
    account = manifest_of(labelled)["counts"]
    told = {
        "after_round": number,
        "prm": os.path.relpath(prm, config.out),
        "budget": config.refresh_budget,
        "continuations": account["drawn"]["continuations"],
        "tokens": account["drawn"]["tokens"],
        "responses": account["out"],
        "seconds": round(manifest_of(labelled)["seconds"] + manifest_of(prm)["seconds"], 2),
        "earlier_problems": manifest_of(prm)["counts"].get("earlier problems", 0),
        "before": _worth(do, settings, guard / "scored", guard / "best_of_n"),
        "after": _worth(do, settings, scored, folder / "guard_before" / "best_of_n"),
    }
    return Critic(prm, (*critic.labels, labelled)), measure_round(read_groups(scored)), told


def in_words(told: Mapping[str, Any]) -> str:
    """One refresh for the terminal: what it spent, and what the PRM was worth before and after."""
    before, after = told["before"], told["after"]
    auc = " → ".join(
        percent(one["within_problem_auc"]["mean"]) if one["within_problem_auc"] else "–" for one in (before, after)
    )
    return (
        f"PRM refreshed after round {told['after_round']}, {spent(told)} continuations for {told['responses']} "
        f"responses; on the guard's responses best@{after['k']} of the PRM − majority {signed(before['lead'])} → "
        f"{signed(after['lead'])}, AUC within a problem {auc}"
    )


def spent(told: Mapping[str, Any]) -> str:
    """Continuations that were drawn, of those that were allowed."""
    return f"{told['continuations']} of {told['budget']}"


def _labelling(
    settings: Settings, config: RoundsConfig, groups: Path, out: Path, policy: Path, seed: int
) -> LabelConfig:
    made: LabelConfig = settings.build("label_steps", groups=groups, out=out, policy=policy, seed=seed)
    return replace(made, max_continuations=config.refresh_budget)


def _training(settings: Settings, groups: Path, out: Path, critic: Critic, seed: int) -> TrainPRMConfig:
    made: TrainPRMConfig = settings.build(
        "refresh_prm", groups=groups, model=critic.prm, out=out, seed=seed, earlier=list(critic.labels)
    )
    return made


def _worth(do: Do, settings: Settings, scored: Path, out: Path) -> dict[str, Any]:
    """Lead over the majority at the largest k, and the AUC of right responses over wrong ones of the same problem."""
    samples = settings.build("test_sample", problems=scored, out=out).num_samples
    measuring = settings.build("best_of_n", groups=scored, out=out)
    ks = [k for k in measuring.ks if k <= samples] or [samples]
    measuring = replace(measuring, ks=ks, scored=True)
    found = read_json(do("best-of-n", measuring, "every selector on the guard's responses") / RESULTS)
    values, k = found["values"], str(max(ks))
    lead = paired_difference(values["prm"][k], values["majority"][k])
    return {"k": max(ks), "lead": asdict(lead), "within_problem_auc": found["within_problem_auc"]}
