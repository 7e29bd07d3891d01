"""A draw that is cut into tasks gives the samples of the whole draw."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from recipes.worlds.digits.world import scenes, to_problem
from rewards.sampling.pooled import DrawTask, PooledGenerator, drawn
from rewards.sampling.transformers_generator import SamplingParams, TransformersGenerator

PROBLEMS = [to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("prm", 5, 1))]
DONE = {(0, 1), (2, 0), *((place, index) for place in (3, 4) for index in range(3))}


def test_the_same_samples_in_any_order_of_the_tasks(policy: Any, processor: Any) -> None:
    """Five problems, three samples, two problems per call; the last problem has nothing left to draw."""
    generator = TransformersGenerator(policy, processor, SamplingParams(max_new_tokens=5), batch_rows=6)
    asked: list[DrawTask] = []

    def shuffled(tasks: Sequence[DrawTask]) -> Iterator[tuple[int, Any]]:
        asked.extend(tasks)
        for place in random.Random(0).sample(range(len(tasks)), len(tasks)):
            yield place, drawn(generator, tasks[place])

    pooled = PooledGenerator(shuffled, problems_a_task=2)
    whole = [s for batch in generator.draw(PROBLEMS, 3, seed=1, done=DONE) for s in batch]
    cut = [s for batch in pooled.draw(PROBLEMS, 3, seed=1, done=DONE) for s in batch]
    place = partial(sorted, key=lambda sample: (sample.problem, sample.index))
    assert place(cut) == place(whole)
    assert len(whole) == 15 - len(DONE)
    assert [len(task.problems) for task in asked] == [2, 2]  # nothing is left of the last problem

    prefixes = [f"Red {i}" for i in range(5)]
    expected = generator.generate(PROBLEMS, 2, prefixes=prefixes, seed=1)
    # batch_rows // 2 problems per call of two samples
    assert PooledGenerator(shuffled, problems_a_task=3).generate(PROBLEMS, 2, prefixes=prefixes, seed=1) == expected
