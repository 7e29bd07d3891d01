"""`mpo rate`: one reward per response from a critic that reads no steps.

`self_certainty` is the policy's own (its tokens' log-probabilities, kept by `mpo sample --logprobs`); `scores` are
those of any critic that ran elsewhere, a JSON line `{"problem_id", "index", "score"}` each; `reward_model` is a model
with a scalar head (`rewards/prm/reward_model.py`); `judge` is any model, here or behind a server, that is shown problem
and response and replies with a grade (`rewards/scoring/grading.py`). What a model gives is in `calls.sqlite` as soon as
a problem is done, and a killed run continues there.

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
from recipes.config import RateConfig, SampleConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import iter_groups, problems_of, write_groups
from recipes.stage.kept_calls import open_calls
from recipes.stage.policies import checked_params, generator_of
from rewards.interchange.json_rows import read_rows, validated
from rewards.kept.calls import CallStore
from rewards.scoring.confidence import self_certainty
from rewards.scoring.grading import graded
from rewards.types import Problem, RolloutGroup

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
    judged = config.judge or (config.base_url and config.model) or None
    for name, given in (("scores", config.scores), ("reward_model", config.reward_model), ("judge", judged)):
        if (config.by == name) != (given is not None):
            more = " (or base_url and model)" if name == "judge" else ""
            raise ConfigError(f"by {name} and {name}{more} belong together, got by={config.by} and {name}={given}")
    if config.batch_rows < 1:
        raise ConfigError(f"expected batch_rows >= 1, got {config.batch_rows}")
    given_paths = (config.groups, config.scores, config.reward_model, config.judge)
    inputs = [path for path in given_paths if path is not None]
    stage = open_stage("rate", config, inputs=inputs)
    if stage.complete:
        return stage.out
    unscored, rated = Counter[str](), Counter[bool]()
    bad = Counter[str]()
    with ExitStack() as stack:
        rater: Rater = _certainties
        if config.scores is not None:
            rater, bad = _given(config.scores)
        elif config.by in MODELS:
            rater = _by_model(MODELS[config.by](config), stack.enter_context(open_calls(stage)), config.by)
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


Rewards = Callable[[Problem, list[str]], list[float | DataError]]


def _by_model(rewards: Rewards, calls: CallStore, by: str) -> Rater:
    """A problem's responses in one call, which is kept."""

    def rater(group: RolloutGroup) -> list[Rating]:
        problem, texts = group.problem, [rollout.completion.text for rollout in group.rollouts]

        def call() -> list[Rating]:
            return [one.reason if isinstance(one, DataError) else one for one in rewards(problem, texts)]

        made: list[Rating] = calls.once([by, problem.id, problem.question, texts], call)
        return made

    return rater


def _reward_model(config: RateConfig) -> Rewards:
    """The model of the folder, loaded for the first problem that is not kept."""

    @cache
    def loaded() -> RewardModel:
        from rewards.prm.reward_model import RewardModel

        assert config.reward_model is not None
        return RewardModel.load(config.reward_model, batch_rows=config.batch_rows)

    return lambda problem, texts: loaded().rewards([(problem, text) for text in texts])


def _judge(config: RateConfig) -> Rewards:
    """The judge, loaded or connected for the first problem that is not kept; greedy."""
    drawing = SampleConfig(
        config.groups, config.out, policy=config.judge, base_url=config.base_url, model=config.model,
        temperature=0.0, num_samples=1, max_new_tokens=config.max_new_tokens, batch_rows=config.batch_rows,
        concurrency=config.concurrency,
    )  # fmt: skip
    params = checked_params(drawing)
    judge = cache(lambda: generator_of(drawing, params, 1))
    return lambda problem, texts: graded(judge(), problem, texts)


MODELS: dict[str, Callable[[RateConfig], Rewards]] = {"reward_model": _reward_model, "judge": _judge}


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
