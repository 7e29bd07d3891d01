"""`mpo sample`: N completions a problem, each with why it ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mpo.multimodal.errors import ImageError
from mpo.multimodal.images import load_image
from mpo.multimodal.loading import load_for_inference, load_processor
from recipes.config import SampleConfig
from recipes.groups import read_problems, write_groups
from recipes.quarantine import Quarantine
from recipes.run import open_stage
from rewards.generators.transformers_generator import SamplingParams, TransformersGenerator
from rewards.types import Problem, Rollout, RolloutGroup


def sample(config: SampleConfig) -> Path:
    """Draw, and write `groups.jsonl`. Every problem gets exactly `num_samples` rollouts; a bad line, and a problem
    whose picture cannot be decoded, go into `quarantine.jsonl` and are counted, before anything is drawn."""
    stage = open_stage("sample", config, inputs=[config.policy, config.problems])
    if stage.complete:
        return stage.out
    quarantine = Quarantine()
    problems = _readable(read_problems(config.problems, on_bad=quarantine.add).values(), quarantine)
    asked = swapped(problems) if config.swap_images else problems
    params = SamplingParams(config.temperature, config.top_p, config.top_k, config.max_new_tokens)
    generator = TransformersGenerator(
        load_for_inference(config.policy),
        load_processor(config.policy),
        params,
        batch_rows=config.batch_rows,
        describe=f"sample {config.problems.stem}",
    )
    drawn = generator.generate(asked, config.num_samples, seed=config.seed)
    groups = [
        RolloutGroup(problem, tuple(Rollout(completion) for completion in completions))
        for problem, completions in zip(problems, drawn, strict=True)
    ]
    write_groups(stage.out, groups)
    out = len(problems) * config.num_samples
    quarantine.write(stage.out)
    rejected = quarantine.counts(times=config.num_samples)
    counts = {"in": out + sum(rejected.values()), "out": out, "rejected": rejected}
    return stage.finish({**counts, "problems": str(config.problems)})


def _readable(problems: Iterable[Problem], quarantine: Quarantine) -> list[Problem]:
    """The problems whose pictures all decode; the others go into quarantine."""
    kept = []
    for problem in problems:
        try:
            for image in problem.images:
                load_image(image)
        except ImageError as error:
            quarantine.add(problem.id, "unreadable image", str(error))
        else:
            kept.append(problem)
    return kept


def swapped(problems: list[Problem]) -> list[Problem]:
    """Each problem with the pictures of the next problem whose pictures have the same sizes: the image canary.

    Number and sizes are kept, so only what the pictures show changes. A problem without such a partner, or without
    pictures, keeps its own.
    """
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for index, problem in enumerate(problems):
        alike.setdefault(tuple(load_image(image).size for image in problem.images), []).append(index)
    partner = {i: group[(place + 1) % len(group)] for group in alike.values() for place, i in enumerate(group)}
    return [replace(problem, images=problems[partner[i]].images) for i, problem in enumerate(problems)]
