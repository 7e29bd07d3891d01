"""Which labelled responses a PRM can be trained on, found before the first step; nothing is cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.prompt_length import PromptLength
from rewards.prm.formats import PRMFormat
from rewards.prm.labelling.labels import LabelledGroup
from rewards.prm.rendering import row_length


def admit_solutions(
    groups: Sequence[LabelledGroup], processor: Any, prm_format: PRMFormat, *, max_length: int | None = None
) -> tuple[list[LabelledGroup], dict[str, int]]:
    """The groups without the responses that cannot be trained on, and reason → responses left out.

    Args:
        groups: labelled groups; one of which no response is left is left out.
        processor: of the model that will be trained.
        prm_format: its contract.
        max_length: most tokens of a prompt (images included) with one response and the turns around its steps; None is
            no limit, and then nothing is looked at.
    """
    if max_length is None:
        return list(groups), {}
    if max_length < 1:
        raise ConfigError(f"max_length must be >= 1 or None, got {max_length}")
    count, rejected, kept = PromptLength(processor), Counter[str](), []
    for group in tqdm(groups, desc="measuring responses", unit="problem", delay=2.0):
        usable = []
        for solution in group.solutions:
            try:
                tokens = row_length(processor, prm_format, group.problem, solution.steps, count)
            except DataError as error:
                rejected[error.reason] += 1
                continue
            if tokens > max_length:
                rejected[f"longer than max_length={max_length}"] += 1
            else:
                usable.append(solution)
        if usable:
            kept.append(replace(group, solutions=tuple(usable)))
    return kept, dict(rejected.most_common())
