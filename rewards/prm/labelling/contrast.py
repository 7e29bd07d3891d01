"""Visual-contrast negatives: a right response beside another problem's images, where its answer is wrong.

The text alone cannot tell such a negative from the original, so only the images can. The partner asks the same
question about images of the same sizes and has another reference answer; so the last step, which states the answer,
is wrong there: label 0. Whether an earlier step still holds on the other images nobody has looked at: no label. Two
spellings of one answer (12 and 12.0) would count as two, so this is for data whose answers have one spelling.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from mpo.multimodal.images import load_image
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution
from rewards.types import Problem
from rewards.verifying.answers import normalise


def visual_contrasts(groups: Sequence[LabelledGroup], count: int, rng: random.Random) -> list[LabelledGroup]:
    """For each group up to `count` of its right responses as negatives of one partner problem, if it has any.

    Args:
        groups: labelled responses; those without images, reference answer or right response give nothing.
        count: negatives per group, at most.
        rng: picks partner and responses.

    Returns:
        New groups, at most one per group, under the partner's images and the id `<id> with images of <partner>`.
    """
    alike: dict[tuple[object, ...], list[Problem]] = defaultdict(list)
    for group in groups:
        if group.problem.images and group.problem.answer is not None:
            alike[_look(group.problem)].append(group.problem)
    contrasts = []
    for group in groups:
        right = [solution for solution in group.solutions if solution.ends_right]
        if not right or not group.problem.images or group.problem.answer is None:
            continue
        own = normalise(group.problem.answer)
        partners = [other for other in alike[_look(group.problem)] if normalise(other.answer or "") != own]
        if partners:
            partner = rng.choice(partners)
            chosen = rng.sample(right, min(count, len(right)))
            problem = replace(partner, id=f"{group.problem.id} with images of {partner.id}")
            contrasts.append(LabelledGroup(problem, tuple(map(_wrong_at_the_end, chosen))))
    return contrasts


def _look(problem: Problem) -> tuple[object, ...]:
    return problem.question, *(load_image(image).size for image in problem.images)


def _wrong_at_the_end(solution: LabelledSolution) -> LabelledSolution:
    return LabelledSolution(solution.steps, (*[None] * (len(solution.steps) - 1), 0.0))
