"""Error injection: a right response with one digit of one step changed.

Sampled errors are rare and unlike each other; a small model learns from them how hard an image is, and not to
compare what is written with what is shown. A right response beside its own copy with one wrong digit differs in
nothing else, so only the comparison tells them apart. The labels are presumed, not measured: those of the original
before the changed step, 0 at it, and none after it, since those steps follow from something wrong.
"""

from __future__ import annotations

import random
from dataclasses import replace

from rewards.prm.labelling.labels import LabelledSolution


def with_wrong_digit(solution: LabelledSolution, rng: random.Random) -> LabelledSolution | None:
    """A copy with one decimal digit of one step replaced by another; `None` if no step holds a digit.

    Args:
        solution: a response that ends right.
        rng: picks step, digit and replacement.

    Example:
        >>> from rewards.steps import split_on_blank_lines
        >>> right = LabelledSolution(split_on_blank_lines("Red 7\\n\\nFinal answer: 7"), (1.0, 1.0))
        >>> wrong = with_wrong_digit(right, random.Random(0))
        >>> [step.text for step in wrong.steps], wrong.labels
        (['Red 7', 'Final answer: 0'], (1.0, 0.0))
    """
    places = [
        (i, j) for i, step in enumerate(solution.steps) for j, sign in enumerate(step.text) if sign in "0123456789"
    ]
    if not places:
        return None
    chosen = rng.choice(sorted({i for i, _ in places}))
    position = rng.choice([j for i, j in places if i == chosen])
    step = solution.steps[chosen]
    digit = rng.choice([other for other in "0123456789" if other != step.text[position]])
    changed = replace(step, text=step.text[:position] + digit + step.text[position + 1 :])
    steps = (*solution.steps[:chosen], changed, *solution.steps[chosen + 1 :])
    return LabelledSolution(steps, (*solution.labels[:chosen], 0.0, *[None] * (len(steps) - chosen - 1)))
