"""`mpo rate`: one reward per response from a critic that reads no steps.

`self_certainty` is the policy's own (its tokens' log-probabilities, kept by `mpo sample --logprobs`); `scores` are
those of any critic that ran elsewhere, a JSON line `{"problem_id", "index", "score"}` each; `reward_model` is a model
with a scalar head (`rewards/prm/reward_model.py`), whose rewards are in `calls.sqlite` as soon as a problem is read.
The rewards rank the responses; what has none keeps its place with reward `None`, ranks last, and is counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict

from mpo.multimodal.errors import ConfigError, DataError
from recipes.config import RateConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import iter_groups, problems_of, write_groups
from recipes.stage.kept_calls import open_calls
from rewards.interchange.json_rows import read_rows, validated
from rewards.kept.calls import CallStore
from rewards.scoring.confidence import self_certainty
from rewards.types import RolloutGroup

if TYPE_CHECKING:
    from rewards.prm.reward_model import RewardModel

Rating = float | str  # or why there is none
Rater = Callable[[RolloutGroup], Sequence[Rating]]


def rate(config: RateConfig) -> Path:
    """Give every response a reward.

    Raises:
        ConfigError: a critic without its file or folder, or the other way round.
        DataError: a response has two scores, or no response got a reward.
    """
    for name, given in (("scores", config.scores), ("reward_model", config.reward_model)):
        if (config.by == name) != (given is not None):
            raise ConfigError(f"by {name} and {name} belong together, got by={config.by} and {name}={given}")
    if config.batch_rows < 1:
        raise ConfigError(f"expected batch_rows >= 1, got {config.batch_rows}")
    inputs = [path for path in (config.groups, config.scores, config.reward_model) if path is not None]
    stage = open_stage("rate", config, inputs=inputs)
    if stage.complete:
        return stage.out
    unscored, rated = Counter[str](), Counter[bool]()
    bad = Counter[str]()
    with ExitStack() as stack:
        rater: Rater = _certainties
        if config.scores is not None:
            rater, bad = _given(config.scores)
        elif config.reward_model is not None:
            rater = _by_model(config, stack.enter_context(open_calls(stage)))
        write_groups(stage.out, _rated(iter_groups(config.groups), rater, unscored, rated))
    total = rated.total()
    if not rated[True]:
        raise DataError(f"no response of {config.groups} got a reward by {config.by}: {dict(unscored)}")
    counts = {"in": total, "out": total, "rejected": {}, "unscored": dict(unscored), "bad_scores": dict(bad)}
    return stage.finish({**counts, "problems": str(problems_of(config.groups))})


def _rated(
    groups: Iterable[RolloutGroup], rater: Rater, unscored: Counter[str], rated: Counter[bool]
) -> Iterator[RolloutGroup]:
    for group in groups:
        found = rater(group)
        rewards = [None if isinstance(one, str) else one for one in found]
        unscored.update(one for one in found if isinstance(one, str))
        rated.update(reward is not None for reward in rewards)
        rollouts = (
            rollout.with_(reward=reward, step_scores=None, blank=None, swapped=None)
            for rollout, reward in zip(group.rollouts, rewards, strict=True)
        )
        yield RolloutGroup(group.problem, tuple(rollouts))


def _certainties(group: RolloutGroup) -> list[Rating]:
    values = [self_certainty(rollout.completion) for rollout in group.rollouts]
    return ["no log-probabilities" if value is None else value for value in values]


def _by_model(config: RateConfig, calls: CallStore) -> Rater:
    """A problem's responses in one call, which is kept; the model is loaded for the first that is not there."""

    @cache
    def model() -> RewardModel:
        from rewards.prm.reward_model import RewardModel

        assert config.reward_model is not None
        return RewardModel.load(config.reward_model, batch_rows=config.batch_rows)

    def rater(group: RolloutGroup) -> list[Rating]:
        problem, texts = group.problem, [rollout.completion.text for rollout in group.rollouts]

        def call() -> list[Rating]:
            found = model().rewards([(problem, text) for text in texts])
            return [one.reason if isinstance(one, DataError) else one for one in found]

        made: list[Rating] = calls.once(["reward", problem.id, problem.question, texts], call)
        return made

    return rater


def _given(path: Path) -> tuple[Rater, Counter[str]]:
    """The scores of a file by problem and index, and reason → lines that hold none."""
    found, bad = read_rows(path, _score)
    scores = {(one.problem_id, one.index): one.score for one in found}
    if len(scores) < len(found):
        raise DataError(f"{path}: {len(found) - len(scores)} scores are of a response that has one; expected one each")

    def rater(group: RolloutGroup) -> list[Rating]:
        keys = [(group.problem.id, index) for index in range(len(group.rollouts))]
        return [scores.get(key, "no score in the file") for key in keys]

    return rater, bad


class _Score(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    problem_id: str
    index: Annotated[int, Ge(0)]
    score: float


def _score(number: int, row: Any) -> _Score:
    return validated(_Score, row)
