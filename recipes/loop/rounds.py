"""`mpo rounds`: sample → verify → score → pairs → MPO, and again from the policy that came out.

Each round trains on pairs of its own policy's samples, with that policy as the reference. After each comes the guard:
samples of held-out problems, judged by the verifier (gold) and by the PRM. If the accuracy falls while the PRM's mean
rises, the round is not kept and no other follows (`rewards/choosing/round_guard.py`). With `refresh_budget`, the PRM
continues on the samples of each policy that is kept (`refresh.py`). Every stage is a folder below `out`, so a killed
run continues where it was. A round of the digits world takes about 4 minutes on 2 CPU cores.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.files import write_atomic
from recipes.commands.shipped import find_settings
from recipes.config import RoundsConfig
from recipes.loop.chains import Do, paired, scored
from recipes.loop.refresh import Critic, check_refresh, in_words, refresh, spent
from recipes.loop.settings import Settings
from recipes.loop.stages import Stages
from recipes.stage.folder import manifest_of, open_stage
from recipes.stage.groups import read_groups
from recipes.stage.held_out import check_held_out
from recipes.stage.numbers import percent, rich_table, short, signed
from recipes.stage.problem_source import SOURCE, problem_files
from rewards.choosing.round_guard import RoundChange, RoundMeasure, compare_rounds, measure_round

RESULTS = "rounds.json"


def rounds(config: RoundsConfig) -> Path:
    """Run up to `config.rounds` rounds; `rounds.json` has every round's numbers and names the policy and the PRM that
    are kept.

    Raises:
        ConfigError: fewer than one round, settings that the loop sets itself, a guard that is trained on, or a refresh
            that cannot work.
    """
    if config.rounds < 1:
        raise ConfigError(f"expected --rounds >= 1, got {config.rounds}")
    config = replace(config, settings=find_settings(config.settings))
    settings = Settings(config.settings)
    check_refresh(settings, config)
    files, root = problem_files(
        {"problems": config.problems, "guard": config.guard},
        config.out / SOURCE,
        columns=config.columns,
        image_root=config.image_root,
    )
    config = replace(config, problems=files["problems"], guard=files["guard"], image_root=root)
    names = ("--guard", "--problems")
    check_held_out(config.guard, config.problems, names=names, run=config.out, image_root=root)
    inputs = [config.settings, config.policy, config.prm, config.problems, config.guard, *config.prm_labels]
    stage = open_stage("rounds", config, inputs=inputs, grows=("rounds",))
    if stage.complete:
        return stage.out
    do = Stages()  # how many rounds there will be, the guard decides
    kept, critic = config.policy, Critic(config.prm, tuple(config.prm_labels))
    measured = _measure(do, settings, config, kept, critic.prm, stage.out / "round0")
    rows = [_row(0, measured, None, 0, kept, critic.prm, stage.out)]
    stopped = False
    for number in range(1, config.rounds + 1):
        folder = stage.out / f"round{number}"
        policy = _train(do, settings, config, kept, critic.prm, folder, number)
        now = _measure(do, settings, config, policy, critic.prm, folder)
        change, made = compare_rounds(measured, now), manifest_of(folder / "pairs")["counts"]["pairs"]
        rows.append(_row(number, now, change, made, policy, critic.prm, stage.out))
        if stopped := change.over_optimised:
            print(f"rounds: stopped at round {number}: {_why(change)}", file=sys.stderr)
            break
        kept, measured = policy, now
        if config.refresh_budget:
            critic, measured, refreshed = refresh(do, settings, config, kept, critic, number)
            print(f"rounds: {in_words(refreshed)}", file=sys.stderr)
            rows[-1]["refresh"] = refreshed
    result = {"rounds": rows, "stopped": stopped}
    result |= {"policy": os.path.relpath(kept, stage.out), "prm": os.path.relpath(critic.prm, stage.out)}
    write_atomic(stage.out / RESULTS, json.dumps(result, indent=2) + "\n")
    _show(rows)
    print(f"policy that is kept: {kept}")
    note = f"{len(rows) - 1} rounds{', stopped by the guard' * stopped}; kept: {kept}"
    counts: dict[str, Any] = {"rounds": len(rows) - 1, "stopped": stopped}
    if done := [row["refresh"] for row in rows if "refresh" in row]:
        print(f"PRM that is kept: {critic.prm}")
        counts["refresh_continuations"] = sum(one["continuations"] for one in done)
        note += f"; {'; '.join(map(in_words, done))}"
    return stage.finish(counts, note=note)


def _train(
    do: Do, settings: Settings, config: RoundsConfig, policy: Path, prm: Path, folder: Path, number: int
) -> Path:
    """One turn of the loop, with samples of its own: their seed is the run's plus the round's number."""
    seed = config.seed + number
    asked = {"problems": config.problems, "image_root": config.image_root}
    made = paired(do, settings, folder, folder / "pairs", policy, prm, seed, **asked)
    training = settings.build("train_mpo", policy=policy, pairs=made, out=folder / "policy", seed=seed)
    return do("train-mpo", training, f"round {number}")


def _measure(do: Do, settings: Settings, config: RoundsConfig, policy: Path, prm: Path, folder: Path) -> RoundMeasure:
    """The guard: the same problems and the same seed at every round."""
    guard = folder / "guard"
    given = {"policy": policy, "problems": config.guard, "out": guard / "samples", "seed": config.seed}
    given["image_root"] = config.image_root
    drawing = settings.build("test_sample", **given)
    whose = f"responses to the guard's problems, after {folder.name}"
    return measure_round(read_groups(scored(do, settings, guard, drawing, prm, whose, visual_dependence=False)))


def _row(
    number: int, measured: RoundMeasure, change: RoundChange | None, made: int, policy: Path, prm: Path, out: Path
) -> dict[str, Any]:
    gold, reward = measured.estimates()
    return {
        "round": number,
        "policy": os.path.relpath(policy, out),
        "prm": os.path.relpath(prm, out),
        "pairs": made,
        "gold": asdict(gold),
        "reward": asdict(reward),
        "change": asdict(change) if change else None,
    }


def _why(change: RoundChange) -> str:
    noise = "beyond" if change.beyond_noise else "within"
    gold, reward = signed(asdict(change.gold)), signed(asdict(change.reward))
    return (
        f"the accuracy on the guard's problems fell ({gold} points) while the PRM's mean rose ({reward}), {noise} the "
        "intervals' noise. The policy of the round before is kept; a PRM that is trained on the policy's own samples "
        "may go further (--refresh_budget)"
    )


def _show(rows: list[dict[str, Any]]) -> None:
    refreshes = any("refresh" in row for row in rows)
    header = ["round", "pairs", "gold", "change", "PRM", "change ", *(["asked PRM", "refresh"] if refreshes else [])]
    cells = [
        [
            str(row["round"]),
            str(row["pairs"] or "–"),
            short(row["gold"]),
            signed(row["change"]["gold"]) if row["change"] else "–",
            percent(row["reward"]["mean"]),
            signed(row["change"]["reward"]) if row["change"] else "–",
            *([row["prm"], spent(row["refresh"]) if "refresh" in row else "–"] if refreshes else []),
        ]
        for row in rows
    ]
    Console().print(rich_table("Rounds, per cent on the guard's problems", header, cells))
