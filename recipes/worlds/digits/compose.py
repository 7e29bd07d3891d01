"""`mpo world`: write the digit problems of every split and an untrained policy."""

from __future__ import annotations

import random
from pathlib import Path

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model
from recipes.config import WorldConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import write_groups, write_problems
from recipes.worlds.digits.policy import build_policy, digits_text
from recipes.worlds.digits.vision import pretrain_vision
from recipes.worlds.digits.world import QUESTIONS, SPLITS, Scene, scenes, solution, to_problem
from recipes.worlds.files import FIXED_SEED, on_disk, said_counts
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict


def compose(config: WorldConfig) -> Path:
    """Write `<split>.jsonl` with images, demonstrated answers for the warm start, and `policy/`."""
    stage = open_stage("world", config, inputs=[])
    if stage.complete:
        return stage.out
    if not config.kinds or set(config.kinds) - set(QUESTIONS):
        raise ConfigError(f"kinds: expected some of {', '.join(QUESTIONS)}, got {config.kinds}")
    (stage.out / "images").mkdir(exist_ok=True)
    counts = {}
    for split in SPLITS:
        seed = FIXED_SEED.get(split, config.seed)
        drawn = scenes(split, getattr(config, f"num_{split}"), seed, kinds=config.kinds)
        problems = [on_disk(to_problem(scene, f"{split}-{i:05d}"), stage.out) for i, scene in enumerate(drawn)]
        write_problems(stage.out / f"{split}.jsonl", problems)
        counts[split] = len(problems)
        if split == "warm_start":
            write_groups(stage.out, _demonstrations(drawn, problems, config))
    seen = _policy(stage.out / "policy", config)
    made = {**counts, "vision_accuracy": round(seen, 4), "problems": str(stage.out / "warm_start.jsonl")}
    return stage.finish(made, note=f"{said_counts(counts)}; the vision tower reads {seen:.1%} of its digits")


def _policy(directory: Path, config: WorldConfig) -> float:
    """Random weights, then a vision tower that can tell digits apart."""
    build_policy(directory, seed=config.seed, corpus=digits_text(config.kinds))
    model = load_model(directory)
    accuracy = pretrain_vision(model, steps=config.vision_steps, seed=config.seed)
    model.save_pretrained(directory)
    return accuracy


def _demonstrations(drawn: list[Scene], problems: list[Problem], config: WorldConfig) -> list[RolloutGroup]:
    """Several right answers per problem, each in its own order and wording."""
    rng = random.Random(f"demonstrations:{config.seed}")
    groups = []
    for scene, problem in zip(drawn, problems, strict=True):
        texts = {solution(scene.kind, problem.meta["digits"], rng): None for _ in range(config.solutions)}
        rollouts = tuple(Rollout(Completion(text), verdict=Verdict.CORRECT) for text in texts)
        groups.append(RolloutGroup(problem, rollouts))
    return groups
