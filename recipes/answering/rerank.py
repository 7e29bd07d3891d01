"""`mpo rerank`: the responses of every problem, best first, as a PRM has scored them.

Responses of `mpo sample`, or made elsewhere and taken in with `mpo import-responses`; `mpo score` gives the rewards. A
response without a reward is neither good nor bad: it comes last and says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.text import one_line
from recipes.config import RerankConfig
from recipes.stage.groups import iter_groups
from rewards.types import Rollout, RolloutGroup, verdict_of

WIDTH = 100  # characters of a response on a line


def rerank(config: RerankConfig) -> None:
    """Print the responses.

    Raises:
        ConfigError: a negative number of responses.
        DataError: no response has a reward.
    """
    if config.top < 0:
        raise ConfigError(f"--top must be 0 for all, or a number of responses; got {config.top}")
    scored = 0
    for group in iter_groups(config.groups):
        ordered = best_first(group)
        scored += sum(rollout.reward is not None for _, rollout in ordered)
        for line in _lines(group, ordered[: config.top or None], as_json=config.json):
            print(line)
    if not scored:
        raise DataError(f"no response of {config.groups} has a reward; run `mpo score --groups {config.groups}` first")


def best_first(group: RolloutGroup) -> list[tuple[int, Rollout]]:
    """(sample index, rollout) by falling reward; of equal ones the earlier sample first, then those without one.

    Example:
        >>> from rewards.types import Completion, Problem
        >>> some = [Rollout(Completion(text), reward=reward) for text, reward in (("a", 0.2), ("b", None), ("c", 0.9))]
        >>> [index for index, _ in best_first(RolloutGroup(Problem("p", "?"), tuple(some)))]
        [2, 0, 1]
    """
    return sorted(enumerate(group.rollouts), key=lambda item: (item[1].reward is None, -(item[1].reward or 0.0)))


def _lines(group: RolloutGroup, ordered: list[tuple[int, Rollout]], *, as_json: bool) -> Iterator[str]:
    if not as_json:
        yield one_line(f"{group.problem.id}: {group.problem.question}", WIDTH)
    for rank, (index, rollout) in enumerate(ordered, start=1):
        if as_json:
            row = {"problem_id": group.problem.id, "rank": rank, "index": index, "reward": rollout.reward}
            yield json.dumps({**row, "verdict": verdict_of(rollout), "response": rollout.completion.text})
            continue
        reward = "no reward" if rollout.reward is None else f"{rollout.reward:9.4f}"
        verdict = f"  {rollout.verdict}" if rollout.verdict else ""
        yield f"  {rank:>3}. {reward}  #{index}{verdict}  {one_line(rollout.completion.text, WIDTH)}"
